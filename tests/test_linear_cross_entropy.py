"""The loss without logits: values and gradients against autograd through whole logits, and what it refuses."""

import shutil

import pytest
import torch
import torch.nn.functional as F

from athanor import linear_cross_entropy as module
from athanor.batches import IGNORED
from athanor.linear_cross_entropy import linear_cross_entropy

N, D, V = 37, 8, 19


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(N, D, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=dtype).requires_grad_()
    labels = torch.randint(V, (N,), generator=generator)
    labels[[0, 5, 36]] = IGNORED
    return hidden, weight, labels


def whole(hidden, weight, labels, *, label_smoothing=0.0, z_loss=0.0, softcap=None):
    """The formula, a term after another."""
    logits = F.linear(hidden, weight)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logps, kept = logits.log_softmax(-1), labels != IGNORED
    right = logps[kept, labels[kept]]
    loss = -(1 - label_smoothing) * right - label_smoothing * logps[kept].mean(-1)
    return (loss + z_loss * logits[kept].logsumexp(-1).square()).sum(), -right.sum()


@pytest.mark.parametrize("block", [V, 5 * V, 10**6])
@pytest.mark.parametrize(
    "settings",
    [{}, {"label_smoothing": 0.2}, {"z_loss": 0.01}, {"softcap": 3.0},
     {"label_smoothing": 0.1, "z_loss": 0.02, "softcap": 2.0}],
    ids=str,
)  # fmt: skip
def test_value_and_gradients_are_those_of_whole_logits(monkeypatch, block, settings):
    monkeypatch.setitem(module.LOGITS, "cpu", block)
    expected = inputs()
    loss, nll = whole(*expected, **settings)
    (0.25 * loss).backward()
    found = inputs()
    mine, likelihood = linear_cross_entropy(*found, **settings)
    (0.25 * mine).backward()
    assert mine.item() == pytest.approx(loss.item(), rel=1e-5)  # the sums are float32
    assert likelihood.item() == pytest.approx(nll.item(), rel=1e-5)
    for theirs, ours in zip(expected[:2], found[:2]):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    assert not found[0].grad[[0, 5, 36]].any()


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs g++")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.1, "z_loss": 0.02, "softcap": 2.0}], ids=str)
def test_compiled_it_is_the_same(monkeypatch, settings, dtype):
    monkeypatch.setitem(module.LOGITS, "cpu", 5 * V)  # 37 rows: the last block is smaller
    eager, compiled = inputs(dtype), inputs(dtype)
    expected = linear_cross_entropy(*eager, **settings)
    expected[0].backward()
    found = linear_cross_entropy(*compiled, **settings, compiled=True)
    found[0].backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for theirs, ours in zip(eager[:2], compiled[:2]):
        within = 1e-5 if dtype == torch.float32 else 0.01
        assert (ours.grad - theirs.grad).norm() <= within * theirs.grad.norm()


def test_by_hand():
    """Two classes, logits (1, 0) and label 1: -log p = log(1 + e); the gradient of the logits is (p0, -p0)."""
    hidden = torch.tensor([[1.0, 0.0]], requires_grad=True)
    weight = torch.eye(2, requires_grad=True)
    loss, nll = linear_cross_entropy(hidden, weight, torch.tensor([1]))
    loss.backward()
    assert loss.item() == nll.item() == pytest.approx(1.3132617)
    assert hidden.grad[0].tolist() == pytest.approx([0.7310586, -0.7310586])
    assert weight.grad.tolist() == [pytest.approx([0.7310586, 0.0]), pytest.approx([-0.7310586, 0.0])]


def test_under_autocast_it_is_as_near_as_autocast_is():
    exact, rounded = inputs(torch.float32), inputs(torch.float32)
    whole(*exact)[0].backward()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = linear_cross_entropy(*rounded)
    loss.backward()
    assert loss.dtype == rounded[1].grad.dtype == torch.float32
    for theirs, ours in zip(exact[:2], rounded[:2]):
        assert (ours.grad - theirs.grad).norm() < 0.01 * theirs.grad.norm()


def test_an_infinity_in_a_row_without_a_label_stays_there():
    hidden, weight, labels = inputs()
    with torch.no_grad():
        hidden[5] = torch.inf
    loss, _ = linear_cross_entropy(hidden, weight, labels)
    loss.backward()
    assert loss.isfinite()
    assert weight.grad.isfinite().all()


def test_nothing_labelled():
    hidden, weight, labels = inputs()
    loss, nll = linear_cross_entropy(hidden, weight, torch.full_like(labels, IGNORED), z_loss=0.1)
    loss.backward()
    assert loss.item() == nll.item() == 0
    assert not weight.grad.any()


def test_without_gradients_none_are_made(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "mm", lambda *a, **k: calls.append(a))
    with torch.no_grad():
        loss, nll = linear_cross_entropy(*inputs())
    assert loss.item() == nll.item()
    assert not calls


def test_what_it_refuses():
    hidden, weight, labels = inputs()
    loss, _ = linear_cross_entropy(hidden, weight, labels)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once only"):
        loss.backward()
    for bad in ({"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"z_loss": -1.0}):
        with pytest.raises(ValueError, match=r"label_smoothing=.* z_loss="):
            linear_cross_entropy(hidden, weight, labels, **bad)
