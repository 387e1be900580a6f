"""Chained experiments: a step's inputs that name an earlier step's experiment read that step's run.

`experiments/pipelines/NAME.yaml`: `steps: {name: {experiment, overrides, inputs}}`, and `report: title` for a page
after the last, with `note: text` near its top. All steps are composed before the first runs, so a mistake in the last
shows at once. What is finished is skipped without importing torch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from athanor import catalog, config
from athanor.config import Experiment
from athanor.errors import UserError
from athanor.progress import Progress
from athanor.runs import store
from athanor.runs.context import rank
from athanor.runs.files import write_json
from athanor.runs.run import Run

KEYS = ("steps", "report", "note")
STEP_KEYS = ("experiment", "overrides", "inputs")


@dataclass(frozen=True)
class Pipeline:
    """Composed steps, in order. `directory` holds pipeline.json and the report."""

    name: str
    overrides: tuple[str, ...]
    steps: dict[str, Experiment]
    title: str | None
    directory: Path
    note: str | None = None  # what a reader of the report must know


def load(name: str, overrides: Sequence[str] = ()) -> Pipeline:
    """Compose every step.

    Args:
        overrides: `step.key=value` for one step, `key=value` for every step that has the key.

    Raises:
        UserError: a step does not compose, an override fits no step, or the file is not as described above.
    """
    specs, title, note = _read(name)
    own, common = _shared_out(specs, overrides)
    used: set[str] = set()
    steps: dict[str, Experiment] = {}
    for step, spec in specs.items():
        applying = config.applicable(spec["experiment"], common)
        used.update(applying)
        for key, source in (spec.get("inputs") or {}).items():
            if source not in steps:
                raise UserError(f"step {step}, input {key}: no earlier step {source!r}{catalog.suggest(source, steps)}")
        try:
            steps[step] = config.load(
                spec["experiment"],
                [*(spec.get("overrides") or ()), *applying, *own.get(step, ())],
                inputs={key: steps[source] for key, source in (spec.get("inputs") or {}).items()},
                stand_ins={earlier.name: earlier for earlier in steps.values()},
            )
        except UserError as error:
            raise UserError(f"step {step}: {error}") from error
    if unused := [text for text in common if text not in used]:
        key = re.split("=", unused[0].lstrip("+~"))[0]
        known = [*steps, *(key for experiment in steps.values() for key in experiment.config)]
        raise UserError(f"{unused[0]}: no step has {key!r}{catalog.suggest(key, known)}")
    root = Path(next(iter(steps.values())).config["paths"]["runs"])
    return Pipeline(name, tuple(overrides), steps, title, root / _folder(name, overrides), note)


def validate(pipeline: Pipeline) -> None:
    """Raise one UserError with the problems of all steps."""
    problems = []
    for step, experiment in pipeline.steps.items():
        try:
            experiment.validate()
        except UserError as error:
            problems.append(f"{step}: {error}".replace("\n  - ", "\n      - "))
    if problems:
        raise UserError("\n  - ".join((f"{pipeline.name} cannot run:", *problems)))


def run(pipeline: Pipeline, *, force: bool = False, progress: Progress | None = None) -> dict[str, Run]:
    """Make the runs of all steps, skipping those that are finished, and then the report if anything is new."""
    progress = progress or Progress(quiet=True)
    waiting = {step for step, experiment in pipeline.steps.items() if force or not store.is_finished(experiment)}
    validate(_only(pipeline, waiting))
    progress.plan(list(pipeline.steps))
    runs: dict[str, Run] = {}
    for step, experiment in pipeline.steps.items():
        runs[step] = store.execute(experiment, force=force, progress=progress, title=step)
        if rank() > 0 and step in waiting and experiment.kind == "train":
            return runs  # this process was started for that one training; rank 0 goes on and starts others
    if rank() == 0:
        for step, made in runs.items():
            if made.manifest["kind"] == "prepare":
                data_card(made, anew=step in waiting)
        _record(pipeline, runs, changed=bool(waiting))
    return runs


def data_card(made: Run, *, anew: bool) -> Path | None:
    """The card of a run that prepared data, written if it is new or has none; None where it has nothing to say."""
    page = made.directory / "card.html"
    if anew or not page.is_file():
        from athanor.report import card

        card.write(made.directory)
    return page if page.is_file() else None


def report_path(pipeline: Pipeline) -> Path | None:
    """Where the report is, if the pipeline has one."""
    return pipeline.directory / "report.html" if pipeline.title else None


def _read(name: str) -> tuple[dict[str, dict[str, Any]], str | None, str | None]:
    entry = catalog.find(name, "pipeline")
    file = f"experiments/{name}.yaml"
    try:
        text = yaml.safe_load(entry.path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{file}, line {line}: {error.problem}") from error
    if wrong := sorted(set(text) - set(KEYS)):
        raise UserError(f"{file} has an unknown key {wrong[0]!r}{catalog.suggest(wrong[0], KEYS)}")
    steps = text["steps"]
    if not isinstance(steps, dict) or not steps:
        raise UserError(f"{file}: `steps` must map names of steps to experiments")
    for step, spec in steps.items():
        if isinstance(spec, str):
            steps[step] = spec = {"experiment": spec}
        if not isinstance(spec, dict) or "experiment" not in spec:
            raise UserError(f"{file}, step {step}: say which, `{{experiment: ...}}`")
        if wrong := sorted(set(spec) - set(STEP_KEYS)):
            raise UserError(f"{file}, step {step}: unknown key {wrong[0]!r}{catalog.suggest(wrong[0], STEP_KEYS)}")
    title = text.get("report")
    return steps, (title if isinstance(title, str) else name) if title else None, text.get("note")


def _shared_out(specs: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Overrides by step, without the step's name, and those for all."""
    own: dict[str, list[str]] = {}
    common = []
    for text in overrides:
        sign = text[: len(text) - len(text.lstrip("+~"))]
        step, dot, rest = text[len(sign) :].partition(".")
        if dot and step in specs:
            own.setdefault(step, []).append(sign + rest)
        else:
            common.append(text)
    return own, common


def _folder(name: str, overrides: Sequence[str]) -> str:
    """The pipeline's name and the overrides that change what is computed."""
    science = [re.sub(r"[^\w.=+-]+", "_", text) for text in overrides if not config.is_execution(text)]
    return ",".join([name if name.startswith("pipelines/") else f"pipelines/{name}", *sorted(science)])[:200]


def _only(pipeline: Pipeline, names: set[str]) -> Pipeline:
    steps = {step: experiment for step, experiment in pipeline.steps.items() if step in names}
    return Pipeline(pipeline.name, pipeline.overrides, steps, pipeline.title, pipeline.directory, pipeline.note)


def _record(pipeline: Pipeline, runs: Mapping[str, Run], changed: bool) -> None:
    described = {
        "name": pipeline.name,
        "title": pipeline.title,
        "note": pipeline.note,
        "experiment": " ".join((pipeline.name, *pipeline.overrides)),
        "steps": {step: os.path.relpath(run.directory, pipeline.directory) for step, run in runs.items()},
    }
    path = pipeline.directory / "pipeline.json"
    pipeline.directory.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != described:
        write_json(path, described)
        changed = True
    if (page := report_path(pipeline)) and (changed or not page.is_file()):
        from athanor import report

        report.write(pipeline.directory, page, pipeline.title)
