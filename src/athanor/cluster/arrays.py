"""An ablation as jobs: what all members read, the members as one array, and the report once they have ended.

Members that are finished or in the queue are left out, so the same command sends only what is missing. An element of
the array is `athanor sweep ablation=NAME member=K`, in the code and by the numbers of its submission.

A search is such an array of workers: each is `athanor sweep search=NAME worker=K` and takes trials until none is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from athanor.cluster import jobs
from athanor.cluster.submission import Submission, check, compose, devices_of, settings_of
from athanor.errors import UserError
from athanor.runs import store
from athanor.sweeps import ablation, search
from athanor.sweeps.ablation import Ablation, Member
from athanor.sweeps.search import Search
from athanor.sweeps.trials import Trials


@dataclass(frozen=True)
class Array:
    """An ablation, ready to be sent; `jobs` is empty where nothing is to be done."""

    ablation: Ablation
    jobs: dict[str, Submission]  # inputs, members, report
    waiting: dict[str, str]  # jobs in the queue that some of these come after
    finished: list[Member]
    queued: list[Member]
    sent: list[Member]

    def elements(self, job: str) -> str:
        """The array as squeue writes it while it waits."""
        return f"{job}_[{jobs.ranges([member.number for member in self.sent])}]"


def prepare(name: str, overrides: Sequence[str], *, at_once: int | None = None, retries: int = 1) -> Array:
    """The jobs that an ablation still wants.

    Args:
        overrides: of every member.
        at_once: the most members that run at a time.
        retries: how often a member whose job fails or is killed begins again.

    Raises:
        UserError: a member cannot run, with the problems of all; the cluster is not one of SLURM; the budget is spent.
    """
    for option, number, least in (("at-once", at_once, 1), ("retries", retries, 0)):
        if number is not None and number < least:
            raise UserError(f"--{option} {number} must be at least {least}")
    composed = ablation.load(name, overrides)
    composed.validate(_check_cluster)
    finished = [member for member in composed.members if store.is_finished(member.target)]
    if len(finished) == len(composed):
        return Array(composed, {}, {}, finished, [], [])
    if reason := composed.over_budget():
        raise UserError(f"ablation {composed.name}: {reason}; raise budget.hours in its file")

    inputs = composed.inputs()
    shared = [entry.directory for entry in inputs]
    composed.validate(lambda member: _check_runs(member, shared, memory=member.number <= len(composed.cells)))
    for entry in inputs:
        check(entry, upstream=shared)

    root = Path(composed.first.config["paths"]["runs"])
    queue = {directory: job for job in jobs.live(root) for directory in job.makes}
    queued: list[Member] = []
    sent: list[Member] = []
    for member in composed.members:
        if not store.is_finished(member.target):
            (queued if set(member.directories) & set(queue) else sent).append(member)
    if not sent:
        return Array(composed, {}, {}, finished, queued, [])

    words = (f"ablation={composed.name}", *([] if retries == 1 else ["--retries", str(retries)]), *overrides)
    title = f"ablations/{composed.name}"

    def job(script: str, words: Sequence[str], member: Member = sent[0], **keywords: Any) -> Submission:
        own = member.experiment
        one = compose(own, words, script, settings_of(own), overrides, title=title, **keywords)
        one.environment["ATHANOR_RETRIES"] = str(retries)
        return one

    def record(name: str, **entries: Any) -> dict[str, Any]:
        return {"ablation": composed.name, "name": name, "fingerprint": "", "directory": None, **entries}

    found: dict[str, Submission] = {}
    waiting = {queue[entry.directory].id: queue[entry.directory].id for entry in inputs if entry.directory in queue}
    reads = tuple(waiting)
    if missing := [entry for entry in inputs if entry.directory not in queue]:
        found["inputs"] = job(
            "prepare", ("sweep", "--inputs", *words), after=reads, gpus=any(e.kind != "prepare" for e in missing),
            record=record(f"{title}: inputs", makes=[str(entry.directory) for entry in missing]),
        )  # fmt: skip
        reads = ("inputs",)
    array = jobs.ranges([member.number for member in sent]) + (f"%{at_once}" if at_once else "")
    gpus = any(entry.kind != "prepare" for member in sent for entry in (member.experiment, member.target))
    elements = {str(member.number): _element(member) for member in sent}
    found["members"] = job("sweep", words, after=reads, gpus=gpus, array=array, record=record(title, elements=elements))
    for member in sent[1:]:
        if job("sweep", words, member, gpus=gpus, array=array).flags != found["members"].flags:
            raise UserError(
                f"ablation {composed.name}: members {sent[0].number} and {member.number} want different nodes, devices "
                "or settings of cluster.slurm, but the elements of an array are alike; give every member what the "
                "largest of them needs"
            )
    others = {queue[path].array for member in queued for path in member.directories if path in queue}
    found["report"] = job(
        "prepare", ("report", f"ablation={composed.name}", *overrides), after=("members", *sorted(others)),
        dependency="afterany", gpus=False, record=record(f"{title}: report"),
    )  # fmt: skip
    return Array(composed, found, waiting | {number: number for number in others}, finished, queued, sent)


@dataclass(frozen=True)
class Workers:
    """A search, ready to be sent; `jobs` is empty where nothing is to be done."""

    search: Search
    jobs: dict[str, Submission]  # inputs, workers, report
    waiting: dict[str, str]
    unfinished: int  # trials
    queued: list[str]  # workers that are in the queue already
    workers: int


def prepare_search(name: str, overrides: Sequence[str], *, workers: int = 4, retries: int = 1) -> Workers:
    """The jobs that a search still wants, its journal made.

    Args:
        overrides: of every trial.
        workers: elements of the array.
        retries: how often a trial that fails or dies begins again.

    Raises:
        UserError: an end of the space cannot run, or the cluster is not one of SLURM or gives a worker several tasks.
    """
    for option, number, least in (("workers", workers, 1), ("retries", retries, 0)):
        if number < least:
            raise UserError(f"--{option} {number} must be at least {least}")
    composed = search.load(name, overrides)
    composed.validate(_check_worker)
    trials = Trials(composed, create=True)
    queue = jobs.live(composed.root)
    title = f"search/{composed.name}"
    if queued := [job.id for job in queue if job.ablation == title and job.member]:
        return Workers(composed, {}, {}, trials.unfinished(), queued, 0)
    trials.renew()
    if not (unfinished := trials.unfinished()):
        if reason := trials.over_budget():
            raise UserError(f"search {composed.name}: {reason}; raise budget.hours in its file")
        return Workers(composed, {}, {}, 0, [], 0)

    first = composed.first
    inputs = store.unfinished_inputs(first)
    shared = [entry.directory for entry in inputs]
    for entry in inputs:
        check(entry, upstream=shared)
    member = next(composed.members(0, {key: part.ends()[0] for key, part in composed.space.items()}))
    check(member.experiment, [*shared, *(entry.directory for entry in store.unfinished_inputs(member.experiment))])
    workers = min(workers, unfinished)
    words = (f"search={composed.name}", *([] if retries == 1 else ["--retries", str(retries)]), *overrides)

    def job(script: str, words: Sequence[str], **keywords: Any) -> Submission:
        one = compose(first, words, script, settings_of(first), overrides, title=title, **keywords)
        one.environment["ATHANOR_RETRIES"] = str(retries)
        return one

    def record(name: str, **entries: Any) -> dict[str, Any]:
        return {"ablation": title, "name": name, "fingerprint": "", "directory": None, **entries}

    found: dict[str, Submission] = {}
    making = {directory: job.id for job in queue for directory in job.makes}
    waiting = {making[directory]: making[directory] for directory in shared if directory in making}
    reads = tuple(waiting)
    if missing := [entry for entry in inputs if entry.directory not in making]:
        found["inputs"] = job(
            "prepare", ("sweep", "--inputs", *words), after=reads, gpus=any(e.kind != "prepare" for e in missing),
            record=record(f"{title}: inputs", makes=[str(entry.directory) for entry in missing]),
        )  # fmt: skip
        reads = ("inputs",)
    elements = {
        str(number): {"title": "worker", "name": first.name, "fingerprint": "", "directory": None}
        for number in range(1, workers + 1)
    }
    found["workers"] = job(
        "sweep", words, after=reads, gpus=any(e.kind != "prepare" for e in (*inputs, first)),
        array=jobs.ranges(range(1, workers + 1)), record=record(title, elements=elements),
    )  # fmt: skip
    found["report"] = job(
        "prepare", ("report", f"search={composed.name}", *overrides), after=("workers",), dependency="afterany",
        gpus=False, record=record(f"{title}: report"),
    )  # fmt: skip
    return Workers(composed, found, waiting, unfinished, [], workers)


def _check_worker(member: Member) -> None:
    _check_cluster(member)
    cluster = member.experiment.config["cluster"]
    if member.experiment.kind == "train" and cluster["nodes"] * devices_of(cluster) > 1:
        raise UserError("a search's worker has one device; say cluster.nodes=1 cluster.devices=1")


def _element(member: Member) -> dict[str, Any]:
    """What `athanor jobs` is to know of it."""
    return {
        "title": member.title,
        "name": member.experiment.name,
        "fingerprint": member.experiment.fingerprint,
        "directory": str(member.experiment.directory),
        "makes": [str(directory) for directory in member.directories],
    }


def _check_cluster(member: Member) -> None:
    settings_of(member.experiment)
    if member.experiment.kind == "train":
        devices_of(member.experiment.config["cluster"])


def _check_runs(member: Member, shared: Sequence[Path], *, memory: bool) -> None:
    """Whatever can be seen of a member before it starts.

    Args:
        shared: directories of runs that are made before the members.
        memory: whether to plan it, too.
    """
    if store.is_finished(member.target):
        return
    cluster = member.experiment.config["cluster"]
    upstream = [*shared, member.experiment.directory]
    if member.experiment.kind != "train" or cluster["nodes"] * devices_of(cluster) == 1:  # it makes them itself
        for experiment in (member.experiment, member.target):
            upstream += [entry.directory for entry in store.unfinished_inputs(experiment)]
    if not store.is_finished(member.experiment):
        check(member.experiment, upstream, memory=memory)
    if member.measured:
        check(member.measured, upstream)
