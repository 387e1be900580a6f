"""The reward model's likelihood term: -log p(chosen) a token, added to the pairwise loss."""

import pytest
import torch

from athanor.algorithms.base import response_logps
from athanor.algorithms.reward import RewardModeling, bradley_terry_loss
from athanor.batches import IGNORED, PreferenceBatch
from athanor.errors import UserError
from athanor.models.heads import ScalarModel
from athanor.models.transformer import Transformer


def make(likelihood: bool) -> ScalarModel:
    torch.manual_seed(3)
    return ScalarModel(Transformer(vocabulary_size=17, width=16, layers=1, heads=2, context=8), likelihood)


def test_the_loss_is_the_pairs_plus_the_weighted_likelihood_of_the_chosen():
    chosen, rejected = torch.tensor([[1, 5, 6, 7, 2]]), torch.tensor([[1, 5, 9, 2, 0]])
    chosen_labels = torch.tensor([[IGNORED, 6, 7, 2, IGNORED]])
    rejected_labels = torch.tensor([[IGNORED, 9, 2, IGNORED, IGNORED]])
    batch = PreferenceBatch(
        chosen, chosen_labels, torch.tensor([5]), rejected, rejected_labels, torch.tensor([4]), torch.tensor(1)
    )
    model = make(likelihood=True)
    algorithm = RewardModeling(model, None, None, center_weight=0.0, likelihood_weight=0.7)
    found = {}
    algorithm.loss = lambda total, normalizer, **sums: found.update(sums, loss=total) or total  # type: ignore[assignment]
    algorithm.training_step(batch, 0)
    a = response_logps(model.trunk, chosen, chosen_labels).sum()
    b = response_logps(model.trunk, rejected, rejected_labels).sum()  # the head is zero and the scale one
    expected = bradley_terry_loss(a, b) + 0.7 * -a / 3
    torch.testing.assert_close(found["loss"], expected)
    torch.testing.assert_close(found["chosen_nll"], -a / 3)


def test_the_term_needs_a_model_with_a_likelihood():
    with pytest.raises(UserError, match="likelihood"):
        RewardModeling(make(likelihood=False), None, None, likelihood_weight=0.1)
