"""What a few seeds may be made to say: by hand, against scipy, and on 1,000 simulated sweeps whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from athanor.sweeps.ablation import layout
from athanor.sweeps.statistics import bands, compare, holm, mean_interval, paired, seeds_to_resolve

FACTORS = {"optimizer": ["muon", "adamw", "sgd"], "dropout": ["0", "0.1", "0.2"]}
SWEEPS = 1000


def simulate(factors, design, seeds, effects, *, noise=1.0, shared=3.0, chance):
    """Members' values: an effect for each level, a part that all members of a seed share, and noise."""
    cells = layout(factors, design)
    common = chance.normal(0, shared, len(seeds))
    values = {}
    for cell in cells:
        truth = sum(effects.get(level, 0.0) for level in cell)
        for at, seed in enumerate(seeds):
            values[cell, seed] = truth + common[at] + chance.normal(0, noise)
    return cells, values


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_the_interval_of_three_seeds_is_students():
    mean = mean_interval([1.0, 2.0, 6.0])
    quantile = 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))  # Student's with two degrees, in closed form
    half = quantile * math.sqrt(7) / math.sqrt(3)  # s^2 = (4 + 1 + 9) / 2
    assert mean.value == 3.0
    assert (mean.low, mean.high) == pytest.approx((3 - half, 3 + half), rel=1e-12)


def test_differences_are_taken_within_seeds():
    """Seeds differ by 100, levels by 1, 2 and 3 within them: unpaired, nothing could be said."""
    found = paired([11.0, 112.0, 213.0], [10.0, 110.0, 210.0])
    reference = stats.ttest_rel([11.0, 112.0, 213.0], [10.0, 110.0, 210.0])
    assert found.difference.value == 2.0
    assert found.spread == 1.0
    assert found.p == pytest.approx(reference.pvalue, rel=1e-12)
    assert found.p == pytest.approx(0.0741799, rel=1e-5)  # t = 2 sqrt 3 with two degrees: 1 - t / sqrt(t^2 + 2)
    bounds = reference.confidence_interval()
    assert (found.difference.low, found.difference.high) == pytest.approx((bounds.low, bounds.high), rel=1e-12)
    assert found.effect == pytest.approx(2 / math.sqrt(math.pi), rel=1e-12)  # Gamma(1) / (sqrt 1 Gamma(1/2))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    p = np.random.default_rng(1).random(40) ** 4
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_a_comparison_without_runs_still_counts():
    first, missing = holm([0.03, float("nan")])
    assert first == pytest.approx(0.06)
    assert math.isnan(missing)


def test_the_seeds_that_would_resolve_a_difference():
    """n = 34 for an effect of half a standard deviation (Cohen 1988); above 1,000 it says so; it is the least."""
    assert seeds_to_resolve(0.5, 1.0) == 34
    assert seeds_to_resolve(-0.5, 1.0) == 34
    assert seeds_to_resolve(0.01, 1.0) is None
    assert seeds_to_resolve(0.0, 1.0) is None
    assert seeds_to_resolve(1000.0, 1.0) == 2
    assert seeds_to_resolve(0.5, 1.0, comparisons=4) > 34


def test_the_promised_number_of_seeds_has_the_promised_power():
    n, chance = seeds_to_resolve(1.2, 1.0), np.random.default_rng(5)
    assert n is not None
    for seeds, expected in ((n, True), (n - 2, False)):
        differences = chance.normal(1.2, 1.0, (20_000, seeds))
        power = (stats.ttest_1samp(differences, 0, axis=1).pvalue < 0.05).mean()
        assert (power > 0.79) == expected


# --- simulated sweeps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("design", ["one_at_a_time", "grid"])
def test_intervals_cover_what_they_say(design, n):
    """Of level means and of differences, in 1,000 sweeps with seeds that differ three times as much as runs do.

    In a grid, with effects that add up, the truth of a difference is the level's own effect, and that of a level's
    mean is its effect and the mean effect of the other factor's levels.
    """
    chance, seeds = np.random.default_rng(n), list(range(n))
    effects = {"adamw": 0.7, "sgd": -2.0, "0.1": 0.1}
    hits: dict[str, list[bool]] = {"mean": [], "difference": []}
    for _ in range(SWEEPS):
        cells, values = simulate(FACTORS, design, seeds, effects, chance=chance)
        for level in compare(FACTORS, cells, seeds, values, better="lower"):
            others = next(labels for factor, labels in FACTORS.items() if factor != level.factor)
            context = np.mean([effects.get(label, 0.0) for label in others]) if design == "grid" else 0.0
            truth = effects.get(level.label, 0.0) + context
            hits["mean"].append(level.mean.low <= truth <= level.mean.high)
            if level.paired:
                bounds = level.paired.difference
                hits["difference"].append(bounds.low <= effects.get(level.label, 0.0) <= bounds.high)
    for name, found in hits.items():
        assert abs(np.mean(found) - 0.95) <= 0.015, f"{name}: {np.mean(found):.4f}"


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("design", ["one_at_a_time", "grid"])
def test_where_nothing_differs_few_sweeps_say_that_something_does(design, n):
    """ "Better" of any level in at most one sweep in twenty; "better" or "worse" as well, but for chance: Holm's bound
    is nearly reached, and of 1,000 sweeps two standard deviations are 14.
    """
    chance, seeds, false_better, false_any = np.random.default_rng(10 + n), list(range(n)), 0, 0
    for _ in range(SWEEPS):
        cells, values = simulate(FACTORS, design, seeds, {}, chance=chance)
        tones = {level.tone for level in compare(FACTORS, cells, seeds, values, better="lower")}
        false_better += "good" in tones
        false_any += bool(tones - {""})
    assert false_better <= 0.05 * SWEEPS
    assert false_any <= 0.05 * SWEEPS + 14


def test_false_verdicts_stay_rare_where_other_levels_do_differ():
    """One level is far better, so Holm's later steps are milder: the others must still not be called better."""
    chance, seeds, false = np.random.default_rng(3), list(range(5)), 0
    for _ in range(SWEEPS):
        cells, values = simulate(FACTORS, "one_at_a_time", seeds, {"adamw": -30.0}, chance=chance)
        levels = compare(FACTORS, cells, seeds, values, better="lower")
        assert next(level for level in levels if level.label == "adamw").tone == "good"
        false += any(level.tone == "good" for level in levels if level.label != "adamw")
    assert false <= 0.05 * SWEEPS


def test_false_verdicts_stay_rare_where_members_are_missing():
    """A tenth of the members, wherever they fall; some comparisons are left with two seeds, some with one."""
    chance, seeds, false, covered, count = np.random.default_rng(4), list(range(4)), 0, 0, 0
    for _ in range(SWEEPS):
        cells, values = simulate(FACTORS, "one_at_a_time", seeds, {}, chance=chance)
        kept = {key: value for key, value in values.items() if chance.random() > 0.1}
        levels = compare(FACTORS, cells, seeds, kept, better="higher")
        false += any(level.tone == "good" for level in levels)
        for level in levels:
            if level.paired and level.paired.difference.n > 1:
                covered += level.paired.difference.low <= 0 <= level.paired.difference.high
                count += 1
    assert false <= 0.05 * SWEEPS
    assert abs(covered / count - 0.95) <= 0.015


# --- verdicts ---------------------------------------------------------------------------------------------------------


def verdict(candidate, baseline, *, better="lower", seeds=None, resolve=None):
    """Of one level against the baseline; None is a member that is missing."""
    seeds = seeds or list(range(len(candidate)))
    values = {
        ((label,), seed): value
        for label, column in (("b", baseline), ("a", candidate))
        for seed, value in zip(seeds, column)
        if value is not None
    }
    _, level = compare({"f": ["b", "a"]}, [("b",), ("a",)], seeds, values, better=better, resolve=resolve)
    return level


def test_which_way_is_better():
    lower, higher = [1.0, 1.1, 0.9, 1.0], [3.0, 3.2, 2.9, 3.1]
    assert verdict(lower, higher).verdict == "better"
    assert verdict(lower, higher).tone == "good"
    assert verdict(lower, higher, better="higher").verdict == "worse"
    assert verdict(higher, lower).tone == "bad"
    assert verdict(higher, lower, better="higher").verdict == "better"


def test_noise_says_how_many_seeds_would_do():
    """Differences -1, 0 and 2: s = 1.528, so that 79 seeds find 1/3 ... and 21 find one of 1."""
    level = verdict([9.0, 20.0, 32.0], [10.0, 20.0, 30.0])
    assert level.tone == ""
    needed = seeds_to_resolve(1 / 3, level.paired.spread)
    assert level.verdict == f"within noise; about {needed - 3} more seeds would resolve a difference of 0.33"
    needed = seeds_to_resolve(1.0, level.paired.spread)
    text = verdict([9.0, 20.0, 32.0], [10.0, 20.0, 30.0], resolve=1.0).verdict
    assert text == f"within noise; about {needed - 3} more seeds would resolve a difference of 1"
    text = verdict([9.0, 20.0, 32.0], [10.0, 20.0, 30.0], resolve=20.0).verdict
    assert text == "within noise; a difference of 20 would likely have shown"
    text = verdict([9.0, 20.0, 32.0], [10.0, 20.0, 30.0], resolve=1e-3).verdict
    assert text == "within noise; more than 1,000 seeds would be needed to resolve a difference of 0.001"


def test_one_seed_has_no_interval_and_no_verdict():
    level = verdict([1.0], [9.0])
    assert level.verdict.startswith("no verdict: one seed has no interval")
    assert math.isnan(level.mean.low)
    assert math.isnan(level.paired.difference.low)
    assert level.paired.difference.value == -8.0
    assert math.isnan(level.p_holm)
    assert level.tone == ""


def test_missing_members_leave_their_seed_out():
    """Of five seeds one lacks the level and another the baseline."""
    level = verdict([1.0, None, 1.2, 0.8, 1.0], [3.0, 3.1, None, 3.2, 2.9])
    assert level.paired.difference.n == 3
    assert level.missing == (1,)
    assert level.verdict == "better (3 of 5 seeds)"
    assert level.values == {0: 1.0, 2: 1.2, 3: 0.8, 4: 1.0}
    assert verdict([1.0, None], [None, 2.0]).verdict == "no verdict: no seed has finished both this and the baseline"
    assert verdict([None, None], [1.0, 2.0]).mean.n == 0


def test_ties():
    """Equal values are no difference; equal differences have no spread, and only their sign says anything."""
    level = verdict([0.5, 0.25, 0.75], [0.5, 0.25, 0.75])
    assert level.verdict == "no difference: the same value in every seed"
    assert level.p_holm == 1.0
    level = verdict([0.1 + 0.2, 1.3, 2.3], [0.2, 1.2, 2.2])  # 0.1 each, but for rounding
    assert level.paired.p == 0.25
    assert level.verdict.startswith("within noise: the same difference in all 3 seeds")
    assert math.isnan(level.paired.difference.low)
    level = verdict([float(i) for i in range(6)], [float(i + 1) for i in range(6)])
    assert level.paired.p == 2 / 64
    assert level.verdict == "better"


def test_a_constant_level_against_a_noisy_baseline_is_tested_as_usual():
    level = verdict([0.0, 0.0, 0.0, 0.0], [3.0, 3.1, 2.9, 3.2])
    assert level.verdict == "better"
    assert math.isnan(level.mean.low)


def test_two_seeds_are_judged_but_their_effect_is_not_sized():
    assert math.isnan(verdict([1.0, 2.0], [2.0, 4.0]).paired.effect)


# --- designs ----------------------------------------------------------------------------------------------------------


def test_layouts():
    factors = {"a": ["1", "2", "3"], "b": ["x", "y"]}
    assert layout(factors, "one_at_a_time") == [("1", "x"), ("2", "x"), ("3", "x"), ("1", "y")]
    assert layout(factors, "grid") == [(a, b) for a in "123" for b in "xy"]
    listed = [{"a": "3", "b": "y"}, {"b": "y"}, {"a": "3", "b": "y"}]
    assert layout(factors, "listed", listed) == [("1", "x"), ("3", "y"), ("1", "y")]


def test_one_factor_at_a_time_compares_to_the_one_baseline():
    """Another factor's levels, at this factor's baseline, are no part of its baseline's mean."""
    cells = layout({"a": ["1", "2"], "b": ["x", "y"]}, "one_at_a_time")
    values = {(cell, s): v for cell, v in zip(cells, (1.0, 5.0, 100.0)) for s in (0, 1)}
    levels = compare({"a": ["1", "2"], "b": ["x", "y"]}, cells, [0, 1], values, better="lower")
    shown = {(x.factor, x.label): (x.mean.value, x.paired and x.paired.difference.value) for x in levels}
    assert shown == {("a", "1"): (1, None), ("a", "2"): (5, 4), ("b", "x"): (1, None), ("b", "y"): (100, 99)}


def test_a_grid_compares_main_effects_and_drops_incomplete_seeds():
    factors = {"a": ["1", "2"], "b": ["x", "y"]}
    cells = layout(factors, "grid")
    values = {(cell, s): v + s for cell, v in zip(cells, (1.0, 3.0, 11.0, 17.0)) for s in range(3)}
    del values[("2", "y"), 2]
    levels = compare(factors, cells, [0, 1, 2], values, better="lower")
    level = next(level for level in levels if level.label == "2")
    assert level.paired.difference.value == 12.0  # ((11 - 1) + (17 - 3)) / 2
    assert level.paired.difference.n == 2
    assert level.values == {0: 14.0, 1: 15.0}
    assert level.missing == (2,)


def test_listed_combinations_are_compared_as_wholes():
    factors = {"a": ["1", "2"], "b": ["x", "y"]}
    cells = layout(factors, "listed", [{"a": "2", "b": "y"}])
    values = {(cell, s): v + 0.1 * s * i for i, (cell, v) in enumerate(zip(cells, (1.0, 5.0))) for s in range(3)}
    base, level = compare(factors, cells, [0, 1, 2], values, better="lower", listed=True)
    assert (base.label, base.is_baseline) == ("baseline", True)
    assert level.label == "a 2, b y"
    assert level.verdict == "worse"


def test_bands_hold_the_steps_that_all_seeds_logged():
    found = bands([([1, 2, 3], [1.0, 2.0, float("nan")]), ([1, 2, 3, 4], [3.0, 6.0, 1.0, 9.0])])
    assert [(step, mean.value) for step, mean in found] == [(1, 2.0), (2, 4.0)]
    assert found[0][1].low == pytest.approx(2 - 12.706204736 * 1.0)
    assert bands([]) == []
