"""What an ablation's runs say so far: a value, a cost and curves of each member, and every level's verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from athanor import catalog
from athanor.errors import UserError
from athanor.evaluation.statistics import Interval
from athanor.report.gather import RunView
from athanor.sweeps.ablation import Ablation, Member
from athanor.sweeps.statistics import Cell, Level, bands, compare, mean_interval

BINS = 60  # of a curve that is logged more often
Series = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Outcome:
    """A member as its runs' manifests tell it."""

    member: Member
    status: str
    value: float | None  # of the metric, None unless it is there and finite
    note: str  # why there is no value
    seconds: float  # of its own runs, failed attempts included
    hardware: str
    also: Mapping[str, float]  # of the ablation's further metrics, those that are there and finite

    @cached_property
    def curves(self) -> Mapping[str, Series]:
        """Metric of the training -> (steps, values)."""
        directory = self.member.experiment.directory
        return RunView("", directory, {}).metrics


@dataclass(frozen=True)
class Results:
    ablation: Ablation
    outcomes: list[Outcome]
    levels: list[Level]
    cells: list[Level]  # every combination of a grid, without comparisons; [] for other designs
    also: dict[str, list[Level]]  # by further metric, the same levels; their verdicts say nothing

    @property
    def values(self) -> dict[tuple[Cell, int], float]:
        return _values(self.outcomes)

    def of(self, level: Level) -> list[Outcome]:
        """The members behind a level's values."""
        return [outcome for outcome in self.outcomes if outcome.member.cell in level.cells]

    def band(self, level: Level, metric: str) -> tuple[int, list[tuple[int, Interval]]]:
        """A logged metric of a level's trainings, the mean over seeds by step; and over how many seeds.

        Of a grid it is first averaged over the other factors' levels, within each seed.
        """
        by_seed: dict[int, list[dict[int, float]]] = {}
        for outcome in self.of(level):
            if metric in outcome.curves:
                by_seed.setdefault(outcome.member.seed, []).append(dict(zip(*_binned(*outcome.curves[metric]))))
        merged = []
        for found in by_seed.values():
            shared = sorted(set.intersection(*map(set, found)))
            merged.append((shared, [sum(one[step] for one in found) / len(found) for step in shared]))
        return len(merged), bands(merged)


def gather(ablation: Ablation) -> Results:
    """Read every member's runs, however far they are.

    Raises:
        UserError: the runs have no such metric.
    """
    outcomes = [_outcome(ablation, member) for member in ablation.members]
    values, labels = _values(outcomes), ablation.labels
    design = labels, ablation.cells, ablation.seeds
    listed, better = ablation.design == "listed", ablation.metric.better
    levels = compare(*design, values, better=better, resolve=ablation.metric.resolve, listed=listed)
    also = {}
    for name in ablation.also:
        found = {(o.member.cell, o.member.seed): o.also[name] for o in outcomes if name in o.also}
        also[name] = compare(*design, found, better=better, listed=listed)
    cells = []
    if ablation.design == "grid" and len(labels) > 1:
        for cell in ablation.cells:
            own = {seed: values[cell, seed] for seed in ablation.seeds if (cell, seed) in values}
            missing = tuple(seed for seed in ablation.seeds if seed not in own)
            label = ", ".join(f"{factor} {level}" for factor, level in zip(labels, cell))
            mean = mean_interval(list(own.values()))
            cells.append(Level("combination", label, cell == ablation.cells[0], mean, own, missing, cells=(cell,)))
    return Results(ablation, outcomes, levels, cells, also)


def _binned(steps: list[int], values: list[float]) -> Series:
    """Means over at most BINS equal runs of points, each at its last step."""
    width = math.ceil(len(steps) / BINS)
    chunks = [slice(start, start + width) for start in range(0, len(steps), width)]
    return [steps[c][-1] for c in chunks], [sum(values[c]) / len(values[c]) for c in chunks]


def _values(outcomes: list[Outcome]) -> dict[tuple[Cell, int], float]:
    return {(o.member.cell, o.member.seed): o.value for o in outcomes if o.value is not None}


def _outcome(ablation: Ablation, member: Member) -> Outcome:
    status, runs, name = member.status(), member.runs(), ablation.metric.name
    value, note, metrics = None, {"waiting": "not run yet"}.get(status, status), dict[str, float]()
    if status == "finished":
        metrics = runs[-1].metrics
        for wanted in (name, *ablation.also):
            if wanted not in metrics:
                raise UserError(f"{runs[-1].id} has no metric {wanted!r}{catalog.suggest(wanted, metrics, every=40)}")
        sound = math.isfinite(metrics[name])
        value, note = (float(metrics[name]), "") if sound else (None, f"diverged: {name} is {metrics[name]}")
    elif status in ("failed", "interrupted"):
        note = str(runs[-1].manifest.get("error") or status).splitlines()[0]
    hardware = next((_hardware(run.manifest.get("hardware") or {}) for run in runs), "")
    also = {key: float(metrics[key]) for key in ablation.also if math.isfinite(metrics.get(key, math.nan))}
    return Outcome(member, status, value, note, member.seconds(), hardware, also)


def _hardware(facts: Mapping) -> str:
    return ", ".join(facts.get("gpus") or [str(facts.get("cpu", ""))])
