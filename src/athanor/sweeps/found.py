"""What a search has found so far, and its best trial as an experiment of its own."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from athanor import catalog, config
from athanor.errors import UserError
from athanor.runs import store
from athanor.runs.files import write_atomic
from athanor.runs.run import Run
from athanor.sweeps.search import Search, Value
from athanor.sweeps.trials import NOTE, PRUNED_AT, SECONDS, Trials, described


@dataclass(frozen=True)
class Outcome:
    """A trial as the journal tells it."""

    number: int
    state: str  # complete, pruned, fail, running, waiting
    point: dict[str, Value]
    value: float | None  # of a pruned trial: what its last validation measured, which is no result
    curve: dict[int, float]  # step -> what the pruner saw
    pruned_at: int | None
    note: str
    seconds: float
    runs: list[str]  # one a seed


@dataclass(frozen=True)
class Found:
    search: Search
    outcomes: list[Outcome]
    best: Outcome | None
    importance: dict[str, float]  # share of each key, the largest first
    values: dict[int, float]  # of the best trial, by seed

    @property
    def best_name(self) -> str:
        """The experiment that the best trial becomes, beside its base."""
        return f"{self.search.base.rpartition('/')[0]}/{self.search.name}-best"

    @property
    def best_line(self) -> str:
        assert self.best
        return (
            f"{self.search.metric.name} {self.best.value!r}, trial {self.best.number} of {len(self.outcomes)}: "
            f"{described(self.best.point)}"
        )

    @property
    def best_command(self) -> str:
        kind = catalog.find(self.search.base).kind
        execution = [text for text in self.search.overrides if config.is_execution(text)]
        return shlex.join(("athanor", kind, f"experiment={self.best_name}", *execution))


def gather(trials: Trials) -> Found:
    search, best = trials.search, trials.best()
    outcomes = [_outcome(trials, trial) for trial in trials.all()]
    values = {}
    if best:
        for member in trials.members(best):
            if store.is_finished(member.target):
                values[member.seed] = Run(member.target.directory).metrics[search.metric.name]
    return Found(
        search=search,
        outcomes=outcomes,
        best=next((outcome for outcome in outcomes if best and outcome.number == best.number), None),
        importance=trials.importance(),
        values=values,
    )


def _outcome(trials: Trials, trial: Any) -> Outcome:
    attributes = trial.user_attrs
    return Outcome(
        number=trial.number,
        state=trial.state.name.lower(),
        point=dict(trial.params),
        value=trial.value,
        curve=dict(sorted(trial.intermediate_values.items())),
        pruned_at=attributes.get(PRUNED_AT),
        note=attributes.get(NOTE, "") or ("its worker is gone" if trials.lost(trial) else ""),
        seconds=attributes.get(SECONDS, 0.0),
        runs=[f"{member.target.name}/{member.target.fingerprint}" for member in trials.members(trial)],
    )


def write_best(found: Found) -> Path:
    """Write the best trial (of several seeds, the first) as an experiment; returns its file.

    The file holds all of the config and refers to nothing but the experiments that it reads from, so that later changes
    of the base leave it alone.

    Raises:
        UserError: it would not be the same run.
    """
    assert found.best
    search = found.search
    member = next(search.members(found.best.number, found.best.point))
    science = [text for text in member.experiment.overrides if not config.is_execution(text)]
    experiment = config.load(search.base, science)
    documents = config.portable(experiment)
    document = documents[config.reference(experiment)]["config"]
    kind = experiment.kind
    plain = config.base(kind)
    for key in ("kind", *config.EXECUTION):
        own = _departing(document.pop(key, None), plain.get(key))
        if own is not None:
            document[key] = own
    document["inputs"] = {
        key: _plain(spec, documents) if isinstance(spec, str) else spec for key, spec in document["inputs"].items()
    }
    seeds = ", ".join(f"{value!r} with seed {seed}" for seed, value in found.values.items())
    lines = [
        f"# The best of {len(found.outcomes)} trials of search {search.name}: {search.metric.name} {seeds}.",
        f"# Trial {found.best.number}: {json.dumps(found.best.point, ensure_ascii=False)}. "
        f"Written by `{search.report_command}`.",
        "# @package _global_",
        f"defaults: [/{kind}, _self_]",
        "",
    ]
    path = catalog.project() / "experiments" / f"{found.best_name}.yaml"
    before = path.read_text(encoding="utf-8") if path.is_file() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "\n".join(lines) + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120))
    if catalog.source() == catalog.project() and config.load(found.best_name).fingerprint != experiment.fingerprint:
        path.unlink() if before is None else write_atomic(path, before)
        raise UserError(
            f"trial {found.best.number} cannot be written as an experiment: the file composes to another run"
        )
    return path


def _departing(own: Any, plain: Any) -> Any:
    """What of a config differs from its base; None if nothing does."""
    if isinstance(own, dict) and isinstance(plain, dict):
        found = {key: departing for key in own if (departing := _departing(own[key], plain.get(key))) is not None}
        return found or None
    return None if own == plain else own


def _plain(reference: str, documents: config.Documents) -> Any:
    """How an experiment's file names an input that a portable document names by its reference."""
    name, _, fingerprint = reference.rpartition("@")
    if config.load(name).fingerprint == fingerprint:
        return name
    document = documents[reference]
    runs = {key: spec for key, spec in document["config"]["inputs"].items() if isinstance(spec, str)}
    kept = [text for text in document["overrides"] if text.partition("=")[0] not in {f"inputs.{key}" for key in runs}]
    above = [f"inputs.{key}={_literal(_plain(spec, documents))}" for key, spec in runs.items()]
    return {"experiment": name, "overrides": [*kept, *above]}


def _literal(spec: Any) -> str:
    """An input's spec in Hydra's syntax."""
    if isinstance(spec, dict):
        overrides = ",".join(map(_literal, spec["overrides"]))
        return f"{{experiment:{_literal(spec['experiment'])},overrides:[{overrides}]}}"
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", spec)  # a backslash counts as one only before a quote
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"
