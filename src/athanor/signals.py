"""What a signal asks of this process: to save what it has and leave, so that it can be taken up again.

SIGUSR1 is SLURM's notice before a job's time is over, SIGTERM that of preemption. A handler only takes note; a training
looks at the note where a step ends (`athanor.callbacks.preemption`). What cannot be saved half-way ends at once on
SIGTERM and goes on after SIGUSR1, since it may still end in time.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: more to do, start the same command again
INTERRUPTED = (130, 128 + signal.SIGTERM, REQUEUE)  # exit codes of what was told to stop

_noted = 0  # the number of the last signal, 0 for none
_noting = False


def noted() -> int:
    """The signal that has asked for an end, 0 if none has."""
    return _noted


def exit_code(number: int) -> int:
    """How to end on a signal: in a SLURM job, and on SIGUSR1 anywhere, so that the job is put back into the queue."""
    return REQUEUE if "SLURM_JOB_ID" in os.environ or number == signal.SIGUSR1 else 128 + number


def tell_hung() -> None:
    """Have `slurm/launch.sh` know of a training that hung: srun may tell only that a rank had to be killed."""
    if mark := os.environ.get("ATHANOR_HUNG"):
        with suppress(OSError):
            Path(mark).touch()


@contextmanager
def handled(*, note: bool) -> Iterator[None]:
    """Handle both signals within the block; `note`: only take note of them until a `noting` says otherwise."""
    global _noted, _noting
    _noted, before, _noting = 0, _noting, note
    previous = {number: signal.signal(number, _handle) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        _noted, _noting = 0, before
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def noting(wanted: bool) -> Iterator[None]:
    """Within the block signals are only noted, or are acted on, those noted before it included."""
    global _noting
    before, _noting = _noting, wanted
    try:
        if not wanted and _noted == signal.SIGTERM:
            raise SystemExit(exit_code(_noted))
        yield
    finally:
        _noting = before


def ignore(_worker: int = 0) -> None:
    """For data-loading workers, which SLURM signals too: the training needs them until its step has ended."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _handle(number: int, frame: FrameType | None) -> Any:
    global _noted
    _noted = number
    if _noting:
        return
    if number == signal.SIGUSR1:
        os.write(sys.stderr.fileno(), b"athanor: SIGUSR1, and nothing to save half-way; going on\n")
        return
    raise SystemExit(exit_code(number))
