"""Where the parts of a corpus are cleaned (`athanor.corpus.parts`): processes of this machine, an array of SLURM, Ray.

Each takes numbers of parts and sees to it that they are made, in any order; it says which as they are done. They share
a folder and nothing else, so that a part can be made anywhere, by any attempt.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from athanor.corpus import parts
from athanor.corpus.normalize import rare
from athanor.corpus.parts import PART_BYTES, Part
from athanor.corpus.shards import cores
from athanor.errors import UserError

if TYPE_CHECKING:
    from athanor.config import Experiment
    from athanor.corpus.prepare import PrepareDocuments

WORTH_PROCESSES = 64 << 20  # bytes of files from which processes of their own are worth their start
FOLDER = ".parts"  # in the folder of runs


class Executor(Protocol):
    part_bytes: int

    def make(self, work: "Work") -> Iterator[Part]:
        """Makes what is missing, and yields each part once it is there."""
        ...


@dataclass(frozen=True)
class Work:
    """The parts of an experiment and where they are made."""

    job: dict[str, Any]  # the node of PrepareDocuments
    parts: list[Part]
    folder: Path
    part_bytes: int = PART_BYTES

    def missing(self) -> list[Part]:
        return [part for part in self.parts if not parts.is_made(self.folder, part, self.key(part))]

    def key(self, part: Part) -> str:
        return parts.key_of(part, self.part_bytes)

    def make(self, part: Part) -> Part:
        """In this process; nothing where it is there already."""
        from athanor.config import build

        if not parts.is_made(self.folder, part, self.key(part)):
            parts.make(build(self.job), part, self.folder, self.key(part))
        return part


class Local:
    """Args:
    workers: processes; None is one on each core, or none of their own where the files are few.
    part_bytes: of files, compressed, that a part has at least.
    """

    def __init__(self, workers: int | None = None, part_bytes: int = PART_BYTES):
        self.workers = workers
        self.part_bytes = checked(part_bytes)
        if workers is not None and workers < 1:
            raise UserError(f"executor.workers={workers} must be at least 1.")

    def make(self, work: Work) -> Iterator[Part]:
        missing = work.missing()
        workers = min(self.count(work), len(missing))
        if workers < 2:
            yield from map(work.make, missing)
            return
        pool = ProcessPoolExecutor(workers, get_context("spawn"))
        try:
            for done in as_completed([pool.submit(work.make, part) for part in missing]):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def count(self, work: Work) -> int:
        enough = sum(part.size for part in work.parts) >= WORTH_PROCESSES
        return self.workers or (cores() if enough else 1)


class Slurm(Local):
    """The parts are made by the elements of an array that `athanor submit prepare` sends; element k of n makes every
    n-th part from the k-th on. The job after the array, or this command by hand, makes what is still missing, here.

    Args:
        elements: of the array, at most.
        at_once: elements that run at a time; None leaves it to SLURM.
    """

    def __init__(
        self, elements: int = 64, at_once: int | None = None, workers: int | None = None, part_bytes: int = PART_BYTES
    ):
        super().__init__(workers, part_bytes)
        if elements < 1 or (at_once is not None and at_once < 1):
            raise UserError(f"executor.elements={elements} and executor.at_once={at_once} must be at least 1.")
        self.elements, self.at_once = elements, at_once


class Ray:
    """Tasks of a Ray cluster whose nodes see the same files and folder of runs.

    Args:
        address: of the cluster; None starts one on this machine.
        cpus: that a part takes.
    """

    def __init__(self, address: str | None = None, cpus: int = 1, part_bytes: int = PART_BYTES):
        self.address, self.cpus, self.part_bytes = address, cpus, checked(part_bytes)

    def make(self, work: Work) -> Iterator[Part]:
        ray = rare("ray", "ray")
        started = not ray.is_initialized()
        if started:
            environment = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
            ray.init(self.address, runtime_env={"env_vars": environment}, log_to_driver=False)
        try:
            task = ray.remote(num_cpus=self.cpus, max_retries=3)(Work.make)
            waiting = [task.remote(work, part) for part in work.missing()]
            while waiting:
                ended, waiting = ray.wait(waiting)
                yield from ray.get(ended)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        finally:
            if started:
                ray.shutdown()


def checked(part_bytes: int) -> int:
    if part_bytes < 1:
        raise UserError(f"executor.part_bytes={part_bytes} must be at least 1.")
    return part_bytes


def executor_of(experiment: "Experiment") -> Executor:
    from athanor.config import build

    return build(experiment.config.get("executor") or {"_target_": f"{__name__}.Local"})


def work_of(experiment: "Experiment", job: "PrepareDocuments", executor: Executor) -> Work:
    folder = Path(experiment.config["paths"]["runs"]) / FOLDER / experiment.fingerprint
    divided = parts.divided(job.sources, executor.part_bytes)
    return Work(experiment.config["job"], divided, folder, executor.part_bytes)


def make_some(experiment: "Experiment", first: int, step: int, done: Callable[[int, int], None]) -> int:
    """Makes every `step`-th part from the `first` on, in this process: what an element of an array does.

    Args:
        done: called with how many are there, and how many that will be.

    Returns:
        how many parts that are.

    Raises:
        UserError: the experiment does not prepare documents.
    """
    from athanor.config import build
    from athanor.corpus.prepare import PrepareDocuments

    job = build(experiment.config["job"])
    if not isinstance(job, PrepareDocuments):
        raise UserError(f"{experiment.name} has no parts: only jobs that prepare documents have.")
    work = work_of(experiment, job, executor_of(experiment))
    mine = work.parts[first::step]
    for number, part in enumerate(mine, 1):
        work.make(part)
        done(number, len(mine))
    return len(mine)
