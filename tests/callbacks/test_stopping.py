"""Early stopping: when, with which weights and metrics, and the same after an interruption."""

import pytest
import torch
from watched import Watcher, conversations, same, sft

from athanor.callbacks.averaging import ExponentialAverage
from athanor.callbacks.checkpoints import Checkpoints, newest
from athanor.callbacks.stopping import EarlyStopping
from athanor.errors import UserError
from small import Given, fit, optimizer

SETTINGS = {"steps": 60, "batch": 8, "validate_every": 2}
HEART = {"make": optimizer(0.01), "dropout": 0.0}


def data():
    """Learnt by heart, nothing of which holds for the validation."""
    return Given(conversations(1, 8), conversations(2, 16))


def test_it_ends_when_validation_no_longer_falls_and_keeps_the_best(caplog):
    algorithm, watcher, stopping = sft(**HEART), Watcher(), EarlyStopping(patience=3)
    metrics = fit(algorithm, data(), callbacks=[stopping, watcher], **SETTINGS)
    curve = metrics.history["validation/loss"]
    best_step, best = min(curve, key=lambda point: point[1])
    last = curve[-1][0]
    assert 2 < best_step < last < 60
    assert last == best_step + 2 * 3, "three validations in a row"
    assert algorithm.trainer.global_step == last
    assert same(algorithm.model.parameters(), watcher.validated[best_step])
    assert not same(algorithm.model.parameters(), watcher.after[last])
    assert metrics.history["best/step"] == [(last, best_step)]
    assert metrics.history["best/validation/loss"] == [(last, pytest.approx(best))]
    assert algorithm.last_report["validation/loss"] == pytest.approx(best), "the run's metrics are of its weights"
    (said,) = [record.message for record in caplog.records if record.name == "athanor.callbacks.stopping"]
    assert said.startswith(f"stopped early at step {last}: validation/loss has been no better than its ")
    assert said.endswith(f"of step {best_step} for 3 validations")


def test_a_training_that_reaches_its_end_keeps_the_best_too():
    algorithm, watcher = sft(**HEART), Watcher()
    callbacks = [EarlyStopping(patience=99), watcher]
    metrics = fit(algorithm, data(), callbacks=callbacks, **(SETTINGS | {"steps": 30}))
    best_step, _ = min(metrics.history["validation/loss"], key=lambda point: point[1])
    assert best_step < 30 == algorithm.trainer.global_step
    assert same(algorithm.model.parameters(), watcher.validated[best_step])


def test_it_may_keep_the_last():
    algorithm, watcher = sft(**HEART), Watcher()
    metrics = fit(algorithm, data(), callbacks=[EarlyStopping(patience=1, keep_best=False), watcher], **SETTINGS)
    assert same(algorithm.model.parameters(), watcher.after[algorithm.trainer.global_step])
    assert algorithm.last_report["validation/loss"] == metrics.values("validation/loss")[-1]


def test_a_gain_must_be_large_enough():
    """With `least` above every gain after the first validation, the first is the best."""
    stopping = EarlyStopping(patience=2, least=10.0)
    metrics = fit(sft(**HEART), data(), callbacks=[stopping], **SETTINGS)
    assert [step for step, _ in metrics.history["validation/loss"]] == [2, 4, 6]
    assert stopping.best_step == 2


def test_the_best_of_an_average_is_the_average():
    algorithm, watcher = sft(**HEART), Watcher()
    metrics = fit(
        algorithm, data(), callbacks=[EarlyStopping(patience=2), watcher, ExponentialAverage(decay=0.8)], **SETTINGS
    )
    best_step, _ = min(metrics.history["validation/loss"], key=lambda point: point[1])
    assert same(algorithm.model.parameters(), watcher.validated[best_step])
    assert not same(algorithm.model.parameters(), watcher.after[best_step])


def test_an_interrupted_training_ends_at_the_same_step_with_the_same_weights(tmp_path):
    """Interrupted before the best validation, and after it, when the best weights are only in the checkpoint."""

    def run(folder, **arguments):
        algorithm, stopping = sft(**HEART), EarlyStopping(patience=3)
        callbacks = [stopping, Checkpoints(folder, 1, keep=99)]
        metrics = fit(algorithm, data(), callbacks=callbacks, **(SETTINGS | arguments))
        return algorithm, stopping, metrics

    whole, stopping, expected = run(tmp_path)
    ends = whole.trainer.global_step
    for stop in (stopping.best_step - 1, stopping.best_step + 3):
        for path in tmp_path.glob("again/*"):
            path.unlink()
        (tmp_path / "again").mkdir(exist_ok=True)
        for path in tmp_path.glob(f"step-{stop:08d}.*"):
            (tmp_path / "again" / path.name).write_bytes(path.read_bytes())
        algorithm, _, found = run(tmp_path / "again", resume=newest(tmp_path / "again"))
        assert algorithm.trainer.global_step == ends
        assert same(algorithm.model.parameters(), whole.model.parameters())
        assert found.history["best/step"] == expected.history["best/step"]
        assert found.history["validation/loss"] == [p for p in expected.history["validation/loss"] if p[0] > stop]
        assert algorithm.last_report["validation/loss"] == whole.last_report["validation/loss"]


def test_higher_may_be_better():
    stopping = EarlyStopping(patience=1, better="higher")
    metrics = fit(sft(**HEART), data(), callbacks=[stopping], **SETTINGS)
    assert len(metrics.values("validation/loss")) == 2, "it falls at first"
    assert float(stopping.best_score) == pytest.approx(metrics.values("validation/loss")[0])


def test_an_unknown_metric_is_refused_with_those_that_there_are():
    with pytest.raises(UserError, match="metric=validation/lost is not measured; this validation measures validation/"):
        fit(sft(), data(), callbacks=[EarlyStopping(metric="validation/lost")], **SETTINGS)


def test_without_validation_it_is_refused():
    with pytest.raises(UserError, match="needs a validation split, and the data has none"):
        fit(sft(), Given(conversations(), conversations(2, 0)), steps=2, batch=4, callbacks=[EarlyStopping()])
    with pytest.raises(UserError, match="patience must be at least 1"):
        EarlyStopping(patience=0)
    assert torch.isinf(EarlyStopping().best_score)
