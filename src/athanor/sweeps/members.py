"""Make one member's runs, wherever that happens: a worker of this machine, an element of a job array.

Members share inputs and folders only through runs, each of which one process at a time holds. So whoever finds an
input under way waits for it, and whoever finds it lying unfinished makes it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from athanor import signals
from athanor.config import Experiment
from athanor.errors import UserError
from athanor.progress import Progress
from athanor.runs import store
from athanor.runs.context import rank
from athanor.runs.lock import LockedError
from athanor.runs.run import Run
from athanor.sweeps.ablation import Ablation, Member

TRIED = "ATHANOR_TRIED"  # how often this member's process has failed already


def make(experiment: Experiment, progress: Progress, *, poll: float = 1.0, callbacks: Sequence[Any] = ()) -> Run:
    """The finished run of an experiment: made here, or waited for while another process makes it.

    Raises:
        SystemExit: a signal asked for an end while there was nothing to do but wait.
    """
    while True:
        try:
            return store.execute(experiment, progress=progress, callbacks=callbacks)
        except LockedError:
            if number := signals.noted():
                raise SystemExit(signals.exit_code(number)) from None
            time.sleep(poll)


def make_inputs(ablation: Ablation, progress: Progress) -> list[Run]:
    """Make the runs that every member waits for; those that are finished already are passed over."""
    wanting = ablation.inputs()
    for experiment in wanting:
        experiment.validate()
    progress.plan([experiment.name for experiment in wanting])
    return [make(experiment, progress) for experiment in wanting]


def make_member(member: Member, progress: Progress, callbacks: Sequence[Any] = ()) -> Run | None:
    """Make a member's runs and what they read; None on the ranks that have no part in the last of them.

    Args:
        callbacks: of Lightning, that watch its training.

    Raises:
        UserError: several processes were started for it while its inputs are not finished.
    """
    wanting = [e for e in store.unfinished_inputs(member.target) if e.directory != member.experiment.directory]
    if wanting and distributed():
        raise UserError(
            f"member {member.number} runs on several processes but its input {wanting[0].name} is not finished; "
            "make the inputs first, with `--inputs` in place of `member=...`"
        )
    for experiment in (*wanting, member.experiment, member.target):
        experiment.validate()
    for experiment in wanting:
        make(experiment, progress)
    if member.sweep:
        os.environ["WANDB_RUN_GROUP"] = member.sweep
    if rank() > 0:
        store.execute(member.experiment, callbacks=callbacks)
        return None
    make(member.experiment, progress, callbacks=callbacks)
    return make(member.target, progress)


def with_retries(work: Callable[[], None], words: Sequence[str], retries: int) -> None:
    """Do the work; where its job fails, begin again in a fresh process, `retries` times, under the same process id.

    Where several processes work on one member they cannot begin again one by one, so there it fails at once.
    """
    tried = int(os.environ.get(TRIED, "0"))
    try:
        work()
    except store.RunFailedError as error:
        if tried >= retries or distributed():
            raise
        if number := signals.noted():  # no time for it here
            raise SystemExit(signals.exit_code(number)) from error
        print(f"athanor: {error}; trying again ({tried + 1} of {retries})", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os.environ[TRIED] = str(tried + 1)
        for either in (signal.SIGUSR1, signal.SIGTERM):  # until the new process handles them they would kill it
            signal.signal(either, signal.SIG_IGN)
        os.execv(sys.executable, [sys.executable, "-m", "athanor", *words])


def distributed() -> bool:
    """Whether this process is one of several that a launcher started for one run."""
    return any(int(os.environ.get(name) or 1) > 1 for name in ("WORLD_SIZE", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"))
