"""The share of the time that a training waits for its data."""

import time

import numpy as np
import pytest
from lightning import Callback

from athanor.algorithms.sft import SFT
from athanor.callbacks.throughput import Throughput
from athanor.data.instructions import Conversations
from athanor.data.records import Sequences
from athanor.progress import Progress
from small import Given, decoder, fit, optimizer, steady

VOCABULARY = 29


class Slow(Conversations):
    """Rows that take their time."""

    seconds = 0.0

    def batch(self, *arguments):
        time.sleep(self.seconds)
        return super().batch(*arguments)


class Saving(Callback):
    """Work at the end of a step, which is no waiting for data."""

    def on_train_batch_end(self, *_) -> None:
        time.sleep(0.05)


@pytest.mark.parametrize(("seconds", "low", "high"), [(0.2, 0.5, 1.0), (0.0, 0.0, 0.3)])
def test_the_wait_for_data_is_that_of_the_loader(monkeypatch, seconds, low, high):
    monkeypatch.setattr(Slow, "seconds", seconds)
    rng = np.random.default_rng(1)
    rows = Sequences([(rng.integers(1, VOCABULARY, 12).astype(np.int32), np.arange(12) > 5) for _ in range(20)])
    algorithm = SFT(decoder(VOCABULARY), optimizer(1e-3), steady())
    metrics = fit(
        algorithm, Given(Slow(rows, 0)), steps=6, batch=4, callbacks=[Throughput(Progress(quiet=True)), Saving()]
    )
    waits = metrics.values("train/data_wait")[1:]  # the first step warms up
    assert len(waits) == 5
    assert low <= np.median(waits) <= high
