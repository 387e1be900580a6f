"""Lion, LAMB, Adafactor and schedule-free: steps by hand, against independent implementations, skipped steps, state."""

import copy
import math
import sys
from functools import partial

import pytest
import torch
from torch import nn

from athanor.models.initialisation import MuP
from athanor.models.moe import MixtureOfExperts
from athanor.optimizers import LAMB, Adafactor, Lion, MuonWithAdamW, schedule_free_adamw
from athanor.optimizers.common import can_skip
from athanor.optimizers.muon import StackedMuon, orthogonalised
from small import decoder

MAKE = {
    "lion": partial(Lion, lr=1e-2, weight_decay=0.1),
    "lamb": partial(LAMB, lr=1e-2, weight_decay=0.1),
    "muon": partial(MuonWithAdamW, lr=1e-2, matrix_lr=0.02, weight_decay=0.1),
    "adamw": partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1, fused=True),
}


def weights(seed=0) -> list[nn.Parameter]:
    """A matrix, a stack of experts' matrices, and a vector."""
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((20, 17), (3, 18, 24), (5,))]


def slopes(parameters, seed) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def one(values, grads) -> nn.Parameter:
    parameter = nn.Parameter(torch.tensor(values, dtype=torch.float64))
    parameter.grad = torch.tensor(grads, dtype=torch.float64)
    return parameter


# By hand


def test_lion_by_hand():
    """Two steps; in the second the momentum 0.01 * 4 = 0.04 outweighs the new gradient -0.3: 0.9 * 0.04 > 0.1 * 0.3."""
    weight = one([2.0, -1.0], [4.0, -0.5])
    optimizer = Lion([weight], lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert weight.tolist() == pytest.approx([2.0 * 0.95 - 0.1, -1.0 * 0.95 + 0.1])
    weight.grad = torch.tensor([-0.3, 0.0], dtype=torch.float64)
    optimizer.step()
    assert weight.tolist() == pytest.approx([1.8 * 0.95 - 0.1, -0.85 * 0.95 + 0.1])
    momentum = optimizer.state[weight]["momentum"].tolist()
    assert momentum == pytest.approx([0.99 * 0.04 - 0.01 * 0.3, -0.005 * 0.99])


def test_lamb_by_hand():
    """|w| = 5; the first direction of Adam is the sign, 1 and -1, to which 0.1 w is added."""
    weight, vector = one([[3.0, 4.0]], [[2.0, -0.7]]), one([3.0, 4.0], [2.0, -0.7])
    for settings, length in (({}, 5.0), ({"largest_norm": 2.0}, 2.0)):
        mine, alone = copy.deepcopy(weight), copy.deepcopy(vector)
        mine.grad, alone.grad = weight.grad.clone(), vector.grad.clone()
        LAMB([mine, alone], lr=0.5, eps=1e-12, weight_decay=0.1, **settings).step()
        update = [1 + 0.3, -1 + 0.4]
        factor = 0.5 * length / math.hypot(*update)
        assert mine[0].tolist() == pytest.approx([3 - factor * 1.3, 4 + factor * 0.6])
        assert alone.tolist() == pytest.approx([3 - 0.5 * 1.3, 4 + 0.5 * 0.6]), "a vector moves as under Adam"


def test_lamb_moves_what_is_zero():
    weight = one([[0.0, 0.0]], [[2.0, -3.0]])
    LAMB([weight], lr=0.5, eps=1e-12).step()
    assert weight[0].tolist() == pytest.approx([-0.5, 0.5])


def test_lamb_second_step_corrects_the_bias():
    """A vector, so that no factor hides it: m / (1 - 0.9^2) = (0.09 - 0.1) / 0.19, and v / (1 - 0.999^2) = 1."""
    weight = one([0.0], [1.0])
    optimizer = LAMB([weight], lr=1.0, eps=1e-12)
    optimizer.step()
    weight.grad = torch.tensor([-1.0], dtype=torch.float64)
    optimizer.step()
    assert weight.tolist() == pytest.approx([-1 - (0.09 - 0.1) / 0.19])


def test_adafactor_by_hand():
    """First step of a vector: the direction is the sign; it moves by min(lr, 1) times its root mean square."""
    weight = one([3.0, 4.0], [2.0, -0.7])
    Adafactor([weight], lr=0.1, weight_decay=0.2).step()
    size = math.sqrt(12.5)
    assert weight.tolist() == pytest.approx([3 * (1 - 0.1 * 0.2) - 0.1 * size, 4 * (1 - 0.1 * 0.2) + 0.1 * size])


# Against independent implementations


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lion_and_lamb_as_in_pytorch_optimizer(decay):
    peers = pytest.importorskip("pytorch_optimizer")
    pairs = [
        (partial(Lion, betas=(0.9, 0.97)), partial(peers.Lion, betas=(0.9, 0.97), weight_decouple=True)),
        (
            # its own LAMB neither corrects the bias nor spares vectors: so long steps, on matrices
            partial(LAMB, betas=(0.0, 0.0), eps=1e-12),
            partial(peers.Lamb, betas=(0.0, 0.0), eps=1e-12, weight_decouple=False, max_grad_norm=0.0),
        ),
    ]
    for mine, theirs in pairs:
        a, b = weights()[:1], weights()[:1]
        first, second = mine(a, lr=0.01, weight_decay=decay), theirs(b, lr=0.01, weight_decay=decay)
        for seed in range(5):
            slopes(a, seed)
            slopes(b, seed)
            first.step()
            second.step()
        torch.testing.assert_close(a[0], b[0], rtol=1e-5, atol=1e-6)


def test_lamb_without_the_factor_is_adamw_with_its_decay_inside():
    """Vectors: Adam's step and lr * weight_decay * w, all at once from the old weight, as AdamW's."""
    a, b = weights()[2:], weights()[2:]
    first = LAMB(a, lr=0.01, betas=(0.8, 0.9), eps=1e-8, weight_decay=0.3)
    second = torch.optim.AdamW(b, lr=0.01, betas=(0.8, 0.9), eps=1e-8, weight_decay=0.3)
    for seed in range(6):
        slopes(a, seed)
        slopes(b, seed)
        first.step()
        second.step()
    torch.testing.assert_close(a[0], b[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(4, 24, 40), (4, 40, 24), (2, 32, 32)])
def test_muon_orthogonalises_each_expert_by_itself(shape):
    """As torch's Muon does each matrix of the stack; bfloat16 rounds by a batched product's own order of sums."""
    generator = torch.Generator().manual_seed(0)
    stack = nn.Parameter(torch.randn(shape, generator=generator))
    alone = [nn.Parameter(matrix.clone()) for matrix in stack.data]
    settings = {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.9}
    mine, theirs = StackedMuon([{"params": [stack]}], **settings), torch.optim.Muon(alone, **settings)
    for seed in range(3):
        slopes([stack], seed)
        stack.grad[1] *= 1e-4  # a gradient's length does not count
        for parameter, grad in zip(alone, stack.grad):
            parameter.grad = grad.clone()
        mine.step()
        theirs.step()
    torch.testing.assert_close(stack.data, torch.stack([p.data for p in alone]), rtol=0, atol=4e-3)
    values = torch.linalg.svdvals(orthogonalised(stack.grad).float())
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_an_expert_without_tokens_stays_where_it_is():
    x = torch.randn(3, 16, 20)
    x[1] = 0
    made = orthogonalised(x)
    assert not made[1].any()
    assert torch.equal(made[0], orthogonalised(x[:1])[0]), "and does not disturb the others"


def test_muon_takes_the_experts_of_a_model_and_leaves_thin_ones():
    model = decoder(40, width=32, feedforward=MixtureOfExperts(4, 2, hidden=24))
    stacks = [p for p in model.parameters() if p.ndim == 3]
    assert len(stacks) == 4
    optimizer = MuonWithAdamW([{"params": stacks}], lr=1e-3, matrix_lr=0.02)
    assert [type(part) for part in optimizer.parts] == [StackedMuon]
    thin = MuonWithAdamW([{"params": stacks}], lr=1e-3, matrix_lr=0.02, smallest_side=33)
    assert [type(part) for part in thin.parts] == [torch.optim.AdamW]


def test_schedule_free_is_the_mean_of_its_iterates():
    """At a constant rate z is the walk by the gradients over the root of their second moments, and x, which `eval` puts
    in the weights' place, the mean of its points.
    """
    pytest.importorskip("schedulefree")
    weight = one([1.0, -2.0], [0.0, 0.0])
    mine = schedule_free_adamw([weight], lr=0.1, betas=(0.5, 0.9))
    mine.train()
    z, square, points = weight.data.clone(), torch.zeros(2, dtype=torch.float64), []
    for step, grad in enumerate(([1.0, 2.0], [0.5, -1.0], [-2.0, 0.3])):
        weight.grad = torch.tensor(grad, dtype=torch.float64)
        square = 0.9 * square + 0.1 * weight.grad**2
        z = z - 0.1 * weight.grad / ((square / (1 - 0.9 ** (step + 1))).sqrt() + 1e-8)
        points.append(z)
        mine.step()
    mine.eval()
    torch.testing.assert_close(weight.data, torch.stack(points).mean(0))


def test_schedule_free_without_its_package_names_the_extra(monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    assert refused(schedule_free_adamw, weights(), lr=0.1).endswith("pip install 'athanor[schedulefree]'.")


# Steps left out


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("first", [True, False])
def test_a_step_left_out_leaves_no_trace(name, first):
    """found_inf = 1: weights and state stay, whatever the gradients; what follows is as if it had not been."""
    mine, twins = weights(), weights()
    optimizer, other = MAKE[name]([{"params": mine}]), MAKE[name]([{"params": twins}])
    assert can_skip(optimizer)
    for seed in range(4):
        if seed == (0 if first else 2):
            for parameter in mine:
                parameter.grad = torch.full_like(parameter, math.nan)
            optimizer.found_inf = torch.ones(())
            optimizer.step()
        for parameters, each in ((mine, optimizer), (twins, other)):
            slopes(parameters, seed)
            each.found_inf = torch.zeros(()) if each is optimizer else None
            each.step()
    assert all(torch.equal(a, b) for a, b in zip(mine, twins))
    assert not torch.equal(mine[0], weights()[0])


def test_which_optimizers_can_leave_a_step_out():
    assert not can_skip(torch.optim.AdamW(weights(), lr=0.1))
    assert not can_skip(Adafactor(weights(), lr=0.1))


# State and refusals


@pytest.mark.parametrize("name", MAKE)
def test_state_goes_on_with_the_same_bits(name):
    mine, twins = weights(), weights()
    optimizer, other = MAKE[name]([{"params": mine}]), MAKE[name]([{"params": twins}])
    for seed in range(3):
        slopes(mine, seed)
        optimizer.step()
    for twin, parameter in zip(twins, mine):
        twin.data.copy_(parameter.data)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(3, 5):
        for parameters, each in ((mine, optimizer), (twins, other)):
            slopes(parameters, seed)
            each.step()
    assert all(torch.equal(a, b) for a, b in zip(mine, twins))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (partial(Lion, lr=-1.0), "optimizer.lr=-1.0 must be at least 0"),
        (partial(Lion, lr=1.0, betas=(0.9, 1.0)), r"optimizer.betas=\[0.9, 1.0\] must lie in \[0, 1\)"),
        (partial(LAMB, lr=1.0, eps=0.0), "optimizer.eps=0.0 must be positive"),
        (partial(LAMB, lr=1.0, largest_norm=0.0), "optimizer.largest_norm=0.0 must be positive"),
        (partial(LAMB, lr=1.0, weight_decay=-1.0), "optimizer.weight_decay=-1.0 must be at least 0"),
        (partial(MuonWithAdamW, lr=1.0, matrix_lr=-0.1), "optimizer.matrix_lr=-0.1 must be at least 0"),
        (partial(MuonWithAdamW, lr=1.0, matrix_lr=0.1, momentum=1.0), "optimizer.momentum=1.0 must lie in"),
    ],
)
def test_a_wrong_setting_is_named(make, said):
    with pytest.raises(ValueError, match=said):
        make([{"params": weights()}])


@pytest.mark.parametrize("make", [LAMB, Adafactor])
def test_relative_steps_refuse_the_rates_of_mup(make):
    model = decoder(40, width=64, initialisation=MuP(base_width=16))
    groups = [{"params": list(model.parameters()), "width_factor": 0.25}]
    with pytest.raises(ValueError, match="for which muP's learning rates are not made"):
        make(groups, lr=0.1)
