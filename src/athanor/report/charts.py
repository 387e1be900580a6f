"""Line charts as inline SVG. Colours are CSS variables, so one drawing serves light and dark.

Coordinates are pixels of the drawing, 440 x 232; a chart scales with its column. What the pointer shows is drawn by
script.js from the `data-lines` attribute: [{label, tone, x, y, step, value}].
"""

import json
import math
from typing import NamedTuple

from markupsafe import Markup, escape

from athanor.report.formats import count, number

WIDTH, HEIGHT = 440, 232
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 28
POINTS = 240


class Line(NamedTuple):
    """One curve. `style`: "smooth" (raw faint, smoothed strong), "plain", or "marked" (few points, each shown)."""

    label: str
    tone: str
    steps: list[int]
    values: list[float]
    style: str = "smooth"


class Bound(NamedTuple):
    label: str
    value: float


def line_chart(
    lines: list[Line], *, bound: Bound | None = None, log: bool = False, zero: bool = False, most: float | None = None
) -> Markup:
    """An SVG of the lines over steps, or empty where no line has a point.

    Args:
        log: logarithmic y, where all values are positive and span at least a factor of three; else linear.
        zero: y begins at 0 (or below).
        most: y ends here at the latest (1 for shares).
    """
    lines = [line for line in lines if line.steps]
    if not lines:
        return Markup("")
    log = log and _spans_decades(lines)
    shown = [_shown(line, log) for line in lines]
    xs = [x for line in shown for x in line.steps]
    ys = [y for line in shown for y in line.values] + ([1.12 * bound.value] if bound else []) + ([0.0] if zero else [])
    # Raw values may leave the frame: the axis follows their middle 99%, so that one spike does not flatten the rest.
    raw = sorted(y for line in lines if line.style == "smooth" for y in line.values)
    if raw:
        ys += [raw[len(raw) // 200], raw[-1 - len(raw) // 200]]
    if most is not None:
        ys = [min(y, most) for y in ys]
    left, right = min(xs), max(max(xs), min(xs) + 1)
    ticks, low, high = _scale(min(ys), max(ys), log)

    def px(step: float) -> float:
        return LEFT + (step - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def py(value: float) -> float:
        share = (_log(value) - _log(low)) / (_log(high) - _log(low)) if log else (value - low) / (high - low)
        return HEIGHT - BOTTOM - min(1.02, max(-0.02, share)) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_spoken(shown))}">']
    for tick in ticks:
        y = py(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 3.5:.1f}" text-anchor="end">{_tick(tick)}</text>')
    for step in _step_ticks(left, right):
        anchor = "end" if px(step) > WIDTH - RIGHT - 10 else "middle"
        parts.append(
            f'<text class="tick" x="{px(step):.1f}" y="{HEIGHT - 9}" text-anchor="{anchor}">{count(step)}</text>'
        )
    if bound:
        y = py(bound.value)
        parts.append(f'<line class="bound" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        where = f'x="{WIDTH - RIGHT}" y="{y - 6:.1f}" text-anchor="end"'
        parts.append(f'<text class="bound-label" {where}>{escape(bound.label)}</text>')
    for line, smoothed in zip(lines, shown):
        tone = f"tone-{escape(line.tone)}"
        if line.style == "smooth" and len(line.steps) > 12:
            steps, values = _thin(line.steps, line.values, POINTS)
            parts.append(f'<path class="raw {tone}" d="{_path(steps, values, px, py)}"/>')
        dashed = " dashed" if line.style == "marked" else ""
        parts.append(f'<path class="line {tone}{dashed}" d="{_path(smoothed.steps, smoothed.values, px, py)}"/>')
        if line.style == "marked" and len(smoothed.steps) <= 40:
            parts += [
                f'<circle class="point {tone}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="2.4"/>'
                for x, y in zip(smoothed.steps, smoothed.values)
            ]
        parts.append(
            f'<circle class="end {tone}" cx="{px(smoothed.steps[-1]):.1f}" cy="{py(smoothed.values[-1]):.1f}" r="3.4"/>'
        )
    parts.append("</svg>")
    hover = [
        {
            "label": line.label,
            "tone": line.tone,
            "x": [round(px(x), 1) for x in line.steps],
            "y": [round(py(y), 1) for y in line.values],
            "step": line.steps,
            "value": [number(y) for y in line.values],
        }
        for line in shown
    ]
    data = escape(json.dumps(hover, ensure_ascii=False, separators=(",", ":")))
    return Markup(f'<div class="plot" data-lines="{data}">{"".join(parts)}</div>')


def smooth(values: list[float], log: bool = False) -> list[float]:
    """Debiased exponential moving average with a half-life of 1/40 of the series; of the logarithm where `log`."""
    decay = 0.5 ** (1 / max(1.0, len(values) / 40))
    total, weight, out = 0.0, 0.0, []
    for value in values:
        total = decay * total + (1 - decay) * (math.log(value) if log else value)
        weight = decay * weight + (1 - decay)
        out.append(math.exp(total / weight) if log else total / weight)
    return out


def _shown(line: Line, log: bool) -> Line:
    values = smooth(line.values, log) if line.style == "smooth" and len(line.values) > 12 else line.values
    steps, values = _thin(line.steps, values, POINTS)
    return line._replace(steps=steps, values=values)


def _thin(steps: list[int], values: list[float], points: int) -> tuple[list[int], list[float]]:
    """At most about `points` points: means over equal runs of points; the last point is kept as it is."""
    if len(steps) <= points:
        return steps, values
    width = math.ceil((len(steps) - 1) / (points - 1))
    starts = range(0, len(steps) - 1, width)
    chunks = [slice(start, min(start + width, len(steps) - 1)) for start in starts]
    means = [sum(values[c]) / len(values[c]) for c in chunks]
    return [steps[c][len(steps[c]) // 2] for c in chunks] + [steps[-1]], [*means, values[-1]]


def _path(steps, values, px, py) -> str:
    return "M" + "L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in zip(steps, values))


def _spans_decades(lines: list[Line]) -> bool:
    values = [value for line in lines for value in line.values]
    return min(values) > 0 and max(values) / min(values) >= 3


def _scale(low: float, high: float, log: bool) -> tuple[list[float], float, float]:
    """Ticks, and the ends of the axis."""
    if log:
        first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
        grid = [m * 10.0**e for e in range(first, last) for m in (1, 2, 5)]
        low, high = max(t for t in grid if t <= low * 1.06), min(t for t in grid if t >= high * 0.94)
        ticks = [t for t in grid if low <= t <= high]
        if len(ticks) < 4:
            ticks = [t for e in range(first, last) for m in (1, 2, 3, 5, 7) if low <= (t := m * 10.0**e) <= high]
        return ticks if len(ticks) <= 7 else ticks[:: math.ceil(len(ticks) / 6)], low, high
    if high - low < 1e-12:
        low, high = low - max(abs(low), 1e-3) / 2, high + max(abs(high), 1e-3) / 2
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 0.02), math.ceil(high / step - 0.02)
    ticks = [step * i for i in range(first, last + 1)]
    return ticks, ticks[0], ticks[-1]


def _step_ticks(left: int, right: int) -> list[int]:
    ticks, _, _ = _scale(left, right, log=False)
    inside = [round(t) for t in ticks if left <= t <= right]
    return inside if len(inside) >= 2 else [left, right]


def _tick(value: float) -> str:
    if abs(value) >= 10_000:
        return count(value)
    return f"{value:.6g}".replace("-", "−")


def _log(value: float) -> float:
    return math.log(max(value, 1e-30))


def _spoken(lines: list[Line]) -> str:
    """The chart in a sentence, for those who do not see it."""
    return "; ".join(f"{x.label}: from {number(x.values[0])} to {number(x.values[-1])}" for x in lines)
