"""What is held, counted storage by storage, against sums by hand."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from athanor.planning.live import ACTIVATIONS, COPIES, GRADIENTS, INPUTS, WEIGHTS, WORKING, Live

MIB = 2**20


def whole(category, phase):
    return 1.0


@pytest.fixture
def live():
    with FakeTensorMode(), Live(whole) as found:
        yield found


def square():
    return torch.empty(512, 512)  # 1 MiB


def test_storages_are_counted_once_from_birth_to_death(live):
    x = square()
    view, same = x.view(-1)[7:], x.add_(1)
    assert live.held == MIB
    y = x + 1
    del x, view, same
    assert live.held == MIB
    z = y.t().contiguous()
    assert live.peaks["build"].held == live.held == 2 * MIB
    del y, z
    assert live.held == 0
    assert live.peaks["build"].held == 2 * MIB


def test_a_small_tensor_takes_a_block(live):
    one = torch.empty(1)
    assert live.held == 512 * one.ndim


def test_what_a_product_saves_is_what_its_backward_pass_needs(live):
    weight, x = torch.nn.Parameter(square()), square()
    weight.register_post_accumulate_grad_hook(lambda p: live.set([p.grad], GRADIENTS))
    live.enter_phase("forward", ACTIVATIONS)
    hidden = torch.relu(x @ weight)  # relu saves its result; the product saves x, which is there anyhow
    loss = hidden.sum()
    del hidden
    assert live.parts[ACTIVATIONS] == MIB + 512
    live.enter_phase("backward", WORKING)
    loss.backward()
    # at most: weight, x, relu's result, its gradient (made from an expanded number), the weight's gradient
    assert live.parts[GRADIENTS] == MIB
    del loss
    assert live.parts[ACTIVATIONS] == 0
    assert live.parts[WORKING] == 0
    assert live.held == 3 * MIB
    assert 4 * MIB <= live.peaks["backward"].held <= 5 * MIB + 2048


def test_autocast_keeps_a_low_precision_copy_of_a_weight(live):
    weight, x = torch.nn.Parameter(square()), square().requires_grad_()
    live.set([x], INPUTS)
    live.enter_phase("forward", ACTIVATIONS)
    with torch.autocast("cpu", torch.bfloat16):
        y = x @ weight
    assert live.parts[COPIES] == MIB / 2
    assert live.parts[ACTIVATIONS] == MIB  # the copy of x and the product
    del y
    assert live.parts[COPIES] == 0


def test_shares_and_phases():
    def share(category, phase):
        return 0.25 if category == WEIGHTS else 0.5 if (category, phase) == (WORKING, "optimizer") else 1.0

    with FakeTensorMode(), Live(share) as live:
        weight = square()
        assert live.held == MIB / 4
        live.enter_phase("optimizer", WORKING)
        temporary = square()
        assert live.held == 0.75 * MIB
        live.enter_phase("backward", WORKING)
        assert live.held == 1.25 * MIB
        live.set([temporary], WEIGHTS)
        assert live.held == 0.5 * MIB
        assert live.peaks["optimizer"].parts == {WEIGHTS: MIB, WORKING: MIB}
        assert weight.shape == temporary.shape


def test_what_depends_on_values_is_assumed():
    with FakeTensorMode(), Live(whole, labelled=0.25, last=9):
        mask, x = torch.empty(4, 10) > 0, torch.empty(4, 10, 3)
        assert x[mask].shape == (10, 3)
        assert mask.nonzero().shape == (10, 2)
        assert x[..., 0].masked_select(mask).shape == (10,)
        assert int(mask.nonzero().max()) == 9
        assert torch.bincount(mask.long().flatten(), minlength=6).shape == (6,)
        assert x[:, torch.tensor([1, 2])].shape == (4, 2, 3)
