"""How far annotators agree beyond chance, and how many labels are wrong, judged by a gold subset.

Cohen's kappa of two annotators (1960) by scikit-learn, on the items both labelled; Fleiss' kappa of several (1971) by
statsmodels, on the items that equally many labelled, the commonest number; Krippendorff's alpha (1970), nominal, of
whatever there is, by the package krippendorff. Spans are compared by the unit (see `athanor.corpus.units`): the label
of the span that covers it, or none; and by exact spans, F1 of two annotators (Hripcsak & Rothschild 2005,
doi:10.1197/jamia.M1733). Free answers have no labels: how many are equal, and how many units they share, F1.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from athanor.annotation.items import Item, Kind
from athanor.annotation.project import Project
from athanor.corpus.normalize import rare
from athanor.corpus.units import UNIT, units
from athanor.errors import UserError
from athanor.evaluation.statistics import Interval, bootstrap, wilson

TARGET = 0.03
NONE = ""  # the label of a unit outside all spans
MOST_GOLD = 100_000


class Pair(NamedTuple):
    """Two annotators. kappa: Cohen's; None where all is one label, or answers are free. f1: of exact spans, or of the
    units of free answers.
    """

    one: str
    other: str
    items: int
    equal: float  # share of the items
    kappa: float | None
    f1: float | None


class Agreement(NamedTuple):
    """labelled: items of each annotator. fleiss: (kappa, items, annotators an item). disputed: items on which not all
    agree.
    """

    labelled: dict[str, int]
    pairs: list[Pair]
    fleiss: tuple[float, int, int] | None
    alpha: float | None
    disputed: list[str]


def agreement(project: Project, without: Sequence[str] = ("gold",)) -> Agreement:
    """
    Args:
        without: annotators who do not count, such as gold and an adjudicator.

    Raises:
        UserError: no item was labelled by two annotators.
    """
    said = {
        identity: {who: value for who, value in found.items() if who not in without}
        for identity, found in project.annotations.items()
    }
    shared = {identity: found for identity, found in said.items() if len(found) > 1}
    if not shared:
        raise UserError(
            f"no item of {project.directory} was annotated by two people; import what they exported, or say --gold."
        )
    rows = [row for identity, found in said.items() for row in labels(project.items[identity], found)]
    free = project.kind == "answers"
    pairs = []
    for one, other in combinations(sorted({who for found in shared.values() for who in found}), 2):
        both = {identity: (found[one], found[other]) for identity, found in shared.items() if {one, other} <= {*found}}
        if both:
            equal = sum(a == b for a, b in both.values()) / len(both)
            kappa = None if free else cohen([(row[one], row[other]) for row in rows if one in row and other in row])
            pairs.append(Pair(one, other, len(both), equal, kappa, f1(project.kind, list(both.values()))))
    return Agreement(
        labelled=dict(sorted(Counter(who for found in said.values() for who in found).items())),
        pairs=pairs,
        fleiss=None if free else fleiss(rows),
        alpha=None if free else krippendorff(rows),
        disputed=[identity for identity, found in shared.items() if len({str(v) for v in found.values()}) > 1],
    )


def labels(item: Item, said: Mapping[str, Any]) -> list[dict[str, str]]:
    """The nominal labels that each annotator gave: one row an item, or one a unit of a text with spans."""
    if item.kind != "spans":
        return [dict(said)]
    starts = [found.start() for found in UNIT.finditer(item.text)]
    return [{who: covering(spans, start) for who, spans in said.items()} for start in starts]


def covering(spans: Sequence[Sequence[Any]], place: int) -> str:
    return next((label for start, end, label in spans if start <= place < end), NONE)


def cohen(pairs: Sequence[tuple[str, str]]) -> float | None:
    metrics = rare("sklearn.metrics", "annotate")
    ones, others = zip(*pairs)
    if len({*ones, *others}) < 2:
        return None
    return float(metrics.cohen_kappa_score(ones, others))


def fleiss(rows: Sequence[Mapping[str, str]]) -> tuple[float, int, int] | None:
    from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

    sizes = Counter(len(row) for row in rows if len(row) > 1)
    if not sizes:
        return None
    raters = max(sizes, key=lambda size: (sizes[size], size))
    table, categories = aggregate_raters(np.array([[*row.values()] for row in rows if len(row) == raters]))
    if len(categories) < 2:
        return None
    return float(fleiss_kappa(table)), len(table), raters


def krippendorff(rows: Sequence[Mapping[str, str]]) -> float | None:
    package = rare("krippendorff", "annotate")
    values = sorted({value for row in rows for value in row.values()})
    if len({value for row in rows if len(row) > 1 for value in row.values()}) < 2:
        return None
    counts = np.array([[list(row.values()).count(value) for value in values] for row in rows])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows of one annotator
        return float(package.alpha(value_counts=counts, level_of_measurement="nominal"))


def f1(kind: Kind, pairs: Sequence[tuple[Any, Any]]) -> float | None:
    """Of what two annotators gave, over all items together."""
    if kind not in ("spans", "answers"):
        return None
    parts: Callable[[Any], Counter] = Counter[Any]
    sets = [(parts(elements(kind, one)), parts(elements(kind, other))) for one, other in pairs]
    total = sum(one.total() + other.total() for one, other in sets)
    return 2 * sum((one & other).total() for one, other in sets) / total if total else None


def elements(kind: Kind, value: Any) -> list[Any]:
    return [tuple(span) for span in value] if kind == "spans" else units(value.casefold())


class ErrorRate(NamedTuple):
    """The share of labels that the gold subset says are wrong, with its 95% interval.

    Of spans: of all that are in the labels or in the gold, those that are not in both, by a bootstrap over texts.
    needed: how many gold items would show it below the target if the rate stays what it is; None if none would, or of
        spans, which depend on one another.
    """

    rate: Interval
    errors: int
    items: int
    target: float
    needed: int | None

    @property
    def verdict(self) -> str:
        if self.rate.high < self.target:
            return "below the target"
        return "above the target" if self.rate.low >= self.target else "undecided"


def error_rate(kind: Kind, labels: Mapping[str, Any], gold: Mapping[str, Any], target: float = TARGET) -> ErrorRate:
    """
    Args:
        labels, gold: values by item; the items of both count.

    Raises:
        UserError: answers are free, or no gold item has a label.
    """
    if kind == "answers":
        raise UserError("free answers are not right or wrong by a gold answer; have people judge them, as classes.")
    shared = sorted({*labels} & {*gold})
    if not shared:
        raise UserError("no gold item has a label; annotate some of those that have a gold label.")
    if kind != "spans":
        wrong = np.array([labels[identity] != gold[identity] for identity in shared])
        rate: Interval | None = wilson(wrong.sum(), len(wrong))
        errors = int(wrong.sum())
    else:
        sets = [({*map(tuple, labels[i])}, {*map(tuple, gold[i])}) for i in shared]
        wrong = np.array([len(one ^ other) for one, other in sets])
        whole = np.array([len(one | other) for one, other in sets])
        if not whole.sum():
            raise UserError("neither the labels nor the gold have a span; take texts that have some as gold.")
        errors = int(wrong.sum())
        rate = bootstrap(wrong, whole) if 0 < errors < whole.sum() else None
        if rate is None or not rate.low < rate.high:  # of no width: as if each text were one label
            texts = int(np.count_nonzero(whole))
            rate = wilson(texts * errors / whole.sum(), texts)
    assert rate is not None
    return ErrorRate(rate, errors, len(shared), target, needed(rate.value, target) if kind != "spans" else None)


def needed(rate: float, target: float) -> int | None:
    """The fewest items, to 1%, whose interval at this rate lies below the target."""
    n = 1
    while n <= MOST_GOLD:
        if wilson(math.ceil(rate * n - 1e-9), n).high < target:
            return n
        n = max(n + 1, round(1.01 * n))
    return None
