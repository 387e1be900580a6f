"""A search's file, the space that it spans, and the runs that one point of it stands for.

`experiments/search/NAME.yaml`, its first comment being what `--help` shows:

    base: pretrain/demo
    overrides: [max_steps=400]          # of every trial; may be left out
    space:
      optimizer.lr: {float: [1.0e-4, 1.0e-2], log: true}
      model.layers: {int: [2, 8], step: 2}
      model.tie_embeddings: [true, false]         # a key and its values ...
      optimizer:                                  # ... or a name, and the overrides that each choice means
        muon: []
        adamw: [optimizer=adamw, ~optimizer.matrix_lr]
    metric: {name: validation/loss, better: lower}
    sampler: tpe                        # or grid, random, gp, cmaes; or {name: tpe, seed: 1, startup: 10}
    trials: 40                          # of a grid: all of its points, unless fewer are said
    pruner: median                      # or none, hyperband; or {name: median, startup: 5, warmup: 100}
    seeds: [1]                          # of each trial, whose value is their mean; the first one is pruned
    budget: {hours: 8}                  # no trial begins beyond, of all trials together

The directory of a search is named by what is searched (base, space, metric, seeds, sampler, pruner), so a changed file
is another search, and more trials go on with this one. Its state is in `athanor.sweeps.trials`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from athanor import catalog, config
from athanor.config import Experiment
from athanor.errors import UserError
from athanor.sweeps.ablation import Member
from athanor.sweeps.file import Levels, Metric, SweepFile

KEYS = ("base", "overrides", "space", "metric", "sampler", "trials", "pruner", "seeds", "budget")
SAMPLERS = ("grid", "random", "tpe", "gp", "cmaes")
PRUNERS = ("none", "median", "hyperband")
Value = float | int | str


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, both included."""

    low: float
    high: float
    whole: bool
    log: bool = False
    step: float | None = None
    points: int | None = None  # of a grid

    def grid(self) -> list[Value] | None:
        """Its values in a grid; None if it does not say which."""
        if self.step:
            count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
            return [self._typed(self.low + i * self.step) for i in range(count)]
        if self.points:
            share = [i / (self.points - 1) for i in range(self.points)]
            if self.log:
                found = [self.low * (self.high / self.low) ** s for s in share[:-1]]
            else:
                found = [self.low + s * (self.high - self.low) for s in share[:-1]]
            return list(dict.fromkeys(map(self._typed, (*found, self.high))))
        return [*range(int(self.low), int(self.high) + 1)] if self.whole and not self.log else None

    def overrides(self, key: str, value: Value) -> tuple[str, ...]:
        return (f"{key}={value!r}",)

    def ends(self) -> list[Value]:
        return [self._typed(self.low), self._typed(self.high)]

    def _typed(self, value: float) -> Value:
        return round(value) if self.whole else float(value)


@dataclass(frozen=True)
class Choice:
    """One of several labels, each standing for overrides."""

    labels: Levels

    def grid(self) -> list[Value]:
        return list(self.labels)

    def overrides(self, key: str, value: Value) -> tuple[str, ...]:
        return self.labels[str(value)]

    def ends(self) -> list[Value]:
        return list(self.labels)


@dataclass(frozen=True)
class Search:
    """A search as its file and the command line say it; nothing is asked of Optuna yet."""

    name: str  # without search/
    description: str
    base: str
    overrides: tuple[str, ...]  # the file's and then the command line's
    given: tuple[str, ...]  # the command line's
    space: dict[str, Range | Choice]
    metric: Metric
    sampler: dict[str, Any]
    pruner: dict[str, Any]
    trials: int
    seeds: list[int]
    budget: dict[str, float]

    @property
    def command(self) -> str:
        return shlex.join(("athanor", "sweep", f"search={self.name}", *self.given))

    @property
    def report_command(self) -> str:
        return self.command.replace("sweep", "report", 1)

    @cached_property
    def first(self) -> Experiment:
        """The base with what all trials have, nothing of the space chosen."""
        return config.load(self.base, self.overrides)

    @property
    def root(self) -> Path:
        return Path(self.first.config["paths"]["runs"])

    @cached_property
    def directory(self) -> Path:
        """The journal, locks, what trials said, and the report; the runs are where all runs are."""
        space = {key: vars(part) for key, part in self.space.items()}
        what = (self.first.fingerprint, space, vars(self.metric), self.sampler, self.pruner, self.seeds)
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
        return self.root / "search" / self.name / digest

    def grid(self) -> list[dict[str, Value]]:
        """Every point of a grid, in order."""
        axes = [part.grid() or [] for part in self.space.values()]
        return [dict(zip(self.space, point)) for point in itertools.product(*axes)]

    def members(self, number: int, point: Mapping[str, Value]) -> Iterator[Member]:
        """A trial's trainings, one a seed, composed as they are asked for."""
        own = [text for key, value in point.items() for text in self.space[key].overrides(key, value)]
        # What is deleted goes last: a range may set a key that a choice takes away.
        own.sort(key=lambda text: text.startswith("~"))
        kept = [text for text in own if f"~{text.partition('=')[0]}" not in own]
        levels = {key: value if isinstance(value, str) else f"{value:.4g}" for key, value in point.items()}
        for seed in self.seeds:
            overrides = (*self.overrides, *kept, *([f"seed={seed}"] if self._seeded else []))
            yield Member(number, seed, levels, config.load(self.base, overrides, stand_ins=self._shared))

    def validate(self, check: Callable[[Member], None] | None = None) -> None:
        """Raise a UserError unless each end of each range and each choice composes and suits its constructors.

        Args:
            check: what to look for besides, raising a UserError.
        """
        self.first.validate()
        middle = {key: part.ends()[0] for key, part in self.space.items()}
        points = [middle, *({**middle, key: end} for key, part in self.space.items() for end in part.ends()[1:])]
        problems: dict[str, str] = {}
        for point in points:
            try:
                member = next(self.members(0, point))
                member.experiment.validate()
                if check:
                    check(member)
            except UserError as error:
                where = ", ".join(f"{key}={value}" for key, value in point.items() if value != middle[key])
                problems.setdefault(str(error).replace("\n  - ", "\n      - "), where)
        if problems:
            lines = [f"{where}: {text}" if where else text for text, where in problems.items()]
            raise UserError("\n  - ".join((f"search {self.name} cannot run:", *lines)))

    @property
    def _seeded(self) -> bool:
        return "seed" in self.first.config

    @cached_property
    def _shared(self) -> dict[str, Experiment]:
        return {e.name: e for e in self.first.upstream() if all(map(config.is_execution, e.overrides))}


def load(name: str, overrides: Sequence[str] = ()) -> Search:
    """Read `experiments/search/NAME.yaml`.

    Args:
        overrides: of every trial, in Hydra's syntax.

    Raises:
        UserError: there is no such file, or it is not as described above.
    """
    name = name.removeprefix("search/")
    file = SweepFile.read(f"search/{name}", KEYS, ("base", "space", "metric"))
    text = file.text
    if not isinstance(text["space"], dict):
        raise file.refusal("`space` must map keys to ranges and choices")
    space = {str(key): _part(file, str(key), given) for key, given in text["space"].items()}
    sampler = _choice(file, "sampler", "tpe", SAMPLERS, ("seed", "startup"))
    pruner = _choice(file, "pruner", "none", PRUNERS, ("startup", "warmup"))
    if "members" in file.budget:
        raise file.refusal("`budget` of a search is `{hours: H}`; `trials` says how many")
    found = Search(
        name=name,
        description=file.description,
        base=str(text["base"]),
        overrides=(*file.words(text.get("overrides"), "overrides"), *overrides),
        given=tuple(overrides),
        space=space,
        metric=file.metric,
        sampler=sampler,
        pruner=pruner,
        trials=_trials(file, sampler["name"], space),
        seeds=file.seeds,
        budget=file.budget,
    )
    if pruner["name"] != "none" and catalog.find(found.base).kind != "train":
        raise file.refusal(f"pruner {pruner['name']!r} looks at a training's validations, and {found.base} is none")
    return found


def _part(file: SweepFile, key: str, given: Any) -> Range | Choice:
    kind = next((kind for kind in ("float", "int") if isinstance(given, dict) and kind in given), None)
    if kind is None:
        return Choice(file.levels("space", key, given))
    file.known(f"space.{key}", given, (kind, "log", "step", "points"))
    bounds, whole = given[kind], kind == "int"
    number = int if whole else (int, float)
    sound = isinstance(bounds, list) and len(bounds) == 2
    if not sound or not all(isinstance(b, number) and not isinstance(b, bool) for b in bounds):
        asked = "whole numbers" if whole else "numbers; YAML reads 1e-4 as text, so write 1.0e-4"
        raise file.refusal(f"space.{key}.{kind} must be [low, high], two {asked}")
    low, high = bounds
    log, step, points = given.get("log", False), given.get("step"), given.get("points")
    if not low < high:
        raise file.refusal(f"space.{key}: {low} must be below {high}")
    if not isinstance(log, bool) or (log and low <= 0):
        raise file.refusal(f"space.{key}: `log: true` needs bounds above 0")
    if step is not None and (log or not isinstance(step, number) or not 0 < step <= high - low):
        raise file.refusal(f"space.{key}: `step` must be between 0 and {high - low}, and goes with no `log`")
    if points is not None and (step or type(points) is not int or points < 2):
        raise file.refusal(f"space.{key}: `points` must be a whole number above 1, and goes with no `step`")
    return Range(float(low), float(high), whole, log, step, points)


def _choice(file: SweepFile, what: str, default: str, names: Sequence[str], options: Sequence[str]) -> dict[str, Any]:
    """`name` or `{name:, option: number, ...}`."""
    given = file.text.get(what, default)
    found = given if isinstance(given, dict) else {"name": given}
    if found.get("name") not in names:
        raise file.refusal(f"there is no {what} {found.get('name')!r}{catalog.suggest(str(found.get('name')), names)}")
    file.known(what, found, ("name", *options))
    for option in options:
        if type(found.get(option, 0)) is not int or found.get(option, 0) < 0:
            raise file.refusal(f"{what}.{option} must be a whole number, 0 or above")
    return dict(found)


def _trials(file: SweepFile, sampler: str, space: Mapping[str, Range | Choice]) -> int:
    given = file.text.get("trials")
    if given is not None and (type(given) is not int or given < 1):
        raise file.refusal("`trials` must be a whole number above 0")
    if sampler != "grid":
        if given is None:
            raise file.refusal("say `trials: ...`")
        return given
    count = 1
    for key, part in space.items():
        if (axis := part.grid()) is None:
            raise file.refusal(f"a grid needs `step` or `points` in space.{key}")
        count *= len(axis)
    return min(given or count, count)
