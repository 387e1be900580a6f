"""Reward modelling: a score for a whole answer, fitted to pairwise preferences.

The Bradley-Terry model as in Ouyang et al. 2022 (arXiv:2203.02155, eq. 1) with one pair a prompt.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from athanor.algorithms.base import Algorithm
from athanor.batches import IGNORED, PreferenceBatch
from athanor.errors import UserError


def bradley_terry_loss(chosen_B: Tensor, rejected_B: Tensor, *, margin: float = 0.0) -> Tensor:
    """-log sigmoid(chosen - rejected - margin) of each pair; float32 [B], nats, unreduced. log 2 for equal scores."""
    return -F.logsigmoid(chosen_B - rejected_B - margin)


def pair_accuracy(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """1 where the chosen answer scores higher, 1/2 for a tie, else 0; float32 [B]."""
    return (chosen_B > rejected_B).float() + 0.5 * (chosen_B == rejected_B).float()


def first_labels(labels_BT: Tensor) -> Tensor:
    """Index of each row's first label; int64 [B]."""
    return (labels_BT != IGNORED).int().argmax(-1)


class RewardModeling(Algorithm):
    """Trains an `athanor.models.heads.ScalarModel`.

    Args:
        center_weight: weight of (chosen + rejected)^2, which keeps scores near zero mean (Eisenstein et al. 2023,
            arXiv:2312.09244, section 4).
        likelihood_weight: weight of -log p(chosen) / tokens of chosen, which keeps the trunk a language model (Yang et
            al. 2024, arXiv:2406.10216, eq. 6); only for a model with `likelihood`.
    """

    trains = "reward model"

    def __init__(self, model, optimizer, schedule, center_weight: float = 0.01, likelihood_weight: float = 0.0):
        super().__init__(model, optimizer, schedule)
        if likelihood_weight and not model.likelihood:
            raise UserError("algorithm.likelihood_weight needs model.likelihood=true.")
        self.center_weight, self.likelihood_weight = center_weight, likelihood_weight

    def scores(self, batch: PreferenceBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of chosen and rejected, and -log p(chosen) a token (0 without a likelihood); float32 [B]."""
        labels_BT = torch.cat((batch.chosen_labels_BT, batch.rejected_labels_BT))
        scores_B, logps_B = self.model.reward_and_logps(  # type: ignore[operator]
            torch.cat((batch.chosen_BT, batch.rejected_BT)),
            torch.cat((batch.chosen_lengths_B, batch.rejected_lengths_B)),
            first_labels(labels_BT) + 1,
        )
        chosen_B, rejected_B = scores_B.chunk(2)
        if logps_B is None:
            return chosen_B, rejected_B, torch.zeros_like(chosen_B)
        return chosen_B, rejected_B, -logps_B.chunk(2)[0] / (batch.chosen_labels_BT != IGNORED).sum(-1)

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        chosen_B, rejected_B, nll_B = self.scores(batch)
        preference_B = bradley_terry_loss(chosen_B, rejected_B)
        loss_B = preference_B + self.center_weight * (chosen_B + rejected_B) ** 2 + self.likelihood_weight * nll_B
        return self.loss(
            loss_B.sum(), batch.normalizer, preference_loss=preference_B.sum(), chosen_nll=nll_B.sum(),
            accuracy=pair_accuracy(chosen_B, rejected_B).sum(), margin=(chosen_B - rejected_B).sum(),
        )  # fmt: skip

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        chosen_B, rejected_B, nll_B = self.scores(batch)
        self.validated(
            batch.chosen_lengths_B.new_tensor(len(chosen_B)),
            loss=bradley_terry_loss(chosen_B, rejected_B).sum(),
            accuracy=pair_accuracy(chosen_B, rejected_B).sum(),
            margin=(chosen_B - rejected_B).sum(),
            chosen_nll=nll_B.sum(),
        )
