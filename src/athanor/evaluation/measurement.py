"""What a task hands back: values by item, and from these means with intervals, of all items and of slices of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from athanor.corpus.contamination import passages
from athanor.evaluation.statistics import bootstrap, interval

KEYS = ("language", "family", "level")


@dataclass
class Measurement:
    """One metric, one value an item.

    Args:
        items: for each item at least "id"; sliced by "language", "family", "level", and language with each other. By
            its "texts" an item is looked for in the training text.
        values: one number an item, or with weights a numerator.
        weights: denominators: the metric is then sum(values) / sum(weights).
        unit: "fraction", "nats/token", "bits/byte", ...
        better: which direction is good in itself.
    """

    name: str
    items: Sequence[dict[str, Any]]
    values: Sequence[float]
    unit: str
    better: Literal["higher", "lower", "none"]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        assert len(self.items) == len(self.values) == len(self.weights or self.values), "one value an item"

    def records(self) -> list[dict[str, Any]]:
        """{"name", "slice", "value", "low", "high", "n", "unit", "better"} of all items, then of each slice."""
        made = []
        for slice in slices(self.items):
            kept = [i for i, item in enumerate(self.items) if all(item.get(key) == slice[key] for key in slice)]
            estimate = interval if self.unit == "fraction" else bootstrap
            found = estimate([self.values[i] for i in kept], self.weights and [self.weights[i] for i in kept])
            # NaN is no JSON: the interval of a single item is null to null
            value, low, high = (None if np.isnan(number) else _rounded(number) for number in found[:3])
            made.append(
                {"name": self.name, "slice": slice, "value": value, "low": low, "high": high, "n": found.n}
                | {"unit": self.unit, "better": self.better}
            )
        return made

    def per_item(self) -> dict[str, Any]:
        """{"ids", "values", "slices": {key: one an item}, "weights"?}, from which paired differences are made."""
        columns = {key: [item[key] for item in self.items] for key in KEYS if all(key in item for item in self.items)}
        made = {"ids": [item["id"] for item in self.items], "values": _all_rounded(self.values), "slices": columns}
        return made | ({"weights": _all_rounded(self.weights)} if self.weights is not None else {})


@dataclass
class Outcome:
    """All that a task found."""

    measurements: list[Measurement]
    samples: list[dict[str, Any]] = field(default_factory=list)


def slices(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """{}, then each value of each key that all items have, then language with each value of the other keys."""
    found: list[dict[str, Any]] = [{}]
    keys = [key for key in KEYS if all(key in item for item in items)]
    combinations = [(key,) for key in keys] + [
        ("language", key) for key in keys if key != "language" and "language" in keys
    ]
    for names in combinations:
        distinct = sorted(
            {tuple(item[name] for name in names) for item in items}, key=lambda values: [str(v) for v in values]
        )
        found += [dict(zip(names, values)) for values in distinct]
    return found


def described(records: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """id, slicing keys and texts of records read from files; the id is the record's own, else where it stands."""
    return [
        {"id": str(record.get("id", where))}
        | {key: record[key] for key in KEYS if key in record}
        | {"texts": list(passages({key: value for key, value in record.items() if key not in ("id", *KEYS)}))}
        for where, record in records
    ]


def _rounded(value: float) -> float:
    """Seven significant digits: float32's worth."""
    return float(f"{value:.7g}")


def _all_rounded(values: Sequence[float]) -> list[float]:
    return [_rounded(value) for value in values]
