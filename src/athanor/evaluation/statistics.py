"""Confidence intervals for what evaluation measures.

Which interval, and why:

* proportions (every value 0 or 1): Wilson's score interval (Wilson 1927). Near 0 and 1, where a weak or a finished
  model lives, the bootstrap collapses to a point and covers far less than it says.
* means and ratios of sums: bootstrap over items, bias-corrected and accelerated (BCa, Efron 1987), because losses by
  document and rewards are skewed and the percentile interval then sits off centre. Above `BCA_LIMIT` items the
  percentile interval: the two agree to O(1/n) there and BCa's jackknife costs n^2.
* differences between two models: bootstrap over *pairs* (the same items under both models), which drops the variance
  that the items share. Where all pairs of 0/1 values agree it would have no width; then the interval of Bonett and
  Price (2012).

All randomness is seeded: the same values give the same interval.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

BCA_LIMIT = 1000
RESAMPLES = 4000


class Interval(NamedTuple):
    """A measured value and its two-sided confidence interval; low and high are NaN where n is too small for one."""

    value: float
    low: float
    high: float
    n: int

    @property
    def clear_of_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def wilson(successes: float, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion. ValueError where n < 1 or successes lie outside [0, n]."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a proportion needs 0 <= successes <= n and n >= 1; got {successes} of {n}")
    z = stats.norm.ppf(0.5 + level / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At p = 0 and p = 1 the bound is exactly the value; rounding must not put it on the wrong side.
    return Interval(p, min(p, max(0.0, float(centre - half))), max(p, min(1.0, float(centre + half))), n)


def bootstrap(values, weights=None, *, level: float = 0.95, seed: int = 0) -> Interval:
    """Bootstrap interval over items of mean(values), or with weights of sum(values) / sum(weights).

    With weights the items are clusters: sums of nats by document over counts of tokens by document give the loss a
    token, with an interval that respects that tokens of one document are not independent.

    Args:
        values: one number an item [N].
        weights: denominators, one an item [N], each >= 0 and not all 0; None for a plain mean.
    """
    values = np.asarray(values, dtype=np.float64)
    sample: tuple[np.ndarray, ...] = (values,)
    if weights is not None:
        sample = (values, np.asarray(weights, dtype=np.float64))
        if sample[1].shape != values.shape or (sample[1] < 0).any() or not sample[1].sum() > 0:
            raise ValueError("weights must be one for each value, >= 0 and not all 0")
    n = len(values)
    if n == 0:
        raise ValueError("an interval needs at least one item")

    def statistic(values_RN, weights_RN=None, axis=-1):
        if weights_RN is None:
            return values_RN.mean(axis=axis)
        return values_RN.sum(axis=axis) / weights_RN.sum(axis=axis)

    value = float(statistic(*sample))
    if n == 1:
        return Interval(value, float("nan"), float("nan"), 1)
    residuals = values - value * (1 if weights is None else sample[1])
    if np.allclose(residuals, 0, rtol=0, atol=1e-12 * max(1.0, np.abs(values).max())):
        return Interval(value, value, value, n)
    methods = ("BCa", "percentile") if n <= BCA_LIMIT else ("percentile",)
    for method in methods:
        with np.errstate(all="ignore"):
            low, high = stats.bootstrap(
                sample,
                statistic,
                paired=True,
                vectorized=True,
                confidence_level=level,
                n_resamples=RESAMPLES,
                batch=max(1, 4_000_000 // n),
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite(low) and np.isfinite(high):
            break
    return Interval(value, float(low), float(high), n)


def interval(values, weights=None, *, level: float = 0.95) -> Interval:
    """Wilson's interval where all values are 0 or 1 and there are no weights, else the bootstrap."""
    values = np.asarray(values, dtype=np.float64)
    if weights is None and len(values) and np.isin(values, (0.0, 1.0)).all():
        return wilson(values.sum(), len(values), level=level)
    return bootstrap(values, weights, level=level)


def paired_difference(candidate, baseline, weights=None, *, level: float = 0.95) -> Interval:
    """Interval of mean(candidate - baseline) over the same items, or of sum(candidate - baseline) / sum(weights).

    Args:
        candidate, baseline: one number an item [N], item i the same in both.
        weights: as in `bootstrap`, common to both models.
    """
    candidate, baseline = np.asarray(candidate, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if candidate.shape != baseline.shape:
        raise ValueError(f"pairs need the same items on both sides; got {candidate.shape} and {baseline.shape}")
    difference = candidate - baseline
    binary = weights is None and np.isin([candidate, baseline], (0.0, 1.0)).all()
    if binary and len(difference) > 1 and np.ptp(difference) == 0:
        return _bonett_price(difference, level)
    return bootstrap(difference, weights, level=level)


def _bonett_price(difference: np.ndarray, level: float) -> Interval:
    """Adjusted Wald interval of a difference of paired proportions (Bonett and Price 2012, eq. 3)."""
    n = len(difference)
    gains, losses = ((difference > 0).sum() + 1) / (n + 2), ((difference < 0).sum() + 1) / (n + 2)
    half = stats.norm.ppf(0.5 + level / 2) * np.sqrt((gains + losses - (gains - losses) ** 2) / (n + 2))
    centre = gains - losses
    value = float(difference.mean())
    return Interval(value, min(value, max(-1.0, float(centre - half))), max(value, min(1.0, float(centre + half))), n)
