"""What the files of ablations and searches have in common: how one is read, and refused with its name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from athanor import catalog
from athanor.errors import UserError

Levels = dict[str, tuple[str, ...]]  # labels, and the overrides that each stands for


@dataclass(frozen=True)
class Metric:
    name: str
    better: str  # "lower" or "higher"
    resolve: float | None = None  # the smallest difference worth knowing


@dataclass(frozen=True)
class SweepFile:
    """A file below `experiments/`, read. Whatever it refuses is a UserError that begins with the file's path."""

    path: str  # as a user says it
    description: str
    text: dict[str, Any]

    @classmethod
    def read(cls, name: str, keys: Sequence[str], needed: Sequence[str]) -> SweepFile:
        """`experiments/NAME.yaml`, which may have `keys` and must have `needed`."""
        entry, path = catalog.find(name, "sweep"), f"experiments/{name}.yaml"
        try:
            text = yaml.safe_load(entry.path.read_text(encoding="utf-8"))
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else "?"
            raise UserError(f"{path}, line {line}: {error.problem}") from error
        if not isinstance(text, dict):
            raise UserError(f"{path}: it must map keys to values; say `{needed[0]}: ...`")
        file = cls(path, entry.description, text)
        file.known("", text, keys)
        if missing := [key for key in needed if not text.get(key)]:
            raise file.refusal(f"say `{missing[0]}: ...`")
        return file

    def refusal(self, problem: str) -> UserError:
        return UserError(f"{self.path}: {problem}")

    def known(self, where: str, given: Mapping[str, Any], keys: Sequence[str]) -> None:
        """Refuse keys that are not among these."""
        if wrong := sorted(set(given) - set(keys)):
            hint = catalog.suggest(wrong[0], keys)
            raise self.refusal(f"{where} has no {wrong[0]!r}{hint}" if where else f"unknown key {wrong[0]!r}{hint}")

    def words(self, given: Any, where: str, *, inputs: bool = False) -> tuple[str, ...]:
        """A list of overrides, or a single one.

        Args:
            inputs: whether `experiment: override` is allowed, and becomes one word.
        """
        words = [given] if isinstance(given, str | dict) else given or []
        if inputs and isinstance(words, list):
            words = [
                text
                for word in words
                for text in ([f"{k}: {v}" for k, v in word.items()] if isinstance(word, dict) else [word])
            ]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise self.refusal(f"{where} must be a list of overrides such as `optimizer.lr=1e-3`")
        return tuple(words)

    def levels(self, group: str, name: str, given: Any, *, inputs: bool = False) -> Levels:
        """Of `name` in the group: a list of values of that key, or a mapping of labels to overrides; see `words`."""
        found: Levels
        if isinstance(given, list):
            found = {label(value): (f"{name}={_literal(value)}",) for value in given}
        elif isinstance(given, dict):
            found = {label(k): self.words(v, f"{group}.{name}.{label(k)}", inputs=inputs) for k, v in given.items()}
        else:
            raise self.refusal(f"{group}.{name} needs a list of values, or a mapping of levels to overrides")
        if len(found) < 2 or len(found) < len(given):
            raise self.refusal(f"{group}.{name} needs at least two different levels")
        return found

    @property
    def seeds(self) -> list[int]:
        seeds = self.text.get("seeds", [1])
        sound = isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)
        if not sound or len(set(seeds)) < len(seeds):
            raise self.refusal("`seeds` must be a list of different whole numbers")
        return seeds

    @property
    def metric(self) -> Metric:
        given = self.text["metric"]
        if not isinstance(given, dict) or not given.get("name") or given.get("better") not in ("lower", "higher"):
            raise self.refusal("`metric` must be `{name: ..., better: lower}` or `better: higher`")
        self.known("metric", given, ("name", "better", "resolve"))
        resolve = given.get("resolve")
        if resolve is not None and not (isinstance(resolve, int | float) and resolve > 0):
            raise self.refusal("metric.resolve must be a number above 0")
        return Metric(given["name"], given["better"], resolve)

    @property
    def budget(self) -> dict[str, float]:
        given = self.text.get("budget")
        if given is None:
            return {}
        sound = isinstance(given, dict) and all(isinstance(v, int | float) and v > 0 for v in given.values())
        if not sound or set(given) - {"members", "hours"}:
            raise self.refusal("`budget` must be `{members: N, hours: H}`, or one of them, each above 0")
        return given


def label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _literal(value: Any) -> str:
    """A value in Hydra's syntax."""
    if isinstance(value, str) and not re.fullmatch(r"[\w.+/-]*", value, re.ASCII):
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{quoted}'"
    return label(value)
