"""Each function's value and gradient, worked out by hand or by a plain loop on distinct inputs."""

import math

import pytest
import torch
from torch import Tensor

from athanor import functional
from athanor.batches import IGNORED
from athanor.functional import (
    cross_entropy_sum,
    gae,
    masked_mean,
    masked_sum,
    masked_whiten,
    token_logps,
)

NAN, INF = math.nan, math.inf
# Logits that are logarithms: the probabilities are thirds, quarters and so on.
LOGITS_BTV = torch.log(
    torch.tensor([[[1.0, 2, 5], [3, 1, 4]], [[2.0, 2, 6], [7, 2, 1]]])
)  # p: (1 2 5)/8, (3 1 4)/8; (2 2 6)/10, (7 2 1)/10
LABELS_BT = torch.tensor([[2, 0], [IGNORED, 1]])


def gradient(function, *inputs: Tensor) -> list[Tensor]:
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    return list(torch.autograd.grad(function(*inputs).sum(), inputs))


def test_masked_sum_and_mean_read_nothing_outside_the_mask():
    values = torch.tensor([[1.0, NAN, 4.0], [INF, 2.5, -INF]])
    mask = torch.tensor([[True, False, True], [False, True, False]])
    assert masked_sum(values, mask).item() == 7.5
    assert masked_mean(values, mask).item() == 2.5
    assert masked_mean(values, torch.zeros_like(mask)).item() == 0.0
    (slope,) = gradient(lambda x: masked_mean(x, mask), values)
    torch.testing.assert_close(slope, mask / 3)


def test_masked_whiten_by_hand():
    values, mask = torch.tensor([[2.0, 6.0, 99.0], [NAN, 1.0, 7.0]]), torch.tensor([[1, 1, 0], [0, 1, 1]]).bool()
    # mean 4, variance (4 + 4 + 9 + 9) / 4 = 6.5
    scale = math.sqrt(6.5)
    expected = torch.tensor([[-2.0, 2.0, 0.0], [0.0, -3.0, 3.0]]) / scale
    torch.testing.assert_close(masked_whiten(values, mask), expected)
    torch.testing.assert_close(masked_whiten(values, mask, shift_mean=False), (expected + 4) * mask)


def test_masked_whiten_of_a_constant_is_zero():
    assert masked_whiten(torch.full((1, 3), 5.0), torch.ones(1, 3, dtype=torch.bool)).tolist() == [[0.0, 0.0, 0.0]]


def test_cross_entropy_sum_value_and_gradient_by_hand():
    expected = -math.log(5 / 8) - math.log(3 / 8) - math.log(2 / 10)
    assert cross_entropy_sum(LOGITS_BTV, LABELS_BT).item() == pytest.approx(expected, abs=1e-6)
    # softmax minus one-hot, nothing where the label is ignored
    slope = torch.tensor([[[1 / 8, 2 / 8, -3 / 8], [-5 / 8, 1 / 8, 4 / 8]], [[0.0, 0, 0], [0.7, -0.8, 0.1]]])
    torch.testing.assert_close(gradient(lambda x: cross_entropy_sum(x, LABELS_BT), LOGITS_BTV)[0], slope)


def test_token_logps_value_and_gradient_by_hand():
    expected = torch.tensor([[math.log(5 / 8), math.log(3 / 8)], [0.0, math.log(0.2)]])
    torch.testing.assert_close(token_logps(LOGITS_BTV, LABELS_BT), expected)
    slope = torch.tensor([[[-1 / 8, -2 / 8, 3 / 8], [5 / 8, -1 / 8, -4 / 8]], [[0.0, 0, 0], [-0.7, 0.8, -0.1]]])
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = gradient(lambda x: weight * token_logps(x, LABELS_BT), LOGITS_BTV)[0]
    torch.testing.assert_close(found, slope * weight[..., None])


def test_log_probabilities_are_float32_whatever_the_logits():
    low = LOGITS_BTV.bfloat16()
    for function in (token_logps, cross_entropy_sum):
        assert function(low, LABELS_BT).dtype == torch.float32
    torch.testing.assert_close(token_logps(low, LABELS_BT), token_logps(low.float(), LABELS_BT))


def test_gae_by_hand():
    # one response of three tokens, gamma 1/2, lambda 1/4
    # deltas: 1 + 4/2 - 2 = 1;  3 + 6/2 - 4 = 2;  5 - 6 = -1
    # A_2 = -1;  A_1 = 2 - 1/8 = 15/8;  A_0 = 1 + 15/64 = 79/64
    rewards, values = torch.tensor([[1.0, 3.0, 5.0]]), torch.tensor([[2.0, 4.0, 6.0]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.5, lam=0.25)
    assert advantages.tolist() == [[79 / 64, 15 / 8, -1.0]]
    assert returns.tolist() == [[2 + 79 / 64, 4 + 15 / 8, 5.0]]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 1.0), (0.97, 0.3), (1.0, 0.0), (0.0, 0.5)])
def test_gae_is_the_double_sum_of_its_definition(gamma, lam):
    """A_t = sum_l (gamma lambda)^l delta_{t+l}, response by response; prompt and padding hold garbage."""
    generator = torch.Generator().manual_seed(2)
    rewards, values = torch.randn(2, 4, 9, generator=generator, dtype=torch.float64)
    spans = [(0, 9), (2, 7), (3, 4), (5, 9)]
    mask = torch.zeros(4, 9, dtype=torch.bool)
    expected = torch.zeros(4, 9, dtype=torch.float64)
    for row, (start, stop) in enumerate(spans):
        mask[row, start:stop] = True
        for t in range(start, stop):
            for k in range(t, stop):
                following = values[row, k + 1] if k + 1 < stop else 0.0
                delta = rewards[row, k] + gamma * following - values[row, k]
                expected[row, t] += (gamma * lam) ** (k - t) * delta
    expected_returns = torch.where(mask, expected + values, torch.zeros(()).double())
    rewards[~mask], values[~mask] = NAN, INF
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, expected_returns)


def test_gae_with_lambda_one_returns_the_discounted_reward():
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    _, returns = gae(rewards, torch.tensor([[9.0, -3.0, 5.0]]), torch.ones(1, 3, dtype=torch.bool), gamma=0.5, lam=1.0)
    torch.testing.assert_close(returns, torch.tensor([[1 + 1 + 1.0, 2 + 2.0, 4.0]]))


@pytest.mark.parametrize("bad", [{"gamma": 1.1, "lam": 0.9}, {"gamma": 0.9, "lam": -0.1}])
def test_gae_refuses_discounts_outside_the_unit_interval(bad):
    with pytest.raises(ValueError, match="must lie in"):
        gae(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), **bad)


@pytest.mark.parametrize("logits", [1, 3 * 11, 10**6])  # less than a row; three rows of a block; all at once
def test_logps_by_blocks_are_those_of_whole_logits(monkeypatch, logits):
    monkeypatch.setitem(functional.LOGITS, "cpu", logits)
    torch.manual_seed(4)
    hidden, weight = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(11, 6, dtype=torch.float64)
    labels = torch.randint(11, (2, 5))
    labels[0, :2], labels[1, 4] = IGNORED, IGNORED
    scale = torch.randn(2, 5)
    found = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    widest = []

    def to_logits(rows):
        widest.append(len(rows))
        return rows @ found[1].T

    logps = functional.labelled_logps(found[0], labels, to_logits)
    (logps * scale).sum().backward()
    right = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    expected = (right[0] @ right[1].T).log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    expected = torch.where(labels == IGNORED, 0.0, expected)
    (expected * scale).sum().backward()
    torch.testing.assert_close(logps.double(), expected, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(found, right):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    assert max(widest) <= max(1, logits // 11)
