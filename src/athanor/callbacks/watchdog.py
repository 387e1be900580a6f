"""Ends a training that hangs, and says which rank the others wait for and where each of them stands.

A collective in which one rank is missing keeps the others until its own time-out, half an hour or for ever, and then
blames the network. Here a thread of each rank writes into the run's folder how far the rank has come, and that the
thread is alive. Where a rank stands still for long it compares: one whose thread is silent too is stopped, dead, or cut
off; else the one that has come least far is what the others wait for. A rank ends with rank 0 or torchrun, if that has
started it.

Time is counted in turns of the thread, not by a clock, so that a training which is suspended as a whole is not ended
when it goes on.
"""

import contextlib
import faulthandler
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from athanor import signals
from athanor.callbacks.checkpoints import newest_step
from athanor.errors import UserError

log = logging.getLogger(__name__)

SILENT = 5  # turns without a word
STATES = {"T": "stopped", "t": "stopped by a debugger", "D": "waiting for a disk or a device", "Z": "dead"}


def passing(place: str) -> Callable[..., None]:
    """A hook by which a rank notes that it has come to a place."""

    def note(self: "Watchdog", trainer: Trainer, *_: Any, **__: Any) -> None:
        self.passed, self.place = self.passed + 1, f"{place} of step {trainer.global_step + 1}"

    return note


class Watchdog(Callback):
    """Every rank ends with exit code 75 once none has passed a place for `seconds`; None: never.

    Left in `directory` is for each rank `<rank>.txt` with its stacks, that of one which had to be killed too.
    """

    def __init__(self, directory: Path, seconds: float | None):
        if seconds is not None and seconds <= 0:
            raise UserError(f"cluster.hang_seconds={seconds} must be positive, or null for none.")
        self.directory, self.seconds = directory, seconds
        self.turn = min((seconds or 0) / 20, 5.0)
        self.passed, self.place, self.beats, self.leaving = 0, "the start", 0, False
        self.over = threading.Event()
        self.thread: threading.Thread | None = None

    def setup(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        self.trainer, self.rank, self.world = trainer, trainer.global_rank, trainer.world_size
        if self.seconds is not None and self.thread is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.tell()  # else what an earlier attempt left would be taken for this one's
            self.starter = os.getppid()
            self.stacks = (self.directory / f"{self.rank}.txt").open("w")
            self.before = faulthandler.is_enabled()
            self.thread = threading.Thread(target=self.watch, name="watchdog", daemon=True)
            self.take_signals()
            self.thread.start()

    def take_signals(self) -> None:
        """SIGABRT, by which a rank that does not answer is ended, writes its stacks."""
        if self.thread is not None:
            faulthandler.disable()  # else a library that has put itself in its place since stays there
            faulthandler.enable(self.stacks)

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        self.take_signals()  # once more, for what was loaded in between
        self.passed += 1

    def on_fit_start(self, *_: Any) -> None:
        self.passed += 1

    on_train_batch_start = passing("the beginning")
    on_before_backward = passing("the backward pass")
    on_after_backward = passing("the end of the backward pass")
    on_before_optimizer_step = passing("the update")
    on_train_batch_end = passing("the end")
    on_validation_batch_start = passing("a validation before the end")
    on_validation_batch_end = passing("a validation before the end")

    def on_train_end(self, *_: Any) -> None:
        self.rest()

    def on_exception(self, *_: Any) -> None:
        self.rest()

    def rest(self) -> None:
        if self.thread is not None:
            self.over.set()
            self.thread.join()
            self.thread = None
            faulthandler.disable()
            if self.before and sys.__stderr__ is not None:
                faulthandler.enable(sys.__stderr__)
            self.stacks.close()

    # --- beside the training ----------------------------------------------------------------------------------------

    def watch(self) -> None:
        assert self.seconds is not None
        before, still, child = -1, 0, "TORCHELASTIC_RUN_ID" in os.environ
        others: dict[int, tuple[dict[str, Any], int]] = {}  # what each rank said last, and for how many turns
        while not self.over.wait(self.turn):
            if child and os.getppid() != self.starter:  # which is dead
                os._exit(1)
            child = child or (self.rank > 0 and self.heard(0, None)[0].get("pid") == self.starter)
            self.beats += 1
            self.tell()
            if self.passed != before:
                before, still, others = self.passed, 0, {}
                continue
            still += 1
            if still * self.turn >= self.seconds / 2:
                others = {rank: self.heard(rank, others.get(rank)) for rank in range(self.world)}
                if still * self.turn >= self.seconds or any(said.get("leaving") for said, _ in others.values()):
                    self.leave(others)

    def tell(self) -> None:
        said = {"passed": self.passed, "place": self.place, "beats": self.beats, "leaving": self.leaving}
        said |= {"pid": os.getpid(), "node": self.trainer.node_rank}
        with contextlib.suppress(OSError):
            (self.directory / f"{self.rank}.json").write_text(json.dumps(said))

    def heard(self, rank: int, before: tuple[dict[str, Any], int] | None) -> tuple[dict[str, Any], int]:
        said, turns = before or ({}, 0)
        with contextlib.suppress(OSError, ValueError):  # while it is being written it is cut off
            now = json.loads((self.directory / f"{rank}.json").read_text())
            if now.get("beats") != said.get("beats"):
                return now, 0
        return said, turns + 1

    def leave(self, others: dict[int, tuple[dict[str, Any], int]]) -> None:
        """Returns only if this rank has gone on meanwhile."""
        self.leaving, stood = True, self.passed
        faulthandler.dump_traceback(self.stacks)
        for _ in range(SILENT):  # so that all ranks do the same
            self.beats += 1
            self.tell()
            time.sleep(self.turn)
            others = {rank: self.heard(rank, others[rank]) for rank in others}
            if self.passed != stood:
                self.leaving = False
                log.info("nothing happened for %g s; it goes on after all", self.seconds)
                return
        silent = [rank for rank, (_, turns) in others.items() if turns >= SILENT and rank != self.rank]
        answering = [rank for rank in others if rank not in silent]
        node = others[self.rank][0].get("node")
        here = [rank for rank, (said, _) in others.items() if said.get("node") == node]
        if self.rank == answering[0]:
            signals.tell_hung()
            saved = newest_step(self.directory.parent / "checkpoints")
            log.error(
                "no progress for %g s: %s. Where each rank stood is in %s. Ending with exit code %d: the same command "
                "goes on from %s.", self.seconds, self.culprit(others, silent, here), self.directory,
                signals.REQUEUE, f"step {saved}" if saved else "the beginning",
            )  # fmt: skip
        if self.rank == min(rank for rank in here if rank in answering):
            for rank in silent:
                if rank in here:
                    end(others[rank][0]["pid"])
        else:
            time.sleep(2 * GRACE)  # the end of a child may be that of its parent, which has things to say
        os._exit(signals.REQUEUE)

    def culprit(self, others: dict[int, tuple[dict[str, Any], int]], silent: list[int], here: list[int]) -> str:
        if silent:
            told = [f"rank {r} does not answer ({state(others[r][0], r in here)})" for r in silent]
            return "; ".join(told)
        least = min(said["passed"] for said, _ in others.values())
        last = [rank for rank, (said, _) in others.items() if said["passed"] == least]
        if self.world == 1 or len(last) == self.world:
            return f"{'all ranks stand' if self.world > 1 else 'it stands'} at {self.place}"
        return "; ".join(f"the others wait for rank {rank}, at {others[rank][0]['place']}" for rank in last)


GRACE = 2.0  # seconds from the mild to the hard way


def state(said: dict[str, Any], here: bool) -> str:
    """Of a rank's process."""
    if "pid" not in said or not here:
        return f"last seen at {said.get('place', 'the start')}"
    try:
        letter = Path(f"/proc/{said['pid']}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "its process is gone"
    return STATES.get(letter, f"at {said['place']}")


def end(process: int) -> None:
    """Ends a process that may be stopped; `faulthandler` writes its stacks as it goes."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGABRT)
        os.kill(process, signal.SIGCONT)
        time.sleep(GRACE)
        os.kill(process, signal.SIGKILL)
