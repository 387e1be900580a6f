"""Sends experiments to SLURM, after looking for whatever would make them fail: better now than after hours in a queue.

An experiment's `cluster` says what it needs of the machine; `cluster.slurm` (configs/cluster/NAME.yaml) what this
cluster wants to hear. Both become flags of sbatch, and the script in slurm/ does the rest. For ablations see
`athanor.cluster.arrays`.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from athanor import catalog, config, pipeline
from athanor.cluster import jobs, snapshot
from athanor.cluster.commands import call
from athanor.config import Experiment
from athanor.errors import UserError
from athanor.runs import store
from athanor.runs.files import write_json
from athanor.runs.run import Run

SPARE = 1 << 30  # bytes that must be free besides what a run is known to need
ENTRIES = {"partition": "partition", "account": "account", "qos": "qos", "time": "time", "memory": "mem"}
TIME = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}")
MEMORY = re.compile(r"\d+[KMGT]?")


@dataclass(frozen=True)
class Submission:
    """One job, ready to be sent."""

    experiment: Experiment
    words: tuple[str, ...]  # of `athanor`
    script: str
    flags: tuple[str, ...]
    environment: dict[str, str]
    cluster: str
    after: tuple[str, ...] = field(default=())  # keys of the submissions that must have ended
    dependency: str = "afterok"  # how they must have; or "afterany"
    record: dict[str, Any] = field(default_factory=dict)  # what `jobs` is to know, where it is not the experiment's

    @property
    def title(self) -> str:
        return f"{self.experiment.name}/{self.experiment.fingerprint}"


def prepare(verb: str, name: str, overrides: Sequence[str]) -> Submission | None:
    """The job of one experiment; None if its run is finished.

    Raises:
        UserError: it cannot run, is in the queue already, or its cluster is not one of SLURM.
    """
    experiment = config.load(name, overrides)
    settings = settings_of(experiment)
    if store.is_finished(experiment):
        return None
    for job in jobs.live(Path(experiment.config["paths"]["runs"])):
        if experiment.directory in job.makes:
            raise UserError(
                f"job {job.id} ({job.state.lower()}) is for {name}/{experiment.fingerprint} already: see "
                f"`athanor jobs`, or end it with `athanor cancel {job.id}`"
            )
    check(experiment, upstream=())
    script = "train" if verb == "train" else "prepare"
    words = (*([verb] if verb != script else []), f"experiment={name}", *overrides)
    return compose(experiment, words, script, settings, overrides)


def prepare_pipeline(name: str, overrides: Sequence[str]) -> tuple[dict[str, Submission], dict[str, str]]:
    """(jobs of the steps yet to be made and, as "report", of the page; jobs that are in the queue already, by step)."""
    composed = pipeline.load(name, overrides)
    pipeline.validate(composed)
    root = Path(next(iter(composed.steps.values())).config["paths"]["runs"])
    queued = {directory: job.id for job in jobs.live(root) for directory in job.makes}
    directories = {experiment.directory: step for step, experiment in composed.steps.items()}
    found: dict[str, Submission] = {}
    waiting: dict[str, str] = {}
    for step, experiment in composed.steps.items():
        settings = settings_of(experiment)
        if store.is_finished(experiment):
            continue
        if experiment.directory in queued:
            waiting[step] = queued[experiment.directory]
            continue
        check(experiment, upstream=tuple(directories))
        script = "train" if experiment.kind == "train" else "prepare"
        verb = [experiment.kind] if experiment.kind not in (script, "train") else []
        read = [directories.get(entry.paths[0]) for entry in experiment.inputs.values() if entry.kind == "run"]
        after = tuple(dict.fromkeys(other for other in read if other in found or other in waiting))
        words = (*verb, f"experiment={experiment.name}", *experiment.overrides)
        found[step] = compose(experiment, words, script, settings, overrides, after=after)
    if found or waiting:
        last = next(reversed(composed.steps.values()))
        ends = (*found, *waiting)
        words = ("pipeline", f"experiment={name}", *overrides)
        found["report"] = compose(
            last, words, "prepare", settings_of(last), overrides, after=ends, title=name, gpus=False,
            record={"name": "report", "directory": None},
        )  # fmt: skip
    return found, waiting


def send(submissions: dict[str, Submission], waiting: dict[str, str] | None = None) -> dict[str, str]:
    """Sends them, in order; returns the number of each job. If one is refused, those sent before it are cancelled.

    Args:
        waiting: jobs that are in the queue already and that some of these come after.
    """
    runs = Path(next(iter(submissions.values())).experiment.config["paths"]["runs"])
    folder = runs / jobs.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    code = snapshot.take(folder / "code")
    numbers: dict[str, str] = {}
    for key, one in submissions.items():
        known = {**(waiting or {}), **numbers}
        flags = list(one.flags)
        if one.after:
            ids = ":".join(known[other] for other in one.after)
            flags += [f"--dependency={one.dependency}:{ids}", "--kill-on-invalid-dep=yes"]
        words = ("sbatch", "--parsable", *flags, str(code / one.script), *one.words)
        try:
            number = call(*words, environment={**one.environment, "ATHANOR_CODE": str(code)}).strip().partition(";")[0]
        except UserError:
            if numbers:
                call("scancel", *numbers.values())
            raise
        numbers[key] = number
        described = {
            "job": number,
            "name": one.experiment.name,
            "fingerprint": one.experiment.fingerprint,
            "directory": str(one.experiment.directory),
            "cluster": one.cluster,
            "script": one.script,
            "command": shlex.join(words),
            "code": str(code),
            "log": str(folder / f"{number}.txt"),
            "submitted": time.time(),
            **one.record,
        }
        write_json(folder / f"{number}.json", described)
    return numbers


def command(one: Submission) -> str:
    """The call of sbatch, for people."""
    set_ = [f"{name}={shlex.quote(value)}" for name, value in one.environment.items() if value]
    after = [f"--dependency={one.dependency}:{':'.join(f'<{key}>' for key in one.after)}"] if one.after else []
    return " ".join((*set_, shlex.join(("sbatch", *one.flags, *after, one.script, *one.words))))


def check(experiment: Experiment, upstream: Sequence[Path], *, memory: bool = True) -> None:
    """Whatever can be seen before a job starts: config, inputs, disk; of a training also what its parts make of each
    other, and its memory, where the cluster's config says what a device has.

    Args:
        upstream: directories of runs that other jobs make first.
        memory: whether to plan it, too.

    Raises:
        UserError: something is wrong.
    """
    experiment.validate()
    missing = [entry for entry in store.unfinished_inputs(experiment) if entry.directory not in upstream]
    if missing:
        where = next((word for word in experiment.overrides if word.startswith("cluster=")), "cluster=NAME")
        lines = [f"{one.name} ({one.fingerprint}): athanor submit {one.command[8:]} {where}" for one in missing]
        raise UserError(
            "\n  - ".join((f"{experiment.name} needs runs that are not finished; make them first:", *lines))
        )
    needed = SPARE
    for name, entry in experiment.inputs.items():
        if entry.kind == "run" and entry.paths[0] not in upstream:
            run = Run(entry.paths[0])
            if run.manifest["status"] != "finished":
                raise UserError(f"inputs.{name}: {run.id} is {run.status}; finish it with `{run.command}`")
            if absent := run.absent():
                raise UserError(
                    f"{run.id} lacks {absent[0]} or it is cut short; remake it with `{run.command} --force`"
                )
            weights = run.manifest["outputs"].get("model.safetensors", {}).get("bytes", 0)
            if experiment.kind == "train":  # weights and two moments, in each checkpoint and in one being written
                needed += 3 * weights * (sum(experiment.config["checkpoint"].get(k, 0) for k in ("keep", "best")) + 1)
    if experiment.kind == "train":
        from athanor.planning.rehearsal import check_memory, rehearse

        rehearse(experiment)
        cluster = experiment.config["cluster"]
        if memory and cluster["slurm"].get("memory" if cluster["accelerator"] == "cpu" else "gpu_type"):
            check_memory(experiment)
    runs = Path(experiment.config["paths"]["runs"])
    present = next(folder for folder in (runs, *runs.parents) if folder.exists())
    if (free := shutil.disk_usage(present).free) < needed:
        raise UserError(
            f"{present} has {free / 1e9:.1f} GB free, and this may write {needed / 1e9:.1f} GB: make room, or set "
            "paths.runs to a folder elsewhere"
        )


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """`cluster.slurm`, with everything that it may leave out."""
    from athanor.signatures import signature

    cluster = experiment.config["cluster"]
    if not isinstance(cluster.get("slurm"), dict):
        names = [
            path.stem for path in sorted((catalog.source() / "configs/cluster").glob("*.yaml"))
            if re.search(r"(?m)^slurm:|defaults:.*\bslurm\b", path.read_text(encoding="utf-8"))
        ]  # fmt: skip
        raise UserError(
            f"{experiment.name}'s cluster is not one of SLURM; say cluster={' or cluster='.join(names)}, or copy "
            "configs/cluster/slurm.yaml under your cluster's name"
        )
    experiment.validate()
    known = dict.fromkeys(signature("athanor.schema.slurm").parameters)
    settings = {**known, "requeues": 50, "signal_seconds": 120, "modules": [], "options": [], **cluster["slurm"]}
    for key, pattern, example in (("time", TIME, '"1-12:00:00" or "90", minutes'), ("memory", MEMORY, "200G")):
        if settings[key] is not None and not pattern.fullmatch(settings[key]):
            raise UserError(f"cluster.slurm.{key}={settings[key]} is not as SLURM writes it: {example}")
    for key, least in (("requeues", 0), ("signal_seconds", 10), ("cpus_per_task", 1)):
        if settings[key] is not None and settings[key] < least:
            raise UserError(f"cluster.slurm.{key}={settings[key]} must be at least {least}")
    return settings


def devices_of(cluster: dict[str, Any]) -> int:
    devices = cluster["devices"]
    if isinstance(devices, list):
        return len(devices)
    if not str(devices).isdigit() or int(devices) < 1:
        raise UserError(
            f"cluster.devices={devices}: SLURM needs to know how many on each node, such as cluster.devices=8"
        )
    return int(devices)


def compose(
    experiment: Experiment,
    words: Sequence[str],
    script: str,
    settings: dict[str, Any],
    overrides: Sequence[str],
    *,
    after: tuple[str, ...] = (),
    dependency: str = "afterok",
    title: str = "",
    gpus: bool | None = None,
    array: str = "",
    record: dict[str, Any] | None = None,
) -> Submission:
    """A job on the experiment's cluster, and unless said otherwise for its run.

    Args:
        words: of `athanor`, as the script takes them.
        script: train, sweep or prepare, in slurm/; prepare is for one task.
        title: in SLURM's own lists; the experiment's name if empty.
        gpus: whether its tasks want them; by what the experiment is, if None.
        array: the numbers of its elements, as `--array` takes them.
    """
    cluster = experiment.config["cluster"]
    train = experiment.kind == "train" and script != "prepare"
    gpus = cluster["accelerator"] != "cpu" and (experiment.kind != "prepare" if gpus is None else gpus)
    nodes, devices = (cluster["nodes"], devices_of(cluster)) if train else (1, 1)
    runs = Path(experiment.config["paths"]["runs"])
    flags = [
        f"--job-name={title or experiment.name}",
        f"--chdir={catalog.project()}",
        f"--output={runs / jobs.FOLDER / ('%A_%a.txt' if array else '%j.txt')}",
        *([f"--array={array}"] if array else []),
        "--export=ALL",
        f"--nodes={nodes}",
        f"--ntasks-per-node={devices}",
        *(f"--{flag}={settings[key]}" for key, flag in ENTRIES.items() if settings[key] is not None),
        *([f"--cpus-per-task={settings['cpus_per_task']}"] if settings["cpus_per_task"] else []),
        *([f"--gpus-per-node={_typed(settings['gpu_type'], devices)}"] if gpus else []),
        *([f"--signal=USR1@{settings['signal_seconds']}"] if train or words[0] == "sweep" else []),
        *settings["options"],
    ]
    name = next((text.partition("=")[2] for text in reversed(overrides) if text.startswith("cluster=")), "default")
    environment = {
        "ATHANOR_HOME": str(catalog.project()),
        "ATHANOR_CLUSTER": name,
        "ATHANOR_SCRIPT": f"slurm/{script}.sbatch",
        "ATHANOR_REQUEUES": str(settings["requeues"]),
        "ATHANOR_MODULES": " ".join(settings["modules"]),
        "ATHANOR_ENVIRONMENT": settings["environment"] or "",
        "ATHANOR_CONTAINER": settings["container"] or "",
    }
    own = not (settings["environment"] or settings["container"])
    environment["ATHANOR_PYTHON"] = sys.executable if own else ""
    return Submission(
        experiment, tuple(words), f"slurm/{script}.sbatch", tuple(flags), environment, name, after, dependency,
        record or {},
    )  # fmt: skip


def _typed(kind: str | None, count: int) -> str:
    return f"{kind}:{count}" if kind else str(count)
