"""Checkpoints that are written behind the training: what is in them, when, how many, and what survives what."""

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from athanor.callbacks import checkpoints
from athanor.callbacks.checkpoints import Checkpoints, newest
from athanor.callbacks.preemption import SAVE, UNSAVED, Preemption
from athanor.errors import UserError


class Trained:
    """What of a trainer is saved: a tensor that changes in place at every step, as weights do."""

    is_global_zero, world_size, accumulate_grad_batches = True, 1, 1

    def __init__(self, size: int = 1000) -> None:
        self.global_step, self.weights = 0, torch.zeros(size)
        self.callback_metrics: dict[str, torch.Tensor] = {}
        self._checkpoint_connector = SimpleNamespace(dump_checkpoint=self.state)
        counts = SimpleNamespace(ready=1)
        progress = SimpleNamespace(batch_progress=SimpleNamespace(total=counts, current=counts))
        self.fit_loop = SimpleNamespace(epoch_loop=progress)
        self.strategy = SimpleNamespace(broadcast=lambda value: value, barrier=lambda: None)

    def state(self, weights_only: bool) -> dict[str, Any]:
        assert not weights_only
        return {"global_step": self.global_step, "optimizer": [{"weights": self.weights}]}

    def step(self, to: int | None = None) -> "Trained":
        self.global_step = self.global_step + 1 if to is None else to
        self.weights.fill_(self.global_step)
        return self


def saved(path: Path | None) -> int:
    """The step of a checkpoint, all of which must be of that step."""
    assert path is not None
    state = torch.load(path, weights_only=True)
    assert state["optimizer"][0]["weights"].unique().tolist() == [state["global_step"]]
    assert path.name == f"step-{state['global_step']:08d}.ckpt"
    return state["global_step"]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is written until it is set."""
    event, save = threading.Event(), torch.save

    def wait(*arguments: Any) -> None:
        assert event.wait(20)
        save(*arguments)

    monkeypatch.setattr(checkpoints.torch, "save", wait)
    return event


def test_the_training_goes_on_and_what_is_written_is_of_the_step_that_was_saved(held, tmp_path):
    callback, trained = Checkpoints(tmp_path, 1), Trained()
    callback.save(trained.step())
    trained.step()  # in place, while the file is not begun
    assert newest(tmp_path) is None
    second = threading.Thread(target=lambda: callback.save(trained))
    second.start()
    second.join(0.3)
    assert second.is_alive(), "two at once would share the copy in memory"
    held.set()
    second.join()
    callback.wait()
    assert [saved(path) for path in sorted(tmp_path.glob("*.ckpt"))] == [1, 2]


def test_the_copy_in_memory_is_used_again_where_it_fits():
    first = checkpoints.copied({"a": torch.arange(3), "b": [torch.zeros(2), (1, "x")], "c": {"d": [1]}})
    place = first["a"].data_ptr(), first["b"][0].data_ptr()
    plain = [1]
    again = checkpoints.copied({"a": torch.arange(3) + 1, "b": [torch.zeros(3), (1, "x")], "c": {"d": plain}}, first)
    assert again["a"].tolist() == [1, 2, 3]
    assert again["b"][0].shape == (3,)
    assert (again["a"].data_ptr(), again["b"][0].data_ptr()) == (place[0], again["b"][0].data_ptr())
    assert again["b"][0].data_ptr() != place[1]
    plain.append(2)
    assert again["c"] == {"d": [1]}, "what is no tensor is copied too"


def train_until_killed(folder: Path) -> None:
    callback, trained = Checkpoints(folder, 1), Trained(200_000)
    found = newest(folder)
    trained.step(saved(found) if found else 0)
    while True:
        callback.save(trained.step())


def test_killed_a_hundred_times_while_saving_it_can_always_go_on(tmp_path):
    """By SIGKILL, at random moments of a training that does nothing but save."""
    chance, halves, before = random.Random(4), 0, 0
    context = multiprocessing.get_context("fork")
    for _ in range(100):
        for half in tmp_path.glob("*.partial"):
            half.unlink()
        process = context.Process(target=train_until_killed, args=(tmp_path,))
        process.start()
        until = time.monotonic() + 20
        while not list(tmp_path.glob("*.partial")) and time.monotonic() < until:
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.02))
        known = max(map(checkpoints.step_of, tmp_path.glob("step-*.ckpt")), default=0)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        halves += bool(list(tmp_path.glob("*.partial")))
        step = saved(newest(tmp_path)) if newest(tmp_path) else 0
        assert step >= known >= before, "what had been saved is lost"
        before = step
    assert halves > 20, "it was hardly ever killed in the middle of a file"
    assert before > 5, "it has hardly ever saved one"


def test_a_flipped_bit_anywhere_is_seen(tmp_path):
    callback, trained = Checkpoints(tmp_path, 1), Trained(100)
    for _ in range(2):
        callback.save(trained.step())
    callback.wait()
    path = tmp_path / "step-00000002.ckpt"
    for target in (path, path.with_suffix(".sha256")):
        whole = target.read_bytes()
        for place in random.Random(1).sample(range(len(whole)), 20):
            target.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
            assert saved(newest(tmp_path)) == 1, (target.name, place)
        target.write_bytes(whole)
    assert saved(newest(tmp_path)) == 2


def test_a_damaged_checkpoint_does_not_push_out_a_sound_one(tmp_path):
    """Step 8 is cut off and training has gone on from an older one: what step 6 then saves is the newest there is."""
    callback, trained = Checkpoints(tmp_path, every_n_steps=2, keep=1), Trained()
    callback.save(trained.step(8))
    callback.wait()
    os.truncate(tmp_path / "step-00000008.ckpt", 50)
    for step in (6, 8):
        callback.save(trained.step(step))
        callback.wait()
        assert saved(newest(tmp_path)) == step


def test_a_full_disk_is_told_of_and_leaves_the_older_checkpoint(tmp_path):
    callback, trained = Checkpoints(tmp_path, 1), Trained()
    callback.save(trained.step())
    callback.wait()
    (tmp_path / "step-00000002.ckpt.partial").symlink_to("/dev/full")
    ender = Preemption(callback, tmp_path)
    callback.save(trained.step())
    while not callback.failed():
        time.sleep(0.01)
    assert ender.wanted(trained) == UNSAVED
    with pytest.raises(
        UserError, match=r"step 2 cannot be written to .*: No space left on device\. Mend .* from step 1"
    ):
        ender.on_train_batch_start(trained, None, None, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001.ckpt", "step-00000001.sha256"]
    others = Preemption(Checkpoints(tmp_path, 1), tmp_path)
    with pytest.raises(SystemExit) as ended:
        others.unsaved()
    assert ended.value.code == 2


def test_by_the_clock_all_ranks_save_the_same_step_once(monkeypatch, tmp_path):
    """Two ranks, of which the first has the clock, and an all-reduce that is read a step later."""
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    steps: list[list[int]] = [[], []]
    trainers, enders, sent = [Trained(), Trained()], [], []
    for rank, trainer in enumerate(trainers):
        trainer.is_global_zero = rank == 0
        callback = Checkpoints(tmp_path / str(rank), None, every_minutes=1)
        callback.on_train_start(trainer, None)
        callback.save = lambda trainer, own=callback, rank=rank: (  # type: ignore[method-assign]
            steps[rank].append(trainer.global_step),
            setattr(own, "saved_when", now[0]),
            setattr(own, "saved_at", trainer.global_step),
        )
        enders.append(Preemption(callback, tmp_path))
        enders[-1].group = "two"

    def all_reduce(number: torch.Tensor, *_: Any, **__: Any) -> Any:
        sent.append(number)
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr("athanor.callbacks.preemption.dist.all_reduce", all_reduce)
    for _ in range(12):
        now[0] += 20
        for trainer, ender in zip(trainers, enders):
            ender.on_train_batch_start(trainer.step(), None, None, 0)
        for number in sent:
            number.fill_(max(map(int, sent)))
        sent.clear()
    assert steps[0] == steps[1] == [5, 10], "a minute after the start, or the last one; and a step to agree"
    assert min(signal.SIGUSR1, signal.SIGTERM) > SAVE, "a signal counts more"


def test_the_best_stay_beyond_the_end_and_a_resumed_run_knows_them(tmp_path):
    losses = {2: 5.0, 4: 3.0, 6: 4.0, 8: 3.5, 10: 6.0}
    callback, trained = Checkpoints(tmp_path, 5, keep=1, best=2), Trained()

    def kept() -> list[int]:
        callback.wait()
        return [saved(path) for path in sorted(tmp_path.glob("*.ckpt"))]

    def go_on(steps: range, callback: Checkpoints) -> None:
        for step in steps:
            callback.on_train_batch_start(trained)  # type: ignore[arg-type]
            trained.step(step)
            if step in losses:
                trained.callback_metrics["validation/loss"] = torch.tensor(losses[step])
                callback.on_validation_end(trained, None)  # type: ignore[arg-type]
        callback.on_train_batch_start(trained)  # type: ignore[arg-type]

    go_on(range(1, 7), callback)
    assert kept() == [4, 6], "step 2 is no longer among the best, step 5 no longer the last"
    again = Checkpoints(tmp_path, 5, keep=1, best=2)
    again.load_state_dict(callback.state_dict())
    callback = again
    go_on(range(7, 12), callback)
    assert kept() == [4, 8, 10]
    callback.discard()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000004.ckpt", "step-00000004.sha256", "step-00000008.ckpt", "step-00000008.sha256",
    ]  # fmt: skip
    Checkpoints(tmp_path, 5).discard()
    assert not tmp_path.exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"every_n_steps": 0}, "must be at least 1"), ({"every_n_steps": 5, "keep": 0}, "must be at least 1"),
        ({"every_n_steps": None, "every_minutes": 0.0}, "every_minutes positive"),
        ({"every_n_steps": 5, "best": -1}, "best at least 0"),
        ({"every_n_steps": None}, "set checkpoint.every_n_steps or .every_minutes"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(refused: Callable[..., str], settings, sentence, tmp_path):
    assert sentence in refused(Checkpoints, tmp_path, **settings)
