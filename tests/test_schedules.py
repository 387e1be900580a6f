"""Every schedule at every step, by hand, and as the trainer drives it through LambdaLR."""

import math
from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from athanor.schedules import bind, constant, cosine, inverse_sqrt, linear, wsd


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


def test_wsd():
    # 2 of warm-up, stable, and the last 4 of 10 steps down to a tenth
    settings = {"warmup_steps": 2, "decay_fraction": 0.4, "final_fraction": 0.1}
    stable = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    found = factors(wsd(10, **settings, decay="linear"), 10)
    assert found == pytest.approx([*stable, 0.775, 0.55, 0.325, 0.1])
    found = factors(wsd(10, **settings, decay="1-sqrt"), 10)
    roots = [1 - 0.9 * 0.5, 1 - 0.9 * math.sqrt(0.5), 1 - 0.9 * math.sqrt(0.75), 0.1]
    assert found == pytest.approx([*stable, *roots])


def test_the_stable_part_of_wsd_does_not_depend_on_the_end():
    """A run of 100 steps may go on to 200 as if it had been meant to: until the decay both have the same rates."""
    short, long = wsd(100, warmup_steps=7, decay_fraction=0.25), wsd(200, warmup_steps=7, decay_fraction=0.25)
    assert factors(short, 75) == factors(long, 75)
    assert short(75) < 1 == long(75)


def test_inverse_sqrt():
    found = factors(inverse_sqrt(9, warmup_steps=4), 9)
    assert found == pytest.approx([0.25, 0.5, 0.75, 1.0, *(math.sqrt(4 / n) for n in range(5, 10))])
    assert inverse_sqrt(9, warmup_steps=1)(15) == 0.25


@pytest.mark.parametrize("schedule", [cosine, linear, constant, wsd, inverse_sqrt])
def test_a_warm_up_in_tokens_is_rounded_up_to_steps(schedule):
    by_steps = factors(schedule(20, warmup_steps=3), 20)
    for tokens in (2001, 3000):
        assert factors(schedule(20, warmup_tokens=tokens, tokens_per_step=1000), 20) == by_steps
    assert factors(schedule(20, warmup_tokens=3001, tokens_per_step=1000), 20) != by_steps


def test_the_trainer_supplies_the_tokens_of_a_step_only_where_they_are_wanted():
    def unknown():
        raise AssertionError("no one wants to know")

    assert factors(bind(partial(linear, warmup_steps=2), 4, unknown), 4) == factors(linear(4, warmup_steps=2), 4)
    assert bind(lambda max_steps: lambda step: max_steps, 4, unknown)(0) == 4, "a schedule of one's own"
    found = bind(partial(linear, warmup_tokens=100), 4, lambda: 50)
    assert factors(found, 4) == factors(linear(4, warmup_steps=2), 4)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: cosine(9, warmup_steps=-1), "schedule.warmup_steps=-1 must be at least 0"),
        (lambda: cosine(9, warmup_tokens=-1), "schedule.warmup_tokens=-1 must be at least 0"),
        (lambda: linear(9, warmup_steps=2, warmup_tokens=5), "both tell the warm-up"),
        (lambda: bind(partial(constant, warmup_tokens=5), 9, lambda: None), "needs samples of one length"),
        (lambda: cosine(9, final_fraction=1.5), "schedule.final_fraction=1.5 must lie between 0 and 1"),
        (lambda: wsd(9, decay_fraction=-0.1), "schedule.decay_fraction=-0.1 must lie between 0 and 1"),
        (lambda: wsd(10, warmup_steps=9), "a decay of 2 do not fit into max_steps=10"),
        (lambda: wsd(10, decay="cosine"), "schedule.decay=cosine must be linear or 1-sqrt"),
        (lambda: inverse_sqrt(9), "set schedule.warmup_steps >= 1"),
    ],
)
def test_a_wrong_schedule_is_one_sentence(make, said, refused):
    assert said in refused(make)


@pytest.mark.parametrize("schedule", [cosine, linear, constant, partial(wsd, decay_fraction=0)])
@pytest.mark.parametrize(("max_steps", "warmup_steps"), [(1, 0), (1, 1), (2, 1), (3, 3)])
def test_short_runs_stay_in_the_unit_interval(schedule, max_steps, warmup_steps):
    assert all(0 <= factor <= 1 for factor in factors(schedule(max_steps, warmup_steps=warmup_steps), max_steps + 2))


@pytest.mark.parametrize("schedule", [cosine, linear, wsd])
def test_past_the_last_step_the_final_fraction_holds(schedule):
    factor = schedule(10, warmup_steps=2, final_fraction=0.25)
    assert factor(9) == factor(10) == factor(1000) == pytest.approx(0.25)


def test_a_warm_up_longer_than_the_run_is_cut_off():
    for schedule in (cosine, linear, constant, inverse_sqrt):
        assert factors(schedule(4, warmup_steps=9), 4) == pytest.approx([n / 9 for n in range(1, 5)])


def test_step_s_of_the_optimizer_uses_factor_s():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=2.0)
    scheduler, used = LambdaLR(optimizer, linear(4, warmup_steps=1)), []
    for _ in range(4):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert used == pytest.approx([2.0, 2.0, 1.0, 0.0])
