"""What a few seeds say about a difference, and what they do not.

Seeds are the replicates: everything else about two members is fixed, and members of one seed share data order and
initialisation, so levels are compared to the baseline *within* seeds.

* intervals: Student's t over seeds, two-sided 95%. Three to five values carry no bootstrap (resampling n = 3 gives ten
  distinct samples, and its interval covers far less than it says), and the t interval is exact for normal noise.
* p: the paired t-test, two-sided, corrected by Holm (1979) over all comparisons that the ablation plans: a comparison
  whose runs are missing counts as p = 1, so the correction does not become milder by a failure.
* where the differences do not vary at all (metrics that are counts of few items) the t-test does not exist; then the
  exact sign test, p = 2 * 0.5^n, and no interval.
* effect: the mean difference in standard deviations of the difference between seeds, with Hedges' (1981) correction.
* more seeds: the least n at which the paired t-test at level 0.05 / comparisons finds a difference of d with
  probability 0.8, taking the spread seen so far for the true one. With few seeds that spread is itself uncertain.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from scipy import special

from athanor.evaluation.statistics import Interval
from athanor.sweeps.ablation import Cell

LEVEL = 0.05
POWER = 0.8
MOST_SEEDS = 1000
NAN = float("nan")


@dataclass(frozen=True)
class Paired:
    """Differences candidate - baseline of the seeds that have both."""

    difference: Interval
    spread: float  # standard deviation over seeds, NaN below two
    p: float  # NaN where there is no test
    effect: float  # NaN below three seeds, and where the differences do not vary


@dataclass(frozen=True)
class Level:
    """One level of a factor, or one combination: its values over seeds and how they differ from the baseline's."""

    factor: str
    label: str
    is_baseline: bool
    mean: Interval
    values: dict[int, float]  # by seed; of a grid the mean over the other factors
    missing: tuple[int, ...]  # seeds planned and without a value
    paired: Paired | None = None  # None for the baseline
    p_holm: float = NAN
    tone: str = ""  # "good", "bad" or ""
    cells: tuple[Cell, ...] = field(default=())
    resolve: float | None = None  # the smallest difference worth knowing
    comparisons: int = 1  # made at once

    @cached_property
    def verdict(self) -> str:
        """In words; "" for the baseline."""
        if self.paired is None:
            return ""
        difference, spread, n = self.paired.difference, self.paired.spread, self.paired.difference.n
        planned = len(self.values) + len(self.missing)
        few = f" ({n} of {planned} seeds)" if n < planned else ""
        if n == 0:
            return "no verdict: no seed has finished both this and the baseline"
        if n == 1:
            return "no verdict: one seed has no interval; whether another seed would say the same is unknown"
        if self.tone:
            return ("better" if self.tone == "good" else "worse") + few
        if difference.value == 0 and spread == 0:
            return f"no difference: the same value in every seed{few}"
        if spread == 0:
            return f"within noise{few}: the same difference in all {n} seeds, which are too few for a sign test"
        least = abs(difference.value if self.resolve is None else self.resolve)
        needed = seeds_to_resolve(least, spread, self.comparisons)
        if needed is None:
            more = f"more than {MOST_SEEDS:,} seeds would be needed to resolve a difference of {least:.2g}"
        elif needed > n:
            k = needed - n
            more = f"about {k} more {'seed' if k == 1 else 'seeds'} would resolve a difference of {least:.2g}"
        else:
            more = f"a difference of {least:.2g} would likely have shown"
        return f"within noise{few}; {more}"


def mean_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Mean over seeds with its t interval; bounds are NaN below two values, or where they do not vary."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 0:
        return Interval(NAN, NAN, NAN, 0)
    if len(array) == 1 or _constant(array):
        return Interval(float(array.mean()), NAN, NAN, len(array))
    mean, n = float(array.mean()), len(array)
    half = float(special.stdtrit(n - 1, 1 - LEVEL / 2) * array.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def paired(candidate: Sequence[float], baseline: Sequence[float]) -> Paired:
    """Compare within seeds.

    Args:
        candidate, baseline: one value a seed [N], seed i the same in both.
    """
    if len(candidate) != len(baseline):
        raise ValueError(f"pairs need the same seeds on both sides; got {len(candidate)} and {len(baseline)}")
    difference = np.asarray(candidate, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    n = len(difference)
    scale = max(1e-300, float(np.abs([candidate, baseline]).max(initial=0)))
    interval = mean_interval(difference)
    if n < 2:
        return Paired(interval, NAN, NAN, NAN)
    if np.ptp(difference) <= 1e-12 * scale:  # rounding of a - b, not spread
        moved = abs(interval.value) > 1e-12 * scale
        value = interval.value if moved else 0.0
        return Paired(Interval(value, NAN, NAN, n), 0.0, 2 * 0.5**n if moved else 1.0, NAN)
    spread = float(difference.std(ddof=1))
    p = float(2 * special.stdtr(n - 1, -abs(interval.value) / spread * math.sqrt(n)))
    return Paired(interval, spread, p, interval.value / spread * _hedges(n - 1))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values; a NaN counts as one of the comparisons and stays NaN."""
    array = np.nan_to_num(np.asarray(p, dtype=np.float64), nan=1.0)
    order, adjusted = np.argsort(array), np.empty(len(array))
    adjusted[order] = np.minimum(np.maximum.accumulate(array[order] * np.arange(len(array), 0, -1)), 1)
    return [float(q) if math.isfinite(raw) else NAN for raw, q in zip(p, adjusted)]


def seeds_to_resolve(difference: float, spread: float, comparisons: int = 1) -> int | None:
    """The least number of seeds that finds a true difference of that size with probability 0.8; None above 1,000.

    Args:
        spread: standard deviation of the paired difference between seeds, > 0.
        comparisons: made at once; each is tested at 0.05 / comparisons, the hardest step of Holm's.
    """
    from statsmodels.stats.power import TTestPower

    if not difference or not spread > 0:
        return None
    test, effect, alpha = TTestPower(), abs(difference) / spread, LEVEL / comparisons
    quantiles = special.ndtri(1 - alpha / 2) + special.ndtri(POWER)
    n = max(2, math.floor(min(MOST_SEEDS, (quantiles / effect) ** 2)))  # were the spread known: no more are enough
    while n <= MOST_SEEDS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            power = float(test.power(effect, n, alpha))
        if not power < POWER:  # NaN from the noncentral t: the power is 1 to all digits
            return n
        n += 1
    return None


def compare(
    factors: Mapping[str, Sequence[str]],
    cells: Sequence[Cell],
    seeds: Sequence[int],
    values: Mapping[tuple[Cell, int], float],
    *,
    better: str,
    resolve: float | None = None,
    listed: bool = False,
) -> list[Level]:
    """Every level of every factor against the factor's first, its baseline; of a listed design every cell.

    A level is compared in the contexts (levels of the other factors) in which the design has both it and the
    baseline: one context where factors vary one at a time, all of them in a grid, where the comparison is of main
    effects. A seed counts for a comparison if none of its runs is missing.

    Args:
        cells: the design; the first holds every factor's first level.
        values: the metric of the members that have a finite one.
        better: "lower" or "higher".
        resolve: the smallest difference worth knowing, for the number of seeds that would resolve it; None for the
            difference seen.
    """
    levels = [
        _level(factor, label, is_baseline, pairs, seeds, values)
        for factor, label, is_baseline, pairs in _comparisons(factors, cells, listed)
    ]
    tested = [at for at, level in enumerate(levels) if not level.is_baseline]
    adjusted = holm([levels[at].paired.p for at in tested])  # type: ignore[union-attr]
    for at, p in zip(tested, adjusted):
        tone = ""
        if p < LEVEL:
            tone = "good" if (levels[at].paired.difference.value < 0) == (better == "lower") else "bad"  # type: ignore[union-attr]
        levels[at] = replace(levels[at], p_holm=p, tone=tone, resolve=resolve, comparisons=len(tested))
    return levels


def _comparisons(factors: Mapping[str, Sequence[str]], cells: Sequence[Cell], listed: bool):
    """(factor, label, whether it is the baseline, pairs of cells (its own, the baseline's))."""
    base, known = cells[0], set(cells)
    if listed:
        for cell in cells:
            label = ", ".join(f"{f} {level}" for f, level, usual in zip(factors, cell, base) if level != usual)
            yield "combination", label or "baseline", cell == base, [(cell, base)]
        return
    for at, (factor, labels) in enumerate(factors.items()):
        for label in labels:
            own = [cell for cell in cells if cell[at] == label]
            pairs = [(cell, (*cell[:at], labels[0], *cell[at + 1 :])) for cell in own]
            if label == labels[0] and len(pairs) > 1:  # of one factor at a time, only the baseline itself
                everywhere = all((*cell[:at], other, *cell[at + 1 :]) in known for cell in own for other in labels)
                pairs = pairs if everywhere else [(base, base)]
            yield factor, label, label == labels[0], [(a, b) for a, b in pairs if b in known]


def _level(factor, label, is_baseline, pairs, seeds, values) -> Level:
    own = {
        seed: float(np.mean([values[cell, seed] for cell, _ in pairs]))
        for seed in seeds
        if all((cell, seed) in values for cell, _ in pairs)
    }
    theirs = {
        seed: float(np.mean([values[cell, seed] for _, cell in pairs]))
        for seed in seeds
        if all((cell, seed) in values for _, cell in pairs)
    }
    both = [seed for seed in own if seed in theirs]
    return Level(
        factor=factor,
        label=label,
        is_baseline=is_baseline,
        mean=mean_interval(list(own.values())),
        values=own,
        missing=tuple(seed for seed in seeds if seed not in own),
        paired=None if is_baseline else paired([own[s] for s in both], [theirs[s] for s in both]),
        cells=tuple(cell for cell, _ in pairs),
    )


def bands(curves: Sequence[tuple[Sequence[int], Sequence[float]]]) -> list[tuple[int, Interval]]:
    """Mean over seeds at every step that all of them logged, with its t interval.

    Args:
        curves: of each seed (steps, values).
    """
    points = [dict(zip(steps, values)) for steps, values in curves]
    shared = sorted(set.intersection(*map(set, points))) if points else []
    found = [(step, mean_interval([p[step] for p in points])) for step in shared]
    return [(step, mean) for step, mean in found if math.isfinite(mean.value)]


def _constant(array: np.ndarray) -> bool:
    return bool(np.ptp(array) <= 1e-12 * max(1e-300, float(np.abs(array).max())))


def _hedges(degrees: int) -> float:
    """Exact small-sample correction of a standardised mean difference (Hedges 1981, eq. 6e); there is none for 1."""
    if degrees < 2:
        return NAN
    return float(np.exp(special.gammaln(degrees / 2) - special.gammaln((degrees - 1) / 2)) / math.sqrt(degrees / 2))
