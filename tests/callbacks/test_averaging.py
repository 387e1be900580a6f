"""Averages of weights: their values by hand, what is validated and kept, and the same bits after an interruption."""

from functools import partial

import pytest
import torch
from watched import Watcher, conversations, same, sft

from athanor.callbacks.averaging import AveragedIterates, ExponentialAverage
from athanor.callbacks.stopping import EarlyStopping
from athanor.errors import UserError
from athanor.optimizers import schedule_free_adamw
from small import Given, fit


def test_the_average_by_hand_is_validated_and_kept():
    algorithm, watcher = sft(), Watcher()
    average = [p.detach().clone() for p in algorithm.model.parameters()]
    fit(
        algorithm, Given(conversations()), steps=6, batch=8, micro=4, validate_every=3,
        callbacks=[watcher, ExponentialAverage(decay=0.4)],
    )  # fmt: skip
    for step in range(1, 7):
        decay = {1: 2 / 11, 2: 3 / 12, 3: 4 / 13, 4: 5 / 14, 5: 0.4, 6: 0.4}[step]
        average = [decay * a + (1 - decay) * w for a, w in zip(average, watcher.after[step])]
        if step in (3, 6):
            for found, expected in zip(watcher.validated[step], average):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
            assert not same(watcher.validated[step], watcher.after[step])
    for found, expected in zip(algorithm.model.parameters(), average):
        torch.testing.assert_close(found.data, expected, rtol=1e-5, atol=1e-7)
    assert not any(p.requires_grad for p in algorithm.average.parameters())


def test_training_itself_does_not_notice_the_average():
    """The same weights after every step, validations in between, as without it."""
    plain, with_average = Watcher(), Watcher()
    data = Given(conversations())
    fit(sft(), data, steps=6, batch=8, validate_every=2, callbacks=[plain])
    algorithm = sft()
    callbacks = [with_average, ExponentialAverage(decay=0.9, save=False)]
    fit(algorithm, data, steps=6, batch=8, validate_every=2, callbacks=callbacks)
    assert all(same(plain.after[step], with_average.after[step]) for step in range(1, 7))
    assert same(algorithm.model.parameters(), plain.after[6]), "save=False keeps the last weights"


def test_validation_may_be_of_the_newest_weights():
    watcher = Watcher()
    callbacks = [watcher, ExponentialAverage(decay=0.9, validate=False)]
    fit(sft(), Given(conversations()), steps=4, batch=8, validate_every=2, callbacks=callbacks)
    assert same(watcher.validated[2], watcher.after[2])


KINDS = {
    "average": (lambda: sft(), lambda: [ExponentialAverage(decay=0.9)]),
    "schedule-free": (
        lambda: sft(partial(schedule_free_adamw, lr=0.05, weight_decay=0.1)),
        lambda: [AveragedIterates()],
    ),
    "stopping": (
        lambda: sft(),
        lambda: [EarlyStopping(patience=9), ExponentialAverage(decay=0.5), AveragedIterates()],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_training_ends_with_the_same_bits(kind, tmp_path):
    """Stopped right after a validation and in between; the weights, the averages and every logged number."""
    make, callbacks = KINDS[kind]
    settings = {"steps": 10, "batch": 8, "micro": 4, "validate_every": 3}
    train, held_out = conversations(1), conversations(2, 6)
    whole = make()
    expected = fit(whole, Given(train, held_out), callbacks=callbacks(), **settings)
    for stop in (3, 5):
        path = tmp_path / f"{stop}.ckpt"
        fit(make(), Given(train, held_out), callbacks=callbacks(), stop=stop, save=path, **settings)
        second = make()
        with torch.no_grad():
            for parameter in second.model.parameters():
                parameter.fill_(0.123)
        found = fit(second, Given(train, held_out), callbacks=callbacks(), resume=path, **settings)
        assert same(second.state_dict().values(), whole.state_dict().values())
        assert found.values("train/loss") == expected.values("train/loss")[stop:]
        later = [(step, value) for step, value in expected.history["validation/loss"] if step > stop]
        assert len(later) == 2
        assert found.history["validation/loss"][-2:] == later


def test_schedule_free_validates_and_keeps_the_average_and_trains_on():
    """What is validated and kept is eval mode's x, the mean of the walk; steps are taken in train mode."""
    pytest.importorskip("schedulefree")
    watcher, algorithm = Watcher(), sft(partial(schedule_free_adamw, lr=0.05, betas=(0.9, 0.99)))
    fit(algorithm, Given(conversations()), steps=4, batch=8, validate_every=2, callbacks=[watcher, AveragedIterates()])
    (made,) = [algorithm.optimizers().optimizer]
    assert not any(group["train_mode"] for group in made.param_groups)
    for place, parameter in enumerate(algorithm.model.parameters()):
        z = made.state[parameter]["z"]
        y = watcher.after[4][place]  # y = 0.1 z + 0.9 x
        torch.testing.assert_close(parameter.data, (y - 0.1 * z) / 0.9, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(watcher.validated[4][place], parameter.data, rtol=1e-5, atol=1e-6)
    assert not same(watcher.after[4], algorithm.model.parameters())


def test_two_averages_are_refused():
    algorithm = sft(partial(schedule_free_adamw, lr=0.05))
    with pytest.raises(UserError, match=r"averages the weights itself; leave callbacks\.average out"):
        fit(algorithm, Given(conversations()), steps=2, batch=8, callbacks=[ExponentialAverage(), AveragedIterates()])


def test_small_number_types_are_refused():
    algorithm = sft()
    algorithm.model.to(torch.bfloat16)
    with pytest.raises(UserError, match="needs weights in float32"):
        fit(algorithm, Given(conversations()), steps=2, batch=8, callbacks=[ExponentialAverage()])
    with pytest.raises(UserError, match=r"callbacks\.average\.decay=1\.5 must lie between 0 and 1"):
        ExponentialAverage(decay=1.5)
