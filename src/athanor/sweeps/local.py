"""Run an ablation's members on this machine, several at once, each in a process of its own.

All state is in the members' runs. A worker that dies, or this process, loses nothing but the steps since the last
checkpoint: the same command goes on. A member that another process holds (a worker of a sweep that was killed, an
array's element) is left to it and looked at again when it lets go.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from athanor.errors import UserError
from athanor.progress import Progress, Task
from athanor.runs import manifest
from athanor.runs.context import METRICS
from athanor.sweeps.ablation import Ablation, Member

POLL_SECONDS = 0.5
DIED = {*range(-64, 0), 130, 143}  # exit codes of a process that a signal ended
STOP_SECONDS = 30.0  # for workers to write down that they were interrupted


@dataclass
class Worker:
    """A process at work on a member, in one of the slots."""

    member: Member
    process: subprocess.Popen[bytes]
    slot: int
    words: IO[bytes]
    task: Task


@dataclass(frozen=True)
class Ending:
    """How a sweep ended. Members that were finished before are in `before`."""

    before: list[Member]
    finished: list[Member]
    failed: list[Member]
    left: list[Member]  # not begun or not finished, because the budget is spent
    reason: str  # why some were left


def sweep(ablation: Ablation, *, workers: int = 1, retries: int = 1, progress: Progress | None = None) -> Ending:
    """Make the runs of all members that are not finished, `workers` at a time.

    Args:
        retries: how often a member whose job fails or whose process dies is begun again. What a user has to correct is
            not tried again.

    Raises:
        UserError: a member's config is wrong, or an input that all need cannot be made.
    """
    if workers < 1 or retries < 0:
        raise UserError(f"--workers {workers} must be at least 1 and --retries {retries} at least 0")
    progress = progress or Progress(quiet=True)
    before: list[Member] = []
    waiting: list[Member] = []
    for member in ablation.members:
        (before if member.status() == "finished" else waiting).append(member)
    if not waiting:
        return Ending(before, [], [], [], "")
    ablation.validate()
    board = Board(progress, ablation.name, len(ablation), len(before))
    log = ablation.directory / "log"
    log.mkdir(parents=True, exist_ok=True)
    running: list[Worker] = []
    finished: list[Member] = []
    failed: list[Member] = []
    deaths = dict.fromkeys((member.number for member in waiting), 0)
    reason = ""
    try:
        if ablation.inputs():
            _inputs(ablation, log / "inputs.txt", retries)
        while waiting or running:
            for worker in list(running):
                if worker.process.poll() is None:
                    board.look(worker.task, worker.member)
                    continue
                running.remove(worker)
                worker.words.close()
                member = worker.member
                if member.status() == "finished":
                    finished.append(member)
                elif worker.process.returncode in DIED and deaths[member.number] < retries:
                    deaths[member.number] += 1
                    waiting.append(member)
                else:
                    failed.append(member)
                board.end(worker.task, member.status(), done=len(before) + len(finished))
            for member in list(waiting):
                if len(running) >= workers or (reason := reason or ablation.over_budget()):
                    break
                if (status := member.status()) == "finished":  # by another process
                    waiting.remove(member)
                    finished.append(member)
                elif status != "running":
                    waiting.remove(member)
                    slot = min(set(range(workers)) - {worker.slot for worker in running})
                    running.append(_start(ablation, member, slot, workers, retries, log, board))
            if reason and not running:
                break
            time.sleep(POLL_SECONDS)
    finally:
        _stop(running)
        board.close()
    return Ending(before, finished, failed, waiting, reason)


def _start(
    ablation: Ablation, member: Member, slot: int, workers: int, retries: int, log: Path, board: Board
) -> Worker:
    words = [sys.executable, "-m", "athanor", "sweep", f"ablation={ablation.name}", f"member={member.number}"]
    words += ["--retries", str(retries), *ablation.given, "display.progress=plain"]
    file = (log / f"{member.number}.txt").open("ab")
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment_of(slot, workers)
    )
    return Worker(member, process, slot, file, board.begin(member))


def environment_of(slot: int, workers: int) -> dict[str, str]:
    """Of a worker: its share of the cores, and a GPU of its own where there are several."""
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // workers)))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible is not None else [str(i) for i in range(len(manifest.hardware()["gpus"]))]
    if len(gpus) > 1 and workers > 1:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return environment


def _inputs(ablation: Ablation, log: Path, retries: int) -> None:
    """What all members read, made before them by one process."""
    words = [sys.executable, "-m", "athanor", "sweep", f"ablation={ablation.name}", "--inputs"]
    words += ["--retries", str(retries), *ablation.given, "display.progress=plain"]
    with log.open("ab") as file:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        try:
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if code:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise UserError(f"the inputs of ablation {ablation.name} cannot be made: {said[-1] if said else code}")


def _stop(running: list[Worker]) -> None:
    """Tell the workers to stop, and wait until they have written it down."""
    for worker in running:
        with contextlib.suppress(ProcessLookupError):
            worker.process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for worker in running:
        try:
            worker.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        worker.words.close()


class Board:
    """A sweep on a `Progress`: one row for all members, one for each that runs, and one for each that failed."""

    def __init__(self, progress: Progress, name: str, total: int, done: int) -> None:
        self.progress = progress
        progress.start(name)
        self.all = progress.current
        self.total = total
        self._all(done)

    def begin(self, member: Member) -> Task:
        self.progress.start(f"{member.number}: {member.title}")
        return self.progress.current

    def look(self, task: Task, member: Member) -> None:
        """Read how far the member's training is."""
        steps = member.experiment.config.get("max_steps")
        if steps and (event := last_event(member.experiment.directory)):
            self.progress.current = task
            shown = {"loss": event["train/loss"]} if "train/loss" in event else {}
            self.progress.update(event["step"], steps, **shown)

    def end(self, task: Task, status: str, done: int) -> None:
        self.progress.current = task
        self.progress.finish(status if status in ("finished", "interrupted") else "failed")
        if status == "finished":
            self.progress.tasks.remove(task)
        self._all(done)

    def close(self) -> None:
        self.progress.current = self.all
        self.progress.finish("finished" if self.all.done == self.total else "interrupted")

    def _all(self, done: int) -> None:
        self.progress.current = self.all
        self.progress.update(done, self.total)


def last_event(directory: Path) -> dict[str, Any] | None:
    """The last whole line of a run's metrics that has a step."""
    for event in _backwards(directory / METRICS):
        if event.get("step") is not None:
            return event
    return None


def _backwards(path: Path, octets: int = 8192) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - octets))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                yield event
