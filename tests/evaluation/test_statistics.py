"""Intervals: known values, and coverage by simulation (a 95% interval must hold the truth 95% of the time)."""

import numpy as np
import pytest
from scipy.stats import binom

from athanor.evaluation import statistics
from athanor.evaluation.statistics import bootstrap, interval, paired_difference, wilson


def coverage(make, truth, trials=400):
    """Share of simulated intervals that hold the truth; its standard error at 0.95 and 400 trials is 0.011."""
    return np.mean([i.low <= truth <= i.high for i in (make(np.random.default_rng(s)) for s in range(trials))])


def test_wilson_known_values():
    # Newcombe 1998, Statist. Med. 17:857, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for successes, n, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)]:
        found = wilson(successes, n)
        assert found.value == successes / n
        assert found.low == pytest.approx(low, abs=5e-5)
        assert found.high == pytest.approx(high, abs=5e-5)
    assert wilson(1, 29).low == pytest.approx(0.0061, abs=5e-5)
    assert wilson(29, 29).high == 1.0


@pytest.mark.parametrize("p", [0.02, 0.5, 0.97])
def test_wilson_covers(p):
    # Exact, by summing the binomial. Wilson's coverage is 95% on average and dips to 92% at n = 60.
    n = 60
    held = sum(binom.pmf(k, n, p) for k in range(n + 1) if wilson(k, n).low <= p <= wilson(k, n).high)
    assert 0.92 < held < 0.985


def test_bootstrap_covers_a_skewed_mean(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    held = coverage(lambda rng: bootstrap(rng.exponential(2.0, 60)), 2.0)
    assert 0.91 < held < 0.98


def test_bootstrap_covers_a_ratio_over_clusters(monkeypatch):
    """Tokens of a document share its difficulty, so the interval is over documents."""
    monkeypatch.setattr(statistics, "RESAMPLES", 999)

    def make(rng):
        tokens = rng.integers(20, 200, 80)
        nats = tokens * (3 + rng.normal(0, 0.5, 80))
        return bootstrap(nats, tokens)

    assert 0.91 < coverage(make, 3.0) < 0.98


def test_paired_difference_covers_and_is_narrower_than_unpaired(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 999)

    def answers(rng):
        hard = rng.random(150)
        return (hard < 0.6).astype(float), (hard + rng.normal(0, 0.05, 150) < 0.5).astype(float)

    truth = np.mean(
        [a.mean() - b.mean() for a, b in (answers(np.random.default_rng(s)) for s in range(10_000, 14_000))]
    )
    assert 0.91 < coverage(lambda rng: paired_difference(*answers(rng)), truth) < 0.98
    a, b = answers(np.random.default_rng(0))
    paired = paired_difference(a, b)
    assert paired.value == pytest.approx(a.mean() - b.mean())
    assert paired.high - paired.low < (wilson(a.sum(), 150).high - wilson(a.sum(), 150).low)


def test_a_null_difference_is_rarely_called_clear(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 999)

    def make(rng):
        return paired_difference((rng.random(200) < 0.3).astype(float), (rng.random(200) < 0.3).astype(float))

    false_alarms = np.mean([make(np.random.default_rng(s)).clear_of_zero for s in range(400)])
    assert false_alarms < 0.09


def test_direction_and_sign():
    better, worse = np.ones(40), np.r_[np.zeros(30), np.ones(10)]
    up, down = paired_difference(better, worse), paired_difference(worse, better)
    assert up.value == 0.75
    assert up.low > 0.5
    assert up.clear_of_zero
    assert down == (pytest.approx(-up.value), pytest.approx(-up.high, abs=0.03), pytest.approx(-up.low, abs=0.03), 40)


def test_no_false_certainty():
    assert wilson(20, 20).low < 0.85
    same = paired_difference(np.ones(20), np.ones(20))
    assert same.value == 0
    assert same.low < -0.05 < 0.05 < same.high
    assert np.isnan(bootstrap([3.0]).low)
    assert not bootstrap([3.0]).clear_of_zero
    assert bootstrap([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0, 3)


def test_weights_give_the_ratio_of_sums():
    found = bootstrap([10.0, 2.0, 9.0], [5, 1, 3])
    assert found.value == pytest.approx(21 / 9)
    assert found.low < found.value < found.high
    difference = paired_difference([10.0, 2.0, 9.0], [8.0, 2.0, 6.0], [5, 1, 3])
    assert difference.value == pytest.approx(5 / 9)


def test_interval_chooses_and_large_samples_stay_cheap():
    assert interval([1, 0, 1, 1]) == wilson(3, 4)
    assert interval([1, 0.5, 1, 0]).value == 0.625
    big = np.random.default_rng(0).exponential(1.0, 20_000)
    found = interval(big)
    assert found.low < big.mean() < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * big.std() / np.sqrt(len(big)), rel=0.05)
    assert interval(big) == found


def test_errors():
    for bad in (lambda: wilson(3, 2), lambda: wilson(0, 0), lambda: bootstrap([]), lambda: bootstrap([1, 2], [0, 0])):
        with pytest.raises(ValueError, match=" "):
            bad()
    with pytest.raises(ValueError, match="same items"):
        paired_difference([1, 2], [1, 2, 3])
