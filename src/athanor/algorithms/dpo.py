"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290).

Optional likelihood term on the chosen answer, as in iterative reasoning preference optimisation (Pang et al. 2024,
arXiv:2404.19733, eq. 2), averaged over its tokens: off-policy pairs otherwise lower the likelihood of both answers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athanor.algorithms.base import Algorithm, response_logps, response_states
from athanor.algorithms.reward import pair_accuracy
from athanor.batches import IGNORED, PreferenceBatch
from athanor.models import require_language_model


def dpo_loss(
    chosen_B: Tensor, rejected_B: Tensor, ref_chosen_B: Tensor, ref_rejected_B: Tensor, *, beta: float
) -> Tensor:
    """DPO loss of each pair (eq. 7).

        loss = -log sigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))

    Args:
        chosen_B, rejected_B: log p(response | prompt) under the policy, summed over response tokens, nats, float32 [B].
        ref_chosen_B, ref_rejected_B: the same under the frozen reference.
        beta: pull toward the reference, 1/nats, > 0.

    Returns:
        float32 [B], nats, unreduced. Exactly log 2 where policy == reference.

    Raises:
        ValueError: beta <= 0.
    """
    if beta <= 0:
        raise ValueError(f"beta must be positive, not {beta}")
    return -F.logsigmoid(beta * ((chosen_B - ref_chosen_B) - (rejected_B - ref_rejected_B)))


class DPO(Algorithm):
    """Trains the policy `model` on pairs against the frozen `reference`.

    Args:
        beta: see `dpo_loss`.
        likelihood_weight: weight of -log p(chosen) / tokens of chosen; 0 is plain DPO.
    """

    reference: nn.Module
    asks_first = True

    def __init__(self, model, optimizer, schedule, reference: nn.Module, beta: float, likelihood_weight: float = 0.0):
        if beta <= 0:
            raise ValueError(f"algorithm.beta must be positive, not {beta}")
        super().__init__(model, optimizer, schedule)
        require_language_model(reference, "algorithm.reference")
        self.add_frozen("reference", reference)
        self.beta, self.likelihood_weight = beta, likelihood_weight

    def forward_losses(self, batch: PreferenceBatch) -> dict[str, Tensor]:
        """Everything about each pair, float32 [B]."""
        tokens = torch.cat((batch.chosen_BT, batch.rejected_BT))
        labels = torch.cat((batch.chosen_labels_BT, batch.rejected_labels_BT))
        with torch.no_grad():
            ref_BTD = response_states(self.reference, tokens, labels)
        states_BTD = response_states(self.model, tokens, labels)
        with torch.no_grad():
            ref_chosen_B, ref_rejected_B = response_logps(self.reference, tokens, labels, ref_BTD).sum(-1).chunk(2)
        chosen_B, rejected_B = response_logps(self.model, tokens, labels, states_BTD).sum(-1).chunk(2)
        loss_B = dpo_loss(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, beta=self.beta)
        nll_B = -chosen_B / (batch.chosen_labels_BT != IGNORED).sum(-1)
        rewards_chosen_B = self.beta * (chosen_B - ref_chosen_B).detach()
        rewards_rejected_B = self.beta * (rejected_B - ref_rejected_B).detach()
        return {
            "loss": loss_B + self.likelihood_weight * nll_B,
            "preference_loss": loss_B,
            "accuracy": pair_accuracy(rewards_chosen_B, rewards_rejected_B),
            "margin": rewards_chosen_B - rewards_rejected_B,
            "chosen_reward": rewards_chosen_B,
            "rejected_reward": rewards_rejected_B,
            "chosen_nll": nll_B,
        }

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        sums = {name: value_B.sum() for name, value_B in self.forward_losses(batch).items()}
        return self.loss(sums.pop("loss"), batch.normalizer, **sums)

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        sums = {name: value_B.sum() for name, value_B in self.forward_losses(batch).items()}
        self.validated(batch.chosen_lengths_B.new_tensor(len(batch.chosen_BT)), **sums)
