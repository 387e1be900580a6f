"""What a search shows: values in the order of the trials, values over each key, and the curves that the pruner saw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup, escape

from athanor.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, _scale, line_chart
from athanor.report.formats import number

if TYPE_CHECKING:
    from athanor.sweeps.found import Found, Outcome

CURVES = 40  # at most, of the trials with the best values and of those that were pruned


class Dot(NamedTuple):
    """One trial. `x` is a number, or the place of its choice."""

    x: float
    y: float
    tone: str
    title: str


def history(found: Found) -> Markup:
    """Each trial's value by its number, and the best so far as a line."""
    dots = [dot._replace(x=float(outcome.number)) for outcome, dot in _dots(found)]
    better = min if found.search.metric.better == "lower" else max
    stairs: list[tuple[float, float]] = []
    for outcome in found.outcomes:
        if outcome.state == "complete" and outcome.value is not None:
            stairs.append((outcome.number, better([outcome.value, *(y for _, y in stairs[-1:])])))
    return scatter(dots, line=stairs)


def slices(found: Found) -> list[tuple[str, Markup]]:
    """(key, values over it) for each key of the space, by importance."""
    keys = sorted(found.search.space, key=lambda key: -found.importance.get(key, 0.0))
    made = []
    for key in keys:
        part = found.search.space[key]
        labels = list(part.labels) if hasattr(part, "labels") else []
        dots = []
        for outcome, dot in _dots(found):
            value = outcome.point[key]
            x = float(labels.index(str(value))) if labels else float(value)
            dots.append(dot._replace(x=x))
        ends = (0.0, len(labels) - 1.0) if labels else (part.low, part.high)  # type: ignore[union-attr]
        made.append((key, scatter(dots, labels=labels, ends=ends, log=getattr(part, "log", False))))
    return made


def curves(found: Found) -> Markup:
    """What each trial's validations measured; empty where the pruner saw nothing."""
    seen = [outcome for outcome in found.outcomes if outcome.curve]
    sign = 1 if found.search.metric.better == "lower" else -1
    done = sorted(
        (outcome for outcome in seen if outcome.state == "complete"), key=lambda o: sign * (o.value or math.inf)
    )[:CURVES]
    pruned = [outcome for outcome in seen if outcome.state == "pruned"][:CURVES]
    lines = [_line(outcome, "raw") for outcome in pruned] + [
        _line(outcome, "pretraining") for outcome in done[1:][::-1]
    ]
    return line_chart([*lines, *(_line(outcome, "ppo") for outcome in done[:1])])


def _line(outcome: Outcome, tone: str) -> Line:
    points = {step: value for step, value in outcome.curve.items() if math.isfinite(value)}
    return Line(f"trial {outcome.number}", tone, list(points), list(points.values()), style="plain")


def _dots(found: Found) -> list[tuple[Outcome, Dot]]:
    """Trials with a value; x is to be set."""
    made = []
    for outcome in found.outcomes:
        if outcome.value is None or not math.isfinite(outcome.value) or outcome.state not in ("complete", "pruned"):
            continue
        best = found.best is not None and outcome.number == found.best.number
        tone = "ppo" if best else "raw" if outcome.state == "pruned" else "pretraining"
        said = f"trial {outcome.number}: {number(outcome.value, 4)}{', pruned' if outcome.state == 'pruned' else ''}"
        made.append((outcome, Dot(0.0, outcome.value, tone, said)))
    return made


def scatter(
    dots: Sequence[Dot],
    *,
    line: Sequence[tuple[float, float]] = (),
    labels: Sequence[str] = (),
    ends: tuple[float, float] | None = None,
    log: bool = False,
) -> Markup:
    """An SVG of dots, the later ones above; empty without any.

    Args:
        line: (x, y) of stairs.
        labels: of the places 0, 1, ... where x is a choice.
        ends: of the x axis; else those of the dots.
    """
    if not dots:
        return Markup("")
    left, right = ends or (min(dot.x for dot in dots), max(dot.x for dot in dots))
    if right <= left:
        left, right = left - 0.5, right + 0.5
    # What lies far beyond the middle is drawn at the edge, so that one bad trial does not flatten the rest.
    ys = sorted(dot.y for dot in dots)
    middle, spread = ys[len(ys) // 2], ys[3 * len(ys) // 4] - ys[len(ys) // 4]
    kept = [y for y in ys if abs(y - middle) <= 6 * spread] if spread > 0 else ys
    ticks, low, high = _scale(min(kept), max(kept), False)
    margin = 0.5 if labels else 0.04 * (right - left)

    def px(x: float) -> float:
        if log:
            share = 0.04 + 0.92 * math.log(x / left) / math.log(right / left)
        else:
            share = (x - left + margin) / (right - left + 2 * margin)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - min(1.0, max(0.0, (y - low) / (high - low))) * (HEIGHT - TOP - BOTTOM)

    spoken = f"{len(dots)} trials, values from {number(ys[0], 4)} to {number(ys[-1], 4)}"
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(spoken)}">']
    for tick in ticks:
        y = py(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 3.5:.1f}" text-anchor="end">{tick:.4g}</text>')
    for x, text in _across(left, right, labels, log):
        shown = f'x="{px(x):.1f}" y="{HEIGHT - 9}" text-anchor="middle"'
        parts.append(f'<text class="tick" {shown}>{escape(text)}</text>')
    if line:
        path = f"M{px(line[0][0]):.1f} {py(line[0][1]):.1f}" + "".join(f"H{px(x):.1f}V{py(y):.1f}" for x, y in line[1:])
        parts.append(f'<path class="line tone-ppo" d="{path}"/>')
    for dot in sorted(dots, key=lambda dot: ("raw", "pretraining", "ppo").index(dot.tone)):
        size = 4.5 if dot.tone == "ppo" else 3
        where = f'cx="{px(dot.x):.1f}" cy="{py(dot.y):.1f}" r="{size}"'
        parts.append(f'<circle class="point tone-{dot.tone}" {where}><title>{escape(dot.title)}</title></circle>')
    return Markup(f'<div class="plot">{"".join(parts)}</svg></div>')


def _across(left: float, right: float, labels: Sequence[str], log: bool) -> list[tuple[float, str]]:
    if labels:
        return [(float(i), label if len(label) <= 14 else label[:13] + "…") for i, label in enumerate(labels)]
    if not log:
        ticks = [tick for tick in _scale(left, right, False)[0] if left <= tick <= right]
        return [(tick, f"{tick:.4g}") for tick in ticks]
    decades = range(math.floor(math.log10(left)), math.ceil(math.log10(right)) + 1)
    for leads in ((1,), (1, 3), (1, 2, 5)):
        found = [m * 10.0**e for e in decades for m in leads if left * 0.999 <= m * 10.0**e <= right * 1.001]
        if len(found) >= 3:
            break
    found = found[:: math.ceil(len(found) / 6)] or [left, right]
    return [(tick, f"{tick:.3g}") for tick in found]
