"""Every schedule at every step, by hand, and as the trainer drives it through LambdaLR."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from athanor.schedules import constant, cosine, linear


def factors(schedule, steps):
    return [schedule(step) for step in range(steps)]


def test_constant():
    assert factors(constant(5), 5) == [1.0] * 5
    assert factors(constant(5, warmup_steps=4), 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear():
    assert factors(linear(5), 5) == [1.0, 0.75, 0.5, 0.25, 0.0]
    # two steps of warm-up, the peak, then down to a fifth at the last step
    found = factors(linear(7, warmup_steps=2, final_fraction=0.2), 7)
    assert found == pytest.approx([0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine():
    found = factors(cosine(5, final_fraction=0.0), 5)
    assert found == pytest.approx([1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0.0])
    found = factors(cosine(7, warmup_steps=4, final_fraction=0.1), 7)
    assert found == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.1 + 0.9 / 2, 0.1])


@pytest.mark.parametrize("schedule", [cosine, linear, constant])
@pytest.mark.parametrize(("max_steps", "warmup_steps"), [(1, 0), (1, 1), (2, 1), (3, 3), (4, 9)])
def test_short_runs_stay_in_the_unit_interval(schedule, max_steps, warmup_steps):
    assert all(0 <= factor <= 1 for factor in factors(schedule(max_steps, warmup_steps=warmup_steps), max_steps + 2))


@pytest.mark.parametrize("schedule", [cosine, linear])
def test_past_the_last_step_the_final_fraction_holds(schedule):
    factor = schedule(10, warmup_steps=2, final_fraction=0.25)
    assert factor(9) == factor(10) == factor(1000) == pytest.approx(0.25)


def test_step_s_of_the_optimizer_uses_factor_s():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=2.0)
    scheduler, used = LambdaLR(optimizer, linear(4, warmup_steps=1)), []
    for _ in range(4):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert used == pytest.approx([2.0, 2.0, 1.0, 0.0])
