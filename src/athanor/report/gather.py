"""Reads run directories into what the report shows. Tolerant: what a run lacks, the report leaves out.

Only manifests and the small JSON files beside them are read, never weights (of a safetensors file its header, to count
parameters), so a report of a large model costs no more than one of a small one.
"""

import json
import math
import re
import shlex
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from athanor.errors import UserError
from athanor.runs.context import curves
from athanor.runs.run import Run

ROLES = {
    "PrepareDocuments": "documents",
    "GenerateTasks": "tasks",
    "StandardLibraryQuestions": "questions",
    "TrainTokenizer": "tokenizer",
    "ExtendTokenizer": "tokenizer",
    "SweepVocabularies": "vocabularies",
    "WriteShards": "shards",
    "Pretraining": "pretraining",
    "SFT": "sft",
    "RewardModeling": "reward",
    "DPO": "dpo",
    "PPO": "ppo",
    "Evaluation": "evaluation",
}
LABELS = {"pretraining": "Pretrained", "sft": "SFT", "reward": "Reward model", "dpo": "DPO", "ppo": "PPO"}
DATA_ROLES = ("documents", "tasks", "questions", "tokenizer", "vocabularies", "shards")

Series = tuple[list[int], list[float]]


@dataclass
class Parent:
    """One input of a run: another run, or raw files."""

    name: str
    kind: str
    fingerprint: str
    run_name: str
    directory: str | None
    files: list[dict]


@dataclass
class RunView:
    """A run directory as the report sees it."""

    step: str
    directory: Path
    manifest: dict
    label: str = ""
    evaluations: list["RunView"] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.manifest.get("name") or self.directory.parent.name)

    @property
    def fingerprint(self) -> str:
        return str(self.manifest.get("fingerprint") or self.directory.name)

    @property
    def kind(self) -> str:
        return str(self.manifest.get("kind", "prepare"))

    @property
    def status(self) -> str:
        """finished, running, failed or interrupted; one that says running and is held by no process was interrupted."""
        status = str(self.manifest.get("status", "unknown"))
        return Run(self.directory).status if status == "running" else status

    @property
    def command(self) -> str:
        """The command line that makes it."""
        overrides = self.manifest.get("overrides") or ()
        return shlex.join(["athanor", self.kind, f"experiment={self.name}", *map(str, overrides)])

    @property
    def seconds(self) -> float | None:
        """Of all attempts; of a run under way, until it last logged something."""
        seconds, started = self.manifest.get("seconds"), self.manifest.get("started")
        if not seconds and self.times and isinstance(started, (int, float)):
            return self.times[max(self.times)] - started
        return seconds

    @property
    def science(self) -> dict:
        return self.manifest.get("science") or {}

    @property
    def target(self) -> str:
        """Import path of the algorithm (train) or job (prepare, evaluate)."""
        node = self.science.get("algorithm") or self.science.get("job") or {}
        return str(node.get("_target_", "")) if isinstance(node, Mapping) else ""

    @property
    def role(self) -> str:
        """What the run is in the story; for a job or algorithm unknown here, its class name in lower case."""
        if self.kind == "evaluate":
            return "evaluation"
        name = self.target.rsplit(".", 1)[-1]
        return ROLES.get(name) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower() or self.kind

    @property
    def parents(self) -> list[Parent]:
        return [
            Parent(
                name=name,
                kind=str(given.get("kind", "run")),
                fingerprint=str(given.get("fingerprint", "")),
                run_name=str(given.get("name", name)),
                directory=given.get("directory"),
                files=given.get("files") or [],
            )
            for name, given in (self.manifest.get("inputs") or {}).items()
            if isinstance(given, Mapping)
        ]

    def read(self, file: str) -> Any:
        """A JSON file of the run; None where it is missing or broken."""
        return _json(self.directory / file)

    def lines(self, file: str) -> list[dict]:
        """A JSON-lines file of the run; lines that do not parse (a killed writer's last one) are left out."""
        try:
            text = (self.directory / file).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        parsed = []
        for line in text.splitlines():
            try:
                parsed.append(json.loads(line))
            except ValueError:
                continue
        return [line for line in parsed if isinstance(line, dict)]

    @cached_property
    def metrics(self) -> dict[str, Series]:
        """Logged metric -> (steps, values), steps rising; a step logged again after a resume keeps its last value."""
        return curves(self.lines("metrics.jsonl"))

    @cached_property
    def times(self) -> dict[int, float]:
        """Step -> Unix time at which something was logged of it."""
        return {
            event["step"]: float(event["time"])
            for event in self.lines("metrics.jsonl")
            if isinstance(event.get("step"), int) and isinstance(event.get("time"), (int, float))
        }

    @property
    def tokens(self) -> float | None:
        """Tokens trained on: the median step's tokens, from speed and time between events, times the steps."""
        steps, speeds = self.metrics.get("train/tokens_per_second", ([], []))
        of_a_step = sorted(
            speed * (self.times[after] - self.times[before]) / (after - before)
            for before, after, speed in zip(steps, steps[1:], speeds[1:])
        )
        return of_a_step[len(of_a_step) // 2] * steps[-1] if of_a_step else None

    def last(self, *names: str) -> float | None:
        """Last logged value of the first of these metrics that was logged."""
        return next((self.metrics[name][1][-1] for name in names if name in self.metrics), None)

    @cached_property
    def results(self) -> dict:
        results = self.read("results.json")
        return results if isinstance(results, dict) else {}

    @cached_property
    def parameters(self) -> int | None:
        """Parameters in model.safetensors, from its header."""
        try:
            with open(self.directory / "model.safetensors", "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(min(length, 100_000_000)))
            shapes = [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
            return sum(math.prod(shape) for shape in shapes)
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            return None


@dataclass
class Gathered:
    """Everything a report is about: runs in an order in which inputs come first."""

    title: str
    runs: list[RunView]
    note: str | None = None

    @property
    def pipeline_command(self) -> str | None:
        """The command line of the pipeline that made most of the runs, if a pipeline made any."""
        commands = [str(run.manifest.get("command", "")) for run in self.runs]
        commands = [command for command in commands if "athanor pipeline" in command]
        return max(commands, key=commands.count, default=None)

    def of(self, *roles: str) -> list[RunView]:
        return [run for run in self.runs if run.role in roles]

    @property
    def trained(self) -> list[RunView]:
        return [run for run in self.runs if run.kind == "train"]

    def find(self, fingerprint: str) -> RunView | None:
        return next((run for run in self.runs if run.fingerprint == fingerprint), None)

    def ancestors(self, run: RunView) -> set[str]:
        """Fingerprints of all that a run was made from, files included."""
        found: set[str] = set()
        waiting = [run]
        while waiting:
            for parent in waiting.pop().parents:
                if parent.fingerprint not in found:
                    found.add(parent.fingerprint)
                    if (next_run := self.find(parent.fingerprint)) is not None:
                        waiting.append(next_run)
        return found


def gather(source, title: str | None = None) -> Gathered:
    """Runs named by `source` and all the runs they were made from.

    Args:
        source: a mapping step -> run directory, an iterable of run directories (or objects with `.directory`), one run
            directory, or a pipeline's directory (with pipeline.json: {"title", "steps": {step: directory}}, directories
            relative to it).

    Raises:
        UserError: nothing there, or a directory without a readable manifest.
    """
    steps, described = _steps(source)
    runs: dict[str, RunView] = {}
    for step, directory in steps.items():
        manifest = _json(directory / "manifest.json")
        if not isinstance(manifest, dict):
            raise UserError(
                f"{directory} is no run: it has no readable manifest.json; give a run or a pipeline directory"
            )
        view = RunView(step, directory, manifest)
        runs.setdefault(view.fingerprint, view)
    if not runs:
        raise UserError(
            "a report needs at least one run; run a pipeline first: athanor pipeline experiment=pipelines/demo"
        )
    waiting = list(runs.values())
    while waiting:
        for parent in waiting.pop().parents:
            if parent.kind != "run" or parent.fingerprint in runs:
                continue
            found = _locate(parent, next(iter(runs.values())))
            if found is not None:
                runs[parent.fingerprint] = found
                waiting.append(found)
    ordered = _inputs_first(runs)
    gathered = Gathered(title or described.get("title") or _title(steps, ordered), ordered, described.get("note"))
    _label(gathered)
    for run in gathered.of("evaluation"):
        subject = gathered.find(str((run.results.get("model") or {}).get("fingerprint")))
        if subject is not None:
            subject.evaluations.append(run)
    return gathered


def _steps(source) -> tuple[dict[str, Path], dict]:
    if isinstance(source, Mapping):
        return {str(step): _directory(run) for step, run in source.items()}, {}
    if isinstance(source, (str, Path)):
        path = Path(source)
        if (path / "manifest.json").is_file():
            return {path.parent.name: path}, {}
        described = _json(path / "pipeline.json")
        if isinstance(described, dict) and described.get("steps"):
            steps = described["steps"]
            if isinstance(steps, list):
                steps = {str(step.get("step") or step.get("name")): step for step in steps}
            located = {
                step: Path(given["directory"] if isinstance(given, Mapping) else given) for step, given in steps.items()
            }
            return {step: path / directory for step, directory in located.items()}, described
        raise UserError(f"{path} is neither a run nor a pipeline: it has no manifest.json and no pipeline.json")
    if isinstance(source, Iterable):
        directories = [_directory(run) for run in source]
        return {str(directory): directory for directory in directories}, {}
    return {"run": _directory(source)}, {}


def _directory(run) -> Path:
    return Path(getattr(run, "directory", run))


def _locate(parent: Parent, sibling: RunView) -> RunView | None:
    """The input run's directory: beside its siblings in the runs root (which may have moved), else where it was."""
    candidates = []
    depth = len(Path(sibling.name).parts)
    if len(sibling.directory.parents) > depth:
        candidates.append(sibling.directory.parents[depth] / parent.run_name / parent.fingerprint)
    if parent.directory:
        candidates.append(Path(parent.directory))
    for directory in candidates:
        manifest = _json(directory / "manifest.json")
        if isinstance(manifest, dict) and manifest.get("fingerprint") == parent.fingerprint:
            return RunView(parent.run_name, directory, manifest)
    return None


def _inputs_first(runs: dict[str, RunView]) -> list[RunView]:
    """Topological order; among runs that are ready, the order of a pipeline: data, then training as it was given."""
    ordered: list[RunView] = []
    placed: set[str] = set()
    rank = {role: position for position, role in enumerate(ROLES.values())}
    waiting = sorted(runs.values(), key=lambda run: rank.get(run.role, 50 if run.kind == "train" else 5))
    while waiting:
        ready = [
            run for run in waiting if all(p.fingerprint in placed or p.fingerprint not in runs for p in run.parents)
        ]
        chosen = (
            ready[0] if ready else waiting[0]
        )  # no cycle can be made by content addressing; a forged one must not hang
        ordered.append(chosen)
        placed.add(chosen.fingerprint)
        waiting.remove(chosen)
    return ordered


def _label(gathered: Gathered) -> None:
    """The algorithm's name where it is the only one of its kind, else the step's."""
    for run in gathered.runs:
        alone = len([other for other in gathered.runs if other.role == run.role]) == 1
        run.label = LABELS[run.role] if alone and run.role in LABELS else run.step
    seen: dict[str, int] = {}
    for run in gathered.runs:
        seen[run.label] = seen.get(run.label, 0) + 1
    for run in gathered.runs:
        if seen[run.label] > 1:
            run.label = f"{run.name} {run.fingerprint[:4]}"


def _title(steps: dict[str, Path], runs: list[RunView]) -> str:
    return runs[-1].name if len(steps) == 1 else "Pipeline"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
