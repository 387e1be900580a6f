"""The jobs in the queue, and those that have left it, with the runs they make: what squeue and sacct know and what runs
have written down, joined by the job's number. An element of an array is a job too, 12_3.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from athanor import catalog
from athanor.cluster.commands import call
from athanor.errors import UserError
from athanor.runs.context import METRICS
from athanor.runs.run import Run, list_runs

FOLDER = ".slurm"  # in the folder of runs: a record and a log for each job submitted, and copies of the code
TAIL = 16_384  # bytes at the end of a file that are looked at


@dataclass
class Job:
    """A job and what is known of its run."""

    id: str
    state: str  # as SLURM says it; of a job that SLURM has forgotten, the run's status
    name: str = ""
    fingerprint: str = ""
    directory: Path | None = None  # of the last of its runs that has begun
    makes: list[Path] = field(default_factory=list)  # the runs, in order
    ablation: str = ""
    member: str = ""  # of the ablation: its levels and seed
    reason: str = ""
    live: bool = False  # in the queue
    has: str = ""  # time until its limit, as SLURM writes it
    restarts: int = 0
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    needs: float | None = None  # seconds until the last step, at the pace of the last ones
    log: Path | None = None
    tail: list[str] = field(default_factory=list)
    submitted: float = 0.0

    @property
    def array(self) -> str:
        """The number of its array, or its own."""
        return self.id.partition("_")[0]

    def as_json(self) -> str:
        return json.dumps(asdict(self), default=str, ensure_ascii=False)


def listed(root: Path | None = None, runs: Sequence[Run] | None = None) -> list[Job]:
    """Every job of a folder of runs, the oldest first; where there is no SLURM, only what runs have written down.

    Args:
        runs: those of the folder that can be read; default all, of which none may be damaged.
    """
    root = root or catalog.runs_root()
    found = {job.id: job for job in _recorded(root, list_runs(root) if runs is None else runs)}
    if found and shutil.which("squeue"):
        _queued(found)
        _accounted([job for job in found.values() if not job.live and not job.state])
    for job in found.values():
        _look(job)
    return sorted(found.values(), key=lambda job: (job.submitted, _number(job.id)))


def live(root: Path) -> list[Job]:
    """Those in the queue; [] where there is no SLURM."""
    if not shutil.which("squeue"):
        return []
    found = {job.id: job for job in _recorded(root, list_runs(root))}
    _queued(found)
    return [job for job in found.values() if job.live]


def cancel(references: Sequence[str], root: Path | None = None) -> list[Job]:
    """Ends the jobs of these numbers, runs, experiments or ablations; a training saves itself first. Returns them.

    Raises:
        UserError: one of them names no job in the queue.
    """
    waiting = live(root or catalog.runs_root())
    chosen: dict[str, Job] = {}
    for reference in references:
        found = [job for job in waiting if _names(reference, job)]
        if not found:
            known = ", ".join(f"{job.id} ({job.name})" for job in waiting) or "none"
            raise UserError(f"no job in the queue is {reference!r} or makes such a run; there are: {known}")
        chosen |= {job.id: job for job in found}
    call("scancel", *chosen)
    return list(chosen.values())


def grouped(found: Sequence[Job]) -> dict[str, list[Job]]:
    """Jobs by what to call them: elements of an array that wait alike, none of them begun, are 12_[4-6,9]."""
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in found:
        alike = job.id != job.array and job.state == "PENDING" and job.step is None
        groups.setdefault((job.array, job.reason) if alike else (job.id,), []).append(job)
    return {group[0].id if len(group) == 1 else _array(group): group for group in groups.values()}


def ranges(numbers: Sequence[int]) -> str:
    """As SLURM writes them: 1-3,5."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _array(elements: Sequence[Job]) -> str:
    return f"{elements[0].array}_[{ranges([_number(job.id)[1] for job in elements])}]"


def _names(reference: str, job: Job) -> bool:
    if re.fullmatch(r"\d+(_\d+)?", reference):
        return reference in (job.id, job.array)
    if job.ablation and reference.removeprefix("ablation=").removeprefix("ablations/") == job.ablation:
        return True
    if job.makes and Path(reference).is_dir():
        return Path(reference).resolve() in [directory.resolve() for directory in job.makes]
    name, _, beginning = reference.rpartition("/")
    return job.name == reference or bool(name and job.name == name and job.fingerprint.startswith(beginning))


def _recorded(root: Path, runs: Sequence[Run]) -> Iterator[Job]:
    """Jobs by what was written at their submission, then by what the attempts of runs say."""
    seen = set()
    for path in (root / FOLDER).glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        for job in _of_record(record):
            seen.add(job.id)
            yield job
    for run in runs:
        for attempt in run.manifest.get("attempts", ()):
            if (slurm := attempt.get("slurm")) and slurm["job"] not in seen:
                seen.add(slurm["job"])
                yield Job(
                    slurm["job"], "", run.name, run.fingerprint, run.directory, makes=[run.directory],
                    submitted=attempt["started"],
                )  # fmt: skip


def _of_record(record: dict[str, Any]) -> Iterator[Job]:
    """The job that a record tells of, or each element of the array."""
    elements = record.get("elements") or {"": record}
    for number, one in elements.items():
        alone = [one["directory"]] if one["directory"] else []
        makes = [Path(directory) for directory in one.get("makes", alone)]
        begun = [directory for directory in makes if (directory / "manifest.json").is_file()]
        log = Path(record["log"])
        yield Job(
            id=f"{record['job']}_{number}" if number else record["job"],
            state="",
            name=one["name"],
            fingerprint=one["fingerprint"],
            directory=begun[-1] if begun else makes[0] if makes else None,
            makes=makes,
            ablation=record.get("ablation", ""),
            member=f"{number}: {one['title']}" if number else "",
            log=log.with_name(f"{log.stem}_{number}.txt") if number else log,
            submitted=record["submitted"],
        )


def _queued(found: dict[str, Job]) -> None:
    """What squeue says of those jobs."""
    for line in call("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%L").splitlines():
        number, state, reason, left = line.split("|")
        if job := found.get(number):
            job.live, job.state, job.has = True, state, left if state == "RUNNING" else ""
            job.reason = "" if reason == "None" else reason


def _accounted(jobs: Sequence[Job]) -> None:
    """What sacct says of jobs that have left the queue, where accounting is kept."""
    if not jobs or not shutil.which("sacct"):
        return
    numbers = ",".join(job.id for job in jobs)
    try:
        lines = call("sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={numbers}", "--format=JobID,State")
    except UserError:  # no accounting storage
        return
    states = dict(line.split("|")[:2] for line in lines.splitlines())
    for job in jobs:
        job.state = states.get(job.id, "").partition(" ")[0]


def _look(job: Job) -> None:
    """Fills in what the run's own files say."""
    if job.log and job.log.is_file():
        job.tail = [line for line in end_of(job.log).splitlines() if line.strip()][-2:]
    if job.directory is None or not (job.directory / "manifest.json").is_file():
        job.state = job.state or ("ENDED" if job.log and job.log.is_file() else "GONE")
        return
    run = Run(job.directory)
    attempts = run.manifest["attempts"]
    mine = [attempt for attempt in attempts if (attempt.get("slurm") or {}).get("job") == job.id]
    job.restarts = mine[-1]["slurm"]["restarts"] if mine else 0
    if not mine or mine[-1] is attempts[-1]:
        job.state = job.state or run.status.upper()
    else:  # another job goes on with it
        job.state = job.state or mine[-1]["status"].replace("running", "interrupted").upper()
    job.steps = run.manifest["config"].get("max_steps")
    job.step, job.loss, needs = standing(job.directory, job.steps)
    job.needs = needs if job.live else None


class Standing(NamedTuple):
    """How far a training is."""

    step: int | None = None
    loss: float | None = None
    needs: float | None = None  # seconds until the last step, at the pace of the last ones


def standing(directory: Path, steps: int | None) -> Standing:
    """What the end of a run's metrics says."""
    events = [event for event in _events(directory / METRICS) if isinstance(event.get("step"), int)]
    if not events:
        return Standing()
    first, last = events[0], events[-1]
    loss = next((event["train/loss"] for event in reversed(events) if "train/loss" in event), None)
    if not steps or last["step"] <= first["step"]:
        return Standing(last["step"], loss)
    pace = (last["time"] - first["time"]) / (last["step"] - first["step"])
    return Standing(last["step"], loss, max(steps - last["step"], 0) * pace)


def _events(path: Path) -> Iterator[dict[str, Any]]:
    for line in end_of(path).splitlines() if path.is_file() else ():
        try:
            event = json.loads(line)
        except ValueError:  # cut off, at either end
            continue
        if isinstance(event, dict):
            yield event


def end_of(path: Path) -> str:
    """The last of a file that grows."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - TAIL, 0))
        return file.read().decode("utf-8", errors="replace")


def _number(job: str) -> tuple[int, ...]:
    return tuple(int(part) for part in job.split("_"))
