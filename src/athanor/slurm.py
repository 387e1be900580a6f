"""This process as a task of a SLURM job: which one of how many, and what a restart of the job means for its run.

Read from the environment that SLURM sets; nothing is asked of its daemons.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from athanor.errors import UserError

CLAIM = ".claim"  # in a run's folder: the job and restart that works on it
PATIENCE = 300.0  # seconds for an earlier attempt of this job to notice that it has been restarted elsewhere
DEATHS = 3  # attempts in a row that die without a word at the same step
REQUEUES = 50


class Task(NamedTuple):
    """One process of a job step: what `srun` starts, once for each device."""

    rank: int
    local_rank: int
    node: int
    tasks: int
    nodes: int
    per_node: int
    root: str  # name of the first node


def job_id() -> str | None:
    """Of the job that this process is in, as squeue shows it: of an array's task 12_3, not its inner number."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID")


def restarts() -> int:
    """How often the job has been put back into the queue."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def described() -> dict[str, Any] | None:
    """The job as a manifest keeps it; None outside of one."""
    if (job := job_id()) is None:
        return None
    submitted = {name: os.environ.get(f"ATHANOR_{name.upper()}") for name in ("cluster", "script")}
    return {"job": job, "restarts": restarts(), "partition": os.environ.get("SLURM_JOB_PARTITION"), **submitted}


def task() -> Task | None:
    """This process, if `srun` started it.

    Raises:
        UserError: the nodes have different numbers of tasks.
    """
    seen = os.environ.get
    if seen("SLURM_STEP_ID") is None or seen("SLURM_STEP_NUM_TASKS") is None:
        return None
    layout = seen("SLURM_STEP_TASKS_PER_NODE", "1")
    if not (match := re.fullmatch(r"(\d+)(\(x\d+\))?", layout)):
        raise UserError(f"SLURM placed {layout} tasks on the nodes; --ntasks-per-node=N places as many on each")
    return Task(
        rank=int(os.environ["SLURM_PROCID"]),
        local_rank=int(os.environ["SLURM_LOCALID"]),
        node=int(os.environ["SLURM_NODEID"]),
        tasks=int(os.environ["SLURM_STEP_NUM_TASKS"]),
        nodes=int(seen("SLURM_STEP_NUM_NODES", "1")),
        per_node=int(match[1]),
        root=first_node(os.environ["SLURM_STEP_NODELIST"]),
    )


def first_node(nodes: str) -> str:
    """Of a list as SLURM writes it: gpu[07-09,12],cpu1 -> gpu07."""
    match = re.match(r"([^,\[]+)(?:\[([^,\-\]]+)[^\]]*\]([^,\[]*))?", nodes)
    assert match, nodes
    return "".join(part or "" for part in match.groups())


def port() -> int:
    """Where the ranks of this job step meet: another one for each job, restart and step, below the ephemeral ports."""
    numbers = (os.environ["SLURM_JOB_ID"], restarts(), os.environ.get("SLURM_STEP_ID") or 0)
    job, restart, step = (int(number) for number in numbers)
    return 12000 + (job * 37 + restart * 7 + step) % 12000


def check_tasks(nodes: int, devices: int) -> None:
    """The training wants `devices` processes on each of `nodes`: SLURM must have started exactly those.

    Raises:
        UserError: it has not; in ranks other than 0, which would only repeat it, SystemExit(2).
    """
    if job_id() is None:
        return
    here = task()
    flags = f"--nodes={nodes} --ntasks-per-node={devices}"
    if here is None:
        if int(os.environ.get("SLURM_NTASKS") or 1) > 1 or nodes > 1:
            raise UserError(
                f"this job has {os.environ.get('SLURM_NTASKS', 'several')} tasks but nothing has started them: "
                "put `srun` before `athanor`, as slurm/train.sbatch does"
            )
        return
    if (here.nodes, here.per_node) == (nodes, devices):
        return
    if here.rank > 0:
        raise SystemExit(2)
    raise UserError(
        f"SLURM started {here.per_node} task(s) on each of {here.nodes} node(s), but the experiment has "
        f"cluster.nodes={nodes} cluster.devices={devices}: submit with {flags}, or say "
        f"cluster.nodes={here.nodes} cluster.devices={here.per_node}"
    )


# Restarts


def claim(directory: Path, *, holding: bool = False) -> None:
    """This restart of the job works on a run from now on; an earlier one that a lost node still runs gives way.

    Args:
        holding: this process has the run's lock: whatever other job has claimed it is gone.
    """
    if job_id() is not None and (holding or _claimed(directory)[0] in (None, job_id())):
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / f"{CLAIM}.{os.getpid()}"
        temporary.write_text(f"{job_id()} {restarts()}\n")
        temporary.replace(directory / CLAIM)


def release(directory: Path) -> None:
    """The claim ends with the attempt."""
    if job_id() is not None and _claimed(directory) == (job_id(), restarts()):
        (directory / CLAIM).unlink(missing_ok=True)


def superseded(directory: Path) -> bool:
    """Whether a later restart of this very job has claimed the run."""
    job, later = _claimed(directory)
    return job is not None and job == job_id() and later > restarts()


def patience(directory: Path) -> float:
    """Seconds to wait for a run that another process works on: only one of this very job will give way."""
    return PATIENCE if restarts() and _claimed(directory) == (job_id(), restarts()) else 0.0


def _claimed(directory: Path) -> tuple[str | None, int]:
    try:
        job, restart = (directory / CLAIM).read_text().split()
        return job, int(restart)
    except (OSError, ValueError):
        return None, 0


def check_restarts(attempts: Sequence[dict[str, Any]], step: int) -> None:
    """Refuses what would go on for ever.

    Args:
        attempts: those of the run's manifest, before this one.
        step: where this one would begin.

    Raises:
        UserError: the job has been restarted too often, or its last attempts all died where this one would begin.
    """
    if job_id() is None:
        return
    limit = int(os.environ.get("ATHANOR_REQUEUES") or REQUEUES)
    if restarts() > limit:
        raise UserError(
            f"job {job_id()} has been restarted {restarts()} times, and cluster.slurm.requeues allows {limit}: "
            "see why, then submit it again; it goes on where it is"
        )
    last = [attempt for attempt in attempts if (attempt.get("slurm") or {}).get("job") == job_id()][-DEATHS:]
    if len(last) == DEATHS and all(attempt.get("died") and attempt.get("from_step") == step for attempt in last):
        raise UserError(
            f"job {job_id()} has died {DEATHS} times in a row without a step after {step}, and would again: "
            "see its log (out of memory?), then submit it again; it goes on where it is"
        )
