"""Products in 8-bit floats, emulated: which layers, how far from bfloat16, and that a model learns by them."""

import sys

import pytest
import torch
from torch import nn

from athanor.errors import UserError
from athanor.float8 import beyond, use_float8
from small import decoder

VOCABULARY, CPU = 31, torch.device("cpu")
TOKENS = torch.randint(VOCABULARY, (4, 32), generator=torch.Generator().manual_seed(1))


def model(**shape):
    torch.manual_seed(7)
    return decoder(VOCABULARY, **({"width": 32, "hidden": 64} | shape)).train()


def loss_of(made):
    with torch.autocast("cpu", torch.bfloat16):
        hidden = made.hidden_states(TOKENS[:, :-1])
        return made.cross_entropy(hidden, TOKENS[:, 1:])[0] / TOKENS[:, 1:].numel()


def test_the_parameters_stay_and_the_numbers_are_near_those_of_bfloat16():
    plain, made = model(), model()
    linear = sum(isinstance(layer, nn.Linear) for block in made.blocks for layer in block.modules())
    assert use_float8(made, CPU) == linear
    assert list(made.state_dict()) == list(plain.state_dict())
    losses = [loss_of(each) for each in (plain, made)]
    assert losses[0].item() != losses[1].item()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=0.01)
    for loss in losses:
        loss.backward()
    for (name, right), found in zip(plain.named_parameters(), made.parameters()):
        assert found.grad.dtype == torch.float32
        error = (found.grad - right.grad).norm() / right.grad.norm()
        assert error < 0.15, (name, error)


def test_it_learns_what_bfloat16_learns():
    ends = []
    for made in (model(), model()):
        if ends:
            use_float8(made, CPU)
        optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3)
        for _ in range(60):
            loss = loss_of(made)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(loss.item())
    assert ends[0] < 1.5, "from 3.4"
    assert ends[1] == pytest.approx(ends[0], rel=0.2)


def test_layers_of_other_sizes_are_left_alone():
    made = model(hidden=40)
    count = use_float8(made, CPU)
    untouched = {name for name, layer in made.blocks[0].named_modules() if type(layer) is nn.Linear}
    assert untouched == {"feedforward.out"}  # from 40; gate and up together are 80
    assert count == 3 * len(made.blocks)


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(UserError, match="multiples of 16, or precision=bf16-mixed"):
        use_float8(model(width=24, heads=2, kv_heads=1, hidden=40), CPU)


def test_without_torchao_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(UserError, match=r"pip install 'athanor\[fp8\]'"):
        use_float8(model(), CPU)


def test_what_else_is_computed_in_bfloat16():
    assert [beyond(name) for name in ("fp8-mixed", "32-true")] == ["bf16-mixed", "32-true"]
