"""A training that hangs, in real processes: who is named, what is left behind, how it ends; and what is no hang."""

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from athanor.callbacks import watchdog
from athanor.callbacks.watchdog import Watchdog

SECONDS = 0.6


def a_rank_that_stands_still() -> None:
    time.sleep(60)


def rank_process(
    rank: int, folder: Path, act: Callable[[int, Watchdog, SimpleNamespace], None], starts: bool = True
) -> None:
    watchdog.log.addHandler(logging.FileHandler(folder / f"said-{rank}.txt"))
    watchdog.GRACE = 0.2
    trainer = SimpleNamespace(global_rank=rank, world_size=2, node_rank=0, global_step=4)
    callback = Watchdog(folder / "watch", SECONDS)
    callback.setup(trainer)  # type: ignore[arg-type]
    if starts:
        callback.on_train_start(trainer)
    act(rank, callback, trainer)
    callback.on_train_end(trainer)


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[int | None], str]]:
    """Exit codes of two ranks that `act`, and what they said."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    def run(act: Callable, then: Callable = lambda pids: None, starts: bool = True) -> tuple[list[int | None], str]:
        context = multiprocessing.get_context("fork")
        ranks = [context.Process(target=rank_process, args=(rank, tmp_path, act, starts)) for rank in range(2)]
        for rank in ranks:
            rank.start()
        then([rank.pid for rank in ranks])
        for rank in ranks:
            rank.join(20)
            rank.kill()
        return [rank.exitcode for rank in ranks], "".join(p.read_text() for p in tmp_path.glob("said-*.txt"))

    return run


def test_the_rank_that_the_others_wait_for_is_named(two, tmp_path):
    """Both threads answer; one rank has not come as far as the other."""

    def act(rank: int, callback: Watchdog, trainer: SimpleNamespace) -> None:
        callback.on_train_batch_start(trainer)
        if rank == 0:
            callback.on_before_backward(trainer)
        a_rank_that_stands_still()

    codes, said = two(act)
    assert codes == [75, 75]
    assert said.count("the others wait for rank 1, at the beginning of step 5") == 1, "one speaks"
    assert "exit code 75: the same command goes on from the beginning" in said
    for rank in range(2):
        assert "a_rank_that_stands_still" in (tmp_path / "watch" / f"{rank}.txt").read_text()


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_is_stopped_is_named_and_ended_and_leaves_its_stacks(two, tmp_path, monkeypatch, stopped):
    monkeypatch.setenv("ATHANOR_HUNG", str(tmp_path / "hung"))

    def act(rank: int, callback: Watchdog, trainer: SimpleNamespace) -> None:
        callback.on_train_batch_start(trainer)
        if rank == stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        a_rank_that_stands_still()

    codes, said = two(act)
    assert codes[1 - stopped] == 75
    assert codes[stopped] == -signal.SIGABRT, "by the signal that has it write its stacks"
    assert f"no progress for {SECONDS} s: rank {stopped} does not answer (stopped)." in said
    assert "rank_process" in (tmp_path / "watch" / f"{stopped}.txt").read_text()
    assert (tmp_path / "hung").exists(), "srun tells of the killed one only"


def test_what_goes_on_however_slowly_is_left_alone(two):
    def act(rank: int, callback: Watchdog, trainer: SimpleNamespace) -> None:
        for _ in range(4):
            time.sleep(SECONDS * 0.7)
            callback.on_validation_batch_end(trainer)

    assert two(act) == ([0, 0], "")


def test_what_goes_on_while_its_end_is_agreed_upon_is_left_alone(two):
    def act(rank: int, callback: Watchdog, trainer: SimpleNamespace) -> None:
        while not callback.leaving:
            time.sleep(0.001)
        for _ in range(8):
            callback.on_train_batch_start(trainer)
            time.sleep(SECONDS / 4)

    assert two(act) == ([0, 0], "")


def test_a_training_that_is_suspended_as_a_whole_goes_on_later(two):
    """Its time stands still too, whatever a clock says."""

    def act(rank: int, callback: Watchdog, trainer: SimpleNamespace) -> None:
        for _ in range(8):
            callback.on_train_batch_start(trainer)
            time.sleep(0.1)

    def suspend(pids: list[int]) -> None:
        time.sleep(0.3)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2 * SECONDS)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    assert two(act, suspend) == ([0, 0], "")


def test_what_rank_0_has_started_ends_with_it(tmp_path):
    """And holds no device, in a collective that nobody will join."""

    def first() -> None:
        folder = tmp_path / "watch"
        Watchdog(folder, 30).setup(SimpleNamespace(global_rank=0, world_size=2, node_rank=0))  # type: ignore[arg-type]
        context.Process(
            target=rank_process, args=(1, tmp_path, lambda *_: (child.put(os.getpid()), time.sleep(60)))
        ).start()
        time.sleep(60)

    context = multiprocessing.get_context("fork")
    child = context.SimpleQueue()
    process = context.Process(target=first)
    process.start()
    pid = child.get()
    process.kill()
    process.join()
    assert ends(pid, 5), "it is still there"


def ends(pid: int, seconds: float) -> bool:
    """Whether a process does, before so many are over."""
    until = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and watchdog.state({"pid": pid, "place": ""}, True) != "dead":
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("by_torchrun", [True, False])
def test_what_torchrun_has_started_ends_with_it(tmp_path, monkeypatch, by_torchrun):
    """A node that is lost in part must not train beside those that go on without it. What a shell has started stays."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if by_torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")

    def agent() -> None:
        act = lambda _, callback, trainer: (child.put(os.getpid()), moving(callback, trainer))  # noqa: E731
        context.Process(target=rank_process, args=(0, tmp_path, act)).start()
        time.sleep(60)

    def moving(callback: Watchdog, trainer: SimpleNamespace) -> None:
        for _ in range(600):
            callback.on_train_batch_end(trainer)
            time.sleep(0.1)

    context = multiprocessing.get_context("fork")
    child = context.SimpleQueue()
    process = context.Process(target=agent)
    process.start()
    pid = child.get()
    process.kill()
    process.join()
    try:
        assert ends(pid, 5 if by_torchrun else 0.5) == by_torchrun
    finally:
        if not by_torchrun:
            os.kill(pid, signal.SIGKILL)


def test_one_that_stands_before_the_first_step_is_a_hang_too(two):
    """The other has not even begun to train: it waits in the setting up of what both need."""

    def act(rank: int, callback: Watchdog, trainer: SimpleNamespace) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)

    codes, said = two(act, starts=False)
    assert codes[0] == 75
    assert "rank 1 does not answer (stopped)" in said


def test_no_seconds_no_thread(tmp_path, refused):
    callback = Watchdog(tmp_path, None)
    callback.setup(SimpleNamespace(global_rank=0, world_size=1))  # type: ignore[arg-type]
    callback.on_train_start(SimpleNamespace())  # type: ignore[arg-type]
    assert callback.thread is None
    assert not list(tmp_path.iterdir())
    assert "cluster.hang_seconds=0 must be positive" in refused(Watchdog, tmp_path, 0)
