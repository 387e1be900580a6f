"""Muon and AdamW in one: each weight moves as by its own optimizer alone, with schedules and checkpoints as usual."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon
from torch.optim.lr_scheduler import LambdaLR

from athanor.algorithms.base import Algorithm
from athanor.algorithms.reward import RewardModeling
from athanor.algorithms.sft import SFT
from athanor.models.heads import ScalarModel
from athanor.optimizers import MuonWithAdamW
from athanor.schedules import linear
from small import decoder

SETTINGS = {"lr": 1e-3, "matrix_lr": 0.02, "weight_decay": 0.1, "betas": (0.8, 0.9), "momentum": 0.9}


def groups_of(algorithm: Algorithm) -> list[dict]:
    """What an algorithm gives its optimizer, out of a trainer."""
    seen: list[dict] = []
    algorithm.make_optimizer = lambda groups: seen.extend(groups) or torch.optim.SGD(algorithm.parameters(), lr=1)
    algorithm.make_schedule = lambda max_steps: lambda step: 1.0
    trainer = SimpleNamespace(max_steps=9)
    algorithm.trainer = trainer
    algorithm.configure_optimizers()
    return seen


def make(model: nn.Module) -> tuple[MuonWithAdamW, dict[str, nn.Parameter]]:
    kind = RewardModeling if isinstance(model, ScalarModel) else SFT
    return MuonWithAdamW(groups_of(kind(model, None, None)), **SETTINGS), dict(model.named_parameters())


def step(optimizer, parameters, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("kind", ["tied", "untied", "reward"])
def test_each_weight_moves_as_by_its_own_optimizer(kind):
    model = decoder(40, tie_embeddings=kind != "untied")
    model = ScalarModel(model) if kind == "reward" else model
    alone = copy.deepcopy(model)
    optimizer, mine = make(model)
    theirs = dict(alone.named_parameters())
    hidden = [p for name, p in theirs.items() if p.ndim == 2 and "blocks" in name]
    heads = [p for name, p in theirs.items() if name in ("output.weight", "head.weight")]
    rest = [p for p in theirs.values() if all(p is not q for q in hidden + heads)]
    assert len(hidden) == 8
    assert len(heads) == (kind != "tied")
    parts = [
        Muon(hidden, lr=0.02, weight_decay=0.1, momentum=0.9),
        AdamW(
            [{"params": heads, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=1e-3, betas=(0.8, 0.9)
        ),
    ]
    for seed in range(3):
        step(optimizer, mine, seed)
        step(parts[0], theirs, seed)
        parts[1].step()
    for name, parameter in mine.items():
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_schedule_scales_both_rates():
    optimizer, parameters = make(decoder(40))
    schedule = LambdaLR(optimizer, linear(4))
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [1e-3, 0.02]
    for factor in (1.0, 2 / 3, 1 / 3):
        assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx(
            [1e-3 * factor, 0.02 * factor]
        )
        step(optimizer, parameters, 0)
        schedule.step()
    before = {name: p.clone() for name, p in parameters.items()}
    step(optimizer, parameters, 1)  # at a rate of zero
    assert all(torch.equal(p, before[name]) for name, p in parameters.items())


def test_its_state_goes_on_with_the_same_bits():
    optimizer, parameters = make(decoder(40))
    for seed in range(3):
        step(optimizer, parameters, seed)
    state = copy.deepcopy(optimizer.state_dict())
    other, twins = make(decoder(40))
    for name, twin in twins.items():
        twin.data.copy_(parameters[name].data)
    other.load_state_dict(state)
    for seed in range(3, 6):
        step(optimizer, parameters, seed)
        step(other, twins, seed)
    assert all(torch.equal(twin, parameters[name]) for name, twin in twins.items())


def test_it_is_a_partial_in_a_config():
    made = partial(MuonWithAdamW, **SETTINGS)([{"params": [nn.Parameter(torch.zeros(3, 40))]}])
    assert [group["lr"] for group in made.param_groups] == [1e-3], "too thin for Muon"
