"""What an ablation shows: differences with their intervals on an axis, and means over steps with bands."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup, escape

from athanor.report import charts, formats

if TYPE_CHECKING:
    from athanor.sweeps.results import Results
    from athanor.sweeps.statistics import Level

TONES = ("pretraining", "ppo", "sft", "dpo", "reward", "other")  # the baseline's first; style.css gives them colours


class Curve(NamedTuple):
    """A mean over seeds with its 95% interval; bounds are None where there is only one seed."""

    label: str
    tone: str
    steps: list[int]
    means: list[float]
    lows: list[float] | None
    highs: list[float] | None


def toned(levels: Sequence[Level]) -> list[tuple[Level, str]]:
    return [
        (level, TONES[at] if at == 0 else TONES[1 + (at - 1) % (len(TONES) - 1)]) for at, level in enumerate(levels)
    ]


def forest(levels: Sequence[Level]) -> list[dict[str, Any]]:
    """Of each compared level: where its difference, its interval and zero lie on a common axis, as shares of it."""
    spans = [0.0]
    for level in levels:
        if level.paired and level.paired.difference.n:
            spans += [x for x in level.paired.difference[:3] if math.isfinite(x)]
    low, high = min(spans), max(spans)
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin
    rows = []
    for level, tone in toned(levels):
        if level.paired is None or not level.paired.difference.n:
            continue
        value, *bounds = ((x - low) / (high - low) if math.isfinite(x) else None for x in level.paired.difference[:3])
        rows.append({"level": level, "tone": tone, "at": value, "low": bounds[0], "high": bounds[1],
                     "zero": -low / (high - low)})  # fmt: skip
    return rows


class Panel(NamedTuple):
    title: str
    unit: str
    svg: Markup
    legend: list[tuple[str, str]]  # label, tone


def panels(results: Results, factor: str, levels: Sequence[Level]) -> list[Panel]:
    """The metric over the training's steps, and the training loss, of every level of a factor."""
    logged = {name for outcome in results.outcomes for name in outcome.curves}
    name = results.ablation.metric.name
    watched = [n for n in dict.fromkeys((name if name in logged else "validation/loss", "train/loss")) if n in logged]
    made = []
    for metric in watched:
        curves = [c for level, tone in toned(levels) if (c := curve(results, level, metric, tone))]
        if svg := band_chart(curves):
            made.append(Panel(factor, metric, svg, [(c.label, c.tone) for c in curves]))
    return made


def curve(results: Results, level: Level, metric: str, tone: str) -> Curve | None:
    """A level's logged metric; None where no seed has logged it."""
    seeds, points = results.band(level, metric)
    if not points:
        return None
    steps, means = [step for step, _ in points], [mean.value for _, mean in points]
    if seeds < 2:
        return Curve(level.label, tone, steps, means, None, None)
    low = [mean.low if math.isfinite(mean.low) else mean.value for _, mean in points]
    high = [mean.high if math.isfinite(mean.high) else mean.value for _, mean in points]
    return Curve(level.label, tone, steps, means, low, high)


def band_chart(curves: Sequence[Curve]) -> Markup:
    """An SVG of means with their intervals as bands; empty without a curve."""
    if not curves:
        return Markup("")
    xs = [step for c in curves for step in c.steps]
    # The axis follows the means: an interval of two or three seeds may be wider than all that is to be seen.
    ys = [value for c in curves for value in c.means]
    reach = 0.6 * (max(ys) - min(ys))
    lowest = max(min(ys) - reach, 0.0 if min(ys) >= 0 else -math.inf)  # what is never negative has no axis below zero
    bounds = [b for c in curves for side in (c.lows, c.highs) if side for b in side]
    ys += [min(max(bound, lowest), max(ys) + reach) for bound in bounds]
    ticks, low, high = charts._scale(min(ys), max(ys), log=False)
    left, right = min(xs), max(max(xs), min(xs) + 1)
    width, height = charts.WIDTH - charts.LEFT - charts.RIGHT, charts.HEIGHT - charts.TOP - charts.BOTTOM

    def px(step: float) -> float:
        return charts.LEFT + (step - left) / (right - left) * width

    def py(value: float) -> float:
        return charts.HEIGHT - charts.BOTTOM - min(1.0, max(0.0, (value - low) / (high - low))) * height

    spoken = "; ".join(f"{c.label}: from {formats.number(c.means[0])} to {formats.number(c.means[-1])}" for c in curves)
    box = f"0 0 {charts.WIDTH} {charts.HEIGHT}"
    parts = [f'<svg class="chart" viewBox="{box}" role="img" aria-label="{escape(spoken)}">']
    for tick in ticks:
        y, end = py(tick), charts.WIDTH - charts.RIGHT
        parts.append(f'<line class="grid" x1="{charts.LEFT}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>')
        where = f'x="{charts.LEFT - 8}" y="{y + 3.5:.1f}" text-anchor="end"'
        parts.append(f'<text class="tick" {where}>{charts._tick(tick)}</text>')
    for step in charts._step_ticks(left, right):
        anchor = "end" if px(step) > charts.WIDTH - charts.RIGHT - 10 else "middle"
        where = f'x="{px(step):.1f}" y="{charts.HEIGHT - 9}" text-anchor="{anchor}"'
        parts.append(f'<text class="tick" {where}>{formats.count(step)}</text>')
    for c in curves:
        if c.lows and c.highs:
            there = [f"{px(x):.1f} {py(y):.1f}" for x, y in zip(c.steps, c.highs)]
            back = [f"{px(x):.1f} {py(y):.1f}" for x, y in zip(reversed(c.steps), reversed(c.lows))]
            parts.append(f'<path class="band tone-{c.tone}" d="M{"L".join(there + back)}Z"/>')
    for c in curves:
        parts.append(f'<path class="line tone-{c.tone}" d="{charts._path(c.steps, c.means, px, py)}"/>')
        at = f'cx="{px(c.steps[-1]):.1f}" cy="{py(c.means[-1]):.1f}" r="3.4"'
        parts.append(f'<circle class="end tone-{c.tone}" {at}/>')
    parts.append("</svg>")
    hover = [
        {
            "label": c.label,
            "tone": c.tone,
            "x": [round(px(x), 1) for x in c.steps],
            "y": [round(py(y), 1) for y in c.means],
            "step": c.steps,
            "value": [formats.number(y) for y in c.means],
        }
        for c in curves
    ]
    data = escape(json.dumps(hover, ensure_ascii=False, separators=(",", ":")))
    return Markup(f'<div class="plot" data-lines="{data}">{"".join(parts)}</div>')
