"""An ablation's file and the members it stands for, each an ordinary content-addressed run.

`experiments/ablations/NAME.yaml`, its first comment being what `--help` shows:

    base: pretrain/demo                 # the experiment whose parts are varied
    overrides: [max_steps=600]          # of every member; may be left out
    design: one_at_a_time               # or grid, or listed with `combinations: [{factor: level, ...}, ...]`
    factors:                            # the first level of each factor is the baseline
      data.sequence_length: [256, 128]  # a key and its values ...
      optimizer:                        # ... or a name, and the overrides that each level means
        muon: []
        adamw: [optimizer=adamw, ~optimizer.matrix_lr]
      vocabulary:
        "2048": []
        "4096": [model.vocabulary_size=4096, tokenizer/demo: job.vocabulary_size=4096]  # of an experiment it reads from
    seeds: [1, 2, 3]
    seed_inputs: true                   # the seed is of the trainings that it reads from, too; else all read the same
    metric: {name: validation/loss, better: lower, resolve: 0.02}
    also: [validation/accuracy]         # metrics that the report shows without a verdict
    measure: {experiment: evaluate/demo, input: model}   # where the metrics are measured; else by the base itself
    budget: {members: 12, hours: 1}     # refused beyond; hours of all members together

Members are numbered from 1, seed by seed: with another seed only new numbers are added, and after the first seed every
comparison has been made once.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from athanor import catalog, config
from athanor.config import Experiment
from athanor.errors import UserError
from athanor.runs import store
from athanor.runs.run import MANIFEST, Run
from athanor.sweeps.file import Levels, Metric, SweepFile, label

KEYS = (
    "base", "overrides", "design", "combinations", "factors", "seeds", "seed_inputs", "metric", "also", "measure",
    "budget",
)  # fmt: skip
DESIGNS = ("one_at_a_time", "grid", "listed")

Cell = tuple[str, ...]  # one level a factor, in the order of the factors
Inputs = dict[str, Experiment]  # by name, the read before their readers


@dataclass(frozen=True)
class Member:
    """One cell of the design with one seed. `target` is the run whose metric counts."""

    number: int
    seed: int
    levels: dict[str, str]
    experiment: Experiment
    measured: Experiment | None = None
    sweep: str = ""  # that it is of: its group on Weights & Biases

    @property
    def target(self) -> Experiment:
        return self.measured or self.experiment

    @property
    def directories(self) -> list[Path]:
        """Of its own runs, in the order they are made."""
        return list(dict.fromkeys((self.experiment.directory, self.target.directory)))

    @property
    def cell(self) -> Cell:
        return tuple(self.levels.values())

    @property
    def title(self) -> str:
        return " ".join((*self.levels.values(), f"seed {self.seed}"))

    def runs(self) -> list[Run]:
        """Its own runs that exist, in the order they are made."""
        return [Run(directory) for directory in self.directories if (directory / MANIFEST).is_file()]

    def status(self) -> str:
        """finished, running, failed, interrupted, or waiting."""
        if store.is_finished(self.target):
            return "finished"
        made = self.runs()
        return "waiting" if not made or made[-1].status == "finished" else made[-1].status

    def seconds(self) -> float:
        """Of its own runs so far, failed attempts included."""
        return sum(run.manifest["seconds"] for run in self.runs())


@dataclass(frozen=True)
class Ablation:
    """A design and its file; `members` composes all, `member` one."""

    name: str  # without ablations/
    description: str
    base: str
    overrides: tuple[str, ...]  # the file's and then the command line's
    given: tuple[str, ...]  # the command line's
    design: str
    factors: dict[str, Levels]
    cells: list[Cell]
    seeds: list[int]
    seed_inputs: bool
    metric: Metric
    also: tuple[str, ...]
    measure: dict[str, Any] | None
    budget: dict[str, float]
    composed: dict[int, Member] = field(default_factory=dict, repr=False, compare=False)  # so far, by number
    read: dict[Any, Inputs] = field(default_factory=dict, repr=False, compare=False)  # what `_inputs` made so far

    @property
    def command(self) -> str:
        import shlex

        return shlex.join(("athanor", "sweep", f"ablation={self.name}", *self.given))

    @property
    def report_command(self) -> str:
        return self.command.replace("sweep", "report", 1)

    @property
    def directory(self) -> Path:
        """Where its report and the words of its members go; members' runs are where all runs are."""
        science = [re.sub(r"[^\w.=+-]+", "_", text) for text in self.given if not config.is_execution(text)]
        return self._root / "ablations" / ",".join([self.name, *sorted(science)])[:200]

    @property
    def labels(self) -> dict[str, list[str]]:
        return {factor: list(levels) for factor, levels in self.factors.items()}

    def __len__(self) -> int:
        return len(self.cells) * len(self.seeds)

    @cached_property
    def members(self) -> list[Member]:
        """All, composed.

        Raises:
            UserError: one does not compose, or two are the same run.
        """
        members = [self.member(number) for number in range(1, len(self) + 1)]
        seen: dict[Path, Member] = {}
        for member in members:
            other = seen.setdefault(member.target.directory, member)
            if other is not member:
                raise UserError(
                    f"{self._file}: {member.title!r} is the same run as {other.title!r}, so there is nothing to "
                    f"compare; a level's overrides must change the science of {self.base}"
                )
        return members

    def member(self, number: int) -> Member:
        """The member of that number, composed."""
        if not 1 <= number <= len(self):
            raise UserError(f"ablation {self.name} has members 1 to {len(self)}, not {number}")
        if number not in self.composed:
            self.composed[number] = self._compose(number)
        return self.composed[number]

    def _compose(self, number: int) -> Member:
        seed, cell = self.seeds[(number - 1) // len(self.cells)], self.cells[(number - 1) % len(self.cells)]
        levels = dict(zip(self.factors, cell))
        # What departs from the baseline comes last: it may delete a key that another factor's baseline sets.
        departing = sorted(levels.items(), key=lambda item: item[1] != self.labels[item[0]][0])
        chosen = [override for factor, label in departing for override in self.factors[factor][label]]
        own, changes = _parted((*self.overrides, *chosen))
        inputs = self._inputs(seed, changes)
        experiment = config.load(self.base, (*own, f"seed={seed}"), stand_ins=inputs)
        measured = None
        if self.measure:
            measured = config.load(
                self.measure["experiment"],
                (*self.measure.get("overrides", ()), *self._execution),
                inputs={self.measure["input"]: experiment},
                stand_ins=inputs,
            )
        return Member(number, seed, levels, experiment, measured, f"ablations/{self.name}")

    def validate(self, check: Callable[[Member], None] | None = None) -> None:
        """Raise one UserError with the problems of all members, each once; those of the first seed before any other.

        Args:
            check: what to look for besides, raising a UserError.
        """
        for numbers in (range(1, len(self.cells) + 1), range(len(self.cells) + 1, len(self) + 1)):
            problems: dict[str, dict[str, None]] = {}  # and who has them
            for number in numbers:
                title = ", ".join(self.cells[(number - 1) % len(self.cells)])
                try:
                    member = self.member(number)
                    for experiment in filter(None, (member.experiment, member.measured)):
                        experiment.validate()
                    if check:
                        check(member)
                except UserError as error:
                    problems.setdefault(str(error).replace("\n  - ", "\n      - "), {})[title] = None
            if problems:
                lines = [
                    text if len(titles) == len(self.cells) > 1 else f"{'; '.join(titles)}: {text}"
                    for text, titles in problems.items()
                ]
                raise UserError("\n  - ".join((f"ablation {self.name} cannot run:", *lines)))
        _ = self.members  # no two are the same run

    def inputs(self) -> list[Experiment]:
        """The unfinished runs that every member waits for, in the order to make them."""
        own = {entry.directory for member in self.members for entry in (member.experiment, member.target)}
        waiting = [
            {e.directory: e for e in (*store.unfinished_inputs(m.experiment), *store.unfinished_inputs(m.target))}
            for m in self.members
            if not store.is_finished(m.target)
        ]
        common = set.intersection(*map(set, waiting)) - own if waiting else set()
        return [experiment for directory, experiment in (waiting[0].items() if waiting else ()) if directory in common]

    def over_budget(self) -> str:
        """Why no further member may begin; "" while one may."""
        hours = self.budget.get("hours", math.inf)
        spent = sum(member.seconds() for member in self.members) / 3600
        return f"{spent:.2g} of {hours:g} hours are spent" if spent >= hours else ""

    @property
    def _file(self) -> str:
        return f"experiments/ablations/{self.name}.yaml"

    @cached_property
    def _execution(self) -> list[str]:
        assert self.measure
        return config.applicable(self.measure["experiment"], list(filter(config.is_execution, self.overrides)))

    @cached_property
    def first(self) -> Experiment:
        """The base with what all members have, no level chosen."""
        return config.load(self.base, _parted(self.overrides)[0])

    @property
    def _root(self) -> Path:
        return Path(self.first.config["paths"]["runs"])

    @cached_property
    def _shared(self) -> Inputs:
        """What members read, near and far, that is composed without overrides of its own: composed once for all."""

        def plain(experiments: Iterable[Experiment]) -> Inputs:
            return {e.name: e for e in experiments if all(map(config.is_execution, e.overrides))}

        found = plain(self.first.upstream())
        if self.measure:
            own = config.load(self.measure["experiment"], self._execution, stand_ins=found)
            found |= {name: e for name, e in plain(own.upstream()).items() if name not in (*found, self.base)}
        return found

    def _inputs(self, seed: int, changes: Mapping[str, tuple[str, ...]]) -> Inputs:
        """What a member of that seed reads, with these overrides of it."""
        if unknown := sorted(set(changes) - set(self._shared)):
            hint = catalog.suggest(unknown[0], self._shared)
            raise UserError(f"{self._file}: {self.base} does not read from {unknown[0]!r}{hint}")
        key = (seed if self.seed_inputs else None, *changes.items())
        if key not in self.read:
            found: Inputs = {}
            for name, usual in self._shared.items():
                own = changes.get(name, ())
                own += (f"seed={seed}",) if self.seed_inputs and "seed" in usual.config else ()
                if own or any(found.get(e.name, e) is not self._shared.get(e.name, e) for e in usual.upstream()):
                    usual = config.load(name, (*usual.overrides, *own), stand_ins=found)
                found[name] = usual
            self.read[key] = found
        return self.read[key]


def load(name: str, overrides: Sequence[str] = ()) -> Ablation:
    """Read `experiments/ablations/NAME.yaml`.

    Args:
        overrides: of every member, in Hydra's syntax.

    Raises:
        UserError: there is no such file, or it is not as described above.
    """
    name = name.removeprefix("ablations/")
    file = SweepFile.read(f"ablations/{name}", KEYS, ("base", "factors", "seeds", "metric"))
    text = file.text
    design = text.get("design", "one_at_a_time")
    if design not in DESIGNS:
        raise file.refusal(f"there is no design {design!r}{catalog.suggest(str(design), DESIGNS)}")
    if not isinstance(text["factors"], dict):
        raise file.refusal("`factors` must map names to levels, the first of each being the baseline")
    factors = {
        str(factor): file.levels("factors", str(factor), given, inputs=True)
        for factor, given in text["factors"].items()
    }
    combinations = _combinations(file, design, factors)
    ablation = Ablation(
        name=name,
        description=file.description,
        base=str(text["base"]),
        overrides=(*file.words(text.get("overrides"), "overrides", inputs=True), *overrides),
        given=tuple(overrides),
        design=design,
        factors=factors,
        cells=layout({factor: list(levels) for factor, levels in factors.items()}, design, combinations),
        seeds=file.seeds,
        seed_inputs=_seed_inputs(file),
        metric=file.metric,
        also=_also(file),
        measure=_measure(file),
        budget=file.budget,
    )
    if len(ablation) > (most := ablation.budget.get("members", math.inf)):
        raise file.refusal(f"{len(ablation)} members are more than budget.members, {most:g}; raise it or vary less")
    return ablation


def layout(
    factors: Mapping[str, Sequence[str]], design: str, combinations: Sequence[Mapping[str, str]] = ()
) -> list[Cell]:
    """The cells of a design, baseline first.

    Args:
        design: "one_at_a_time", "grid", or "listed", where `combinations` name levels and what they leave out is at
            its baseline.
    """
    base = {factor: labels[0] for factor, labels in factors.items()}
    if design == "grid":
        cells = [dict(zip(factors, combination)) for combination in itertools.product(*factors.values())]
    elif design == "one_at_a_time":
        cells = [base, *(base | {factor: label} for factor, labels in factors.items() for label in labels[1:])]
    else:
        cells = [base, *(base | dict(combination) for combination in combinations)]
    return list(dict.fromkeys(tuple(cell.values()) for cell in cells))


def _combinations(file: SweepFile, design: str, factors: Mapping[str, Levels]) -> list[dict[str, str]]:
    given = file.text.get("combinations")
    if (design == "listed") != bool(given):
        raise file.refusal(
            "`design: listed` goes with `combinations: [{factor: level}, ...]`, and no other design does"
        )
    found = []
    for combination in given or ():
        if not isinstance(combination, dict) or not combination:
            raise file.refusal("each of `combinations` must map factors to levels")
        for factor, level in combination.items():
            if factor not in factors:
                raise file.refusal(f"combinations name a factor {factor!r}{catalog.suggest(str(factor), factors)}")
            if label(level) not in factors[factor]:
                hint = catalog.suggest(label(level), factors[factor])
                raise file.refusal(f"factor {factor} has no level {label(level)!r}{hint}")
        found.append({str(factor): label(level) for factor, level in combination.items()})
    return found


def _parted(overrides: Sequence[str]) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Those of an experiment itself, and by name those of experiments that it reads from."""
    own: list[str] = []
    above: dict[str, tuple[str, ...]] = {}
    for text in overrides:
        if found := re.fullmatch(r"([\w./-]+): (.*)", text, re.DOTALL):
            above[found[1]] = (*above.get(found[1], ()), found[2])
        else:
            own.append(text)
    return tuple(own), above


def _seed_inputs(file: SweepFile) -> bool:
    given = file.text.get("seed_inputs", False)
    if not isinstance(given, bool):
        raise file.refusal("`seed_inputs` must be true or false")
    return given


def _also(file: SweepFile) -> tuple[str, ...]:
    given = file.text.get("also") or []
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise file.refusal("`also` must be a list of metrics")
    return tuple(given)


def _measure(file: SweepFile) -> dict[str, Any] | None:
    given = file.text.get("measure")
    if given is None:
        return None
    if not isinstance(given, dict) or not given.get("experiment") or not given.get("input"):
        raise file.refusal("`measure` must be `{experiment: ..., input: the input that is to be the member's run}`")
    file.known("measure", given, ("experiment", "input", "overrides"))
    return given | {"overrides": file.words(given.get("overrides"), "measure.overrides")}
