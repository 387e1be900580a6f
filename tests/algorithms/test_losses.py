"""The losses of the algorithms: value and gradient of each term by hand, on inputs of which no two are alike."""

import math

import pytest
import torch
from torch import Tensor

from athanor.algorithms.dpo import DPO, dpo_loss
from athanor.algorithms.ppo import adapted_kl_coefficient, clipped_policy_loss, clipped_value_loss, token_rewards
from athanor.algorithms.reward import bradley_terry_loss, pair_accuracy


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slopes(function, *inputs: Tensor) -> list[list[float]]:
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    return [slope.tolist() for slope in torch.autograd.grad(function(*inputs).sum(), inputs)]


# --- DPO --------------------------------------------------------------------------------------------------------------

CHOSEN, REJECTED = torch.tensor([-2.0, -9.0, -4.0]), torch.tensor([-3.5, -5.0, -4.25])
REF_CHOSEN, REF_REJECTED = torch.tensor([-2.5, -8.0, -4.0]), torch.tensor([-3.0, -7.0, -4.25])
MARGINS = [0.5 + 0.5, -1.0 - 2.0, 0.0]  # (chosen - ref_chosen) - (rejected - ref_rejected)


def test_dpo_loss_by_hand():
    found = dpo_loss(CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED, beta=0.3)
    assert found.tolist() == pytest.approx([-math.log(sigmoid(0.3 * m)) for m in MARGINS])
    assert found[2].item() == pytest.approx(math.log(2), abs=1e-7), "log 2 where the policy is the reference"


def test_dpo_gradient_by_hand():
    """d loss / d chosen = -beta sigmoid(-beta margin); of the others the same, with signs - + + -."""
    found = slopes(lambda *x: dpo_loss(*x, beta=0.3), CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED)
    slope = [0.3 * sigmoid(-0.3 * m) for m in MARGINS]
    for row, sign in zip(found, (-1, 1, 1, -1)):
        assert row == pytest.approx([sign * s for s in slope])


def test_dpo_loss_far_out_is_finite_and_linear():
    far = torch.tensor([1000.0, -1000.0])
    found = dpo_loss(far, torch.zeros(2), torch.zeros(2), torch.zeros(2), beta=0.5)
    assert found.tolist() == [0.0, 500.0]
    assert slopes(lambda x: dpo_loss(x, torch.zeros(2), torch.zeros(2), torch.zeros(2), beta=0.5), far) == [[0.0, -0.5]]


@pytest.mark.parametrize("beta", [0.0, -0.1])
def test_beta_must_be_positive(beta):
    zero = torch.zeros(1)
    with pytest.raises(ValueError, match="beta must be positive"):
        dpo_loss(zero, zero, zero, zero, beta=beta)
    with pytest.raises(ValueError, match=r"algorithm\.beta must be positive"):
        DPO(torch.nn.Linear(1, 1), None, None, reference=torch.nn.Linear(1, 1), beta=beta)


# --- reward -----------------------------------------------------------------------------------------------------------


def test_bradley_terry_loss_by_hand():
    chosen, rejected = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.5, 1.0, 0.5])
    found = bradley_terry_loss(chosen, rejected)
    assert found.tolist() == pytest.approx([-math.log(sigmoid(1.5)), -math.log(sigmoid(-2.0)), math.log(2)])
    assert bradley_terry_loss(chosen, rejected, margin=1.5)[0].item() == pytest.approx(math.log(2))
    up, down = slopes(bradley_terry_loss, chosen, rejected)
    assert up == pytest.approx([-sigmoid(-1.5), -sigmoid(2.0), -0.5])
    assert down == pytest.approx([-x for x in up])
    (up, _) = slopes(lambda c, r: bradley_terry_loss(c, r, margin=0.25), chosen, rejected)
    assert up == pytest.approx([-sigmoid(-1.25), -sigmoid(2.25), -sigmoid(0.25)])


def test_pair_accuracy_gives_half_for_a_tie():
    assert pair_accuracy(torch.tensor([2.0, 1.0, -3.0]), torch.tensor([1.0, 1.0, -2.0])).tolist() == [1.0, 0.5, 0.0]


# --- PPO --------------------------------------------------------------------------------------------------------------

RATIOS = [1.5, 1.1, 0.9, 0.5]  # above, inside, inside and below the clip of 0.2
OLD = torch.tensor([-1.0, -2.0, -0.5, -3.0])
LOGPS = OLD + torch.tensor(RATIOS).log()


@pytest.mark.parametrize(
    ("advantage", "losses", "gradient"),
    [
        # the ratio counts only to 1.2 upwards; downwards it counts in full, where the update has harmed
        (2.0, [-2.4, -2.2, -1.8, -1.0], [0.0, -2.2, -1.8, -1.0]),
        # and the other way about: only down to 0.8
        (-3.0, [4.5, 3.3, 2.7, 2.4], [4.5, 3.3, 2.7, 0.0]),
        (0.0, [0.0] * 4, [0.0] * 4),
    ],
)
def test_clipped_policy_loss_by_hand(advantage, losses, gradient):
    advantages = torch.full((4,), advantage)
    assert clipped_policy_loss(LOGPS, OLD, advantages, clip=0.2).tolist() == pytest.approx(losses)
    (slope,) = slopes(lambda x: clipped_policy_loss(x, OLD, advantages, clip=0.2), LOGPS)
    assert slope == pytest.approx(gradient)


def test_the_first_update_follows_the_policy_gradient():
    """At ratio 1 the gradient is that of -A log p."""
    advantages = torch.tensor([0.5, -1.5, 2.0, -0.25])
    (slope,) = slopes(lambda x: clipped_policy_loss(x, OLD, advantages, clip=0.2), OLD)
    assert slope == pytest.approx((-advantages).tolist())


def test_clipped_value_loss_by_hand():
    old = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])
    values = torch.tensor([1.1, 1.5, 1.5, 0.2, 0.2])
    returns = torch.tensor([3.0, 3.0, 1.25, 0.0, 2.0])
    # clamped to [0.8, 1.2]:  1.1       1.2       1.2       0.8       0.8
    expected = [1.9**2, 1.8**2, 0.25**2, 0.8**2, 1.8**2]
    found = clipped_value_loss(values, old, returns, clip=0.2)
    assert found.tolist() == pytest.approx([x / 2 for x in expected])
    # where the clamped value is the worse one, nothing pulls
    (slope,) = slopes(lambda v: clipped_value_loss(v, old, returns, clip=0.2), values)
    assert slope == pytest.approx([-1.9, 0.0, 0.25, 0.0, -1.8])
    free = clipped_value_loss(values, old, returns, clip=None)
    assert free.tolist() == pytest.approx([x / 2 for x in (1.9**2, 1.5**2, 0.25**2, 0.2**2, 1.8**2)])


def test_token_rewards_by_hand():
    kl = torch.tensor([[0.5, 1.0, -0.25, 9.0], [7.0, 7.0, 2.0, 7.0]])
    mask = torch.tensor([[True, True, True, False], [False, False, True, False]])
    found = token_rewards(kl, torch.tensor([3.0, -1.0]), mask, coefficient=0.2)
    torch.testing.assert_close(found, torch.tensor([[-0.1, -0.2, 3.05, 0.0], [0.0, 0.0, -1.4, 0.0]]))
    assert torch.equal(token_rewards(kl, torch.tensor([3.0, -1.0]), mask, coefficient=torch.tensor(0.2)), found)


@pytest.mark.parametrize(("kl", "factor"), [(0.0, 0.9), (4.0, 0.9), (5.4, 0.95), (6.0, 1.0), (6.6, 1.05), (60.0, 1.1)])
def test_adapted_kl_coefficient_by_hand(kl, factor):
    """Target 6, gain 1/2: a step of half the relative error, which counts to a fifth at most."""
    found = adapted_kl_coefficient(torch.tensor(0.4), torch.tensor(kl), target=6.0, horizon=0.5)
    assert found.item() == pytest.approx(0.4 * factor)
