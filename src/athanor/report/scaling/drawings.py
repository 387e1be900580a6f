"""Drawings on logarithmic axes: losses over sizes, compute-optimal sizes, errors of the law."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup, escape

from athanor.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, _scale
from athanor.report.formats import count

if TYPE_CHECKING:
    from athanor.scaling.law import Fit

TONES = ("pretraining", "sft", "dpo", "reward", "ppo")
STEPS = 60


class Curve(NamedTuple):
    """Points joined by a line, or not (`marks`); `low` and `high` bound a band."""

    label: str
    tone: str
    xs: Sequence[float]
    ys: Sequence[float]
    marks: bool = False
    low: Sequence[float] = ()
    high: Sequence[float] = ()


class Axis(NamedTuple):
    low: float
    high: float
    log: bool = True

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        return math.log(value / self.low) / math.log(self.high / self.low)

    def ticks(self) -> list[float]:
        if not self.log:
            return _scale(self.low, self.high, log=False)[0][1:-1]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for leads in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
            found = [m * 10.0**e for e in decades for m in leads if self.low <= m * 10.0**e <= self.high]
            if len(found) >= 3:
                return found[:: math.ceil(len(found) / 7)]
        return [self.low, self.high]


def losses(fit: Fit) -> Markup:
    """Each training's loss over its parameters, and the law's curve for every token count (the fewest, the most and
    between).
    """
    counts = sorted({point.tokens for point in fit.points})
    shown = {counts[round(k * (len(counts) - 1) / (len(TONES) - 1))]: tone for k, tone in enumerate(TONES)}
    sizes = _spread(min(p.parameters for p in fit.points), max(p.parameters for p in fit.points))
    lines = [
        Curve(f"{count(tokens)} tokens", tone, sizes, [fit.law.loss(size, tokens) for size in sizes])
        for tokens, tone in shown.items()
    ]
    marks = []
    for point in fit.points:
        nearest = min(shown, key=lambda tokens: abs(math.log(tokens / point.tokens)))
        label = f"{point.name}: {count(point.tokens)} tokens, {point.loss:.4g}"
        marks.append(Curve(label, shown[nearest], [point.parameters], [point.loss], marks=True))
    return draw([*lines, *marks], log_y=True)


def frontier(fit: Fit, first: float, last: float) -> Markup:
    """Compute-optimal parameters over FLOPs with their interval, and what was trained."""
    budgets = _spread(first, last)
    best = [fit.optimum(budget)["parameters"] for budget in budgets]
    spent = [6 * p.parameters * p.tokens for p in fit.points]
    return draw(
        [
            Curve("compute-optimal", "ppo", budgets, [b.value for b in best], low=[b.low for b in best],
                  high=[b.high for b in best]),
            Curve("trained", "pretraining", spent, [p.parameters for p in fit.points], marks=True),
        ],
        log_y=True,
    )  # fmt: skip


def misses(fit: Fit) -> Markup:
    """How far each measured loss lies above the law's, in per cent, over compute."""
    spent = [6 * p.parameters * p.tokens for p in fit.points]
    errors = [100 * (p.loss / fit.law.loss(p.parameters, p.tokens) - 1) for p in fit.points]
    ends = [min(spent), max(spent)]
    return draw([Curve("the law", "other", ends, [0.0, 0.0]), Curve("trainings", "ppo", spent, errors, marks=True)])


def draw(curves: Sequence[Curve], *, log_y: bool = False) -> Markup:
    """An SVG over a logarithmic x."""
    xs = [x for curve in curves for x in curve.xs]
    ys = [y for curve in curves for y in (*curve.ys, *curve.low, *curve.high)]
    across, up = _axis(xs, True), _axis(ys, log_y)

    def px(x: float) -> float:
        return LEFT + across.place(x) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - up.place(y) * (HEIGHT - TOP - BOTTOM)

    spoken = "; ".join(curve.label for curve in curves[:6])
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(spoken)}">']
    for tick in up.ticks():
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(tick):.1f}" y2="{py(tick):.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 8}" y="{py(tick) + 3.5:.1f}" text-anchor="end">{_tick(tick)}</text>'
        )
    for tick in across.ticks():
        parts.append(
            f'<text class="tick" x="{px(tick):.1f}" y="{HEIGHT - 9}" text-anchor="middle">{_tick(tick)}</text>'
        )
    for curve in curves:
        parts += _drawn(curve, px, py)
    return Markup(f'<div class="plot">{"".join(parts)}</svg></div>')


def _drawn(curve: Curve, px: Callable[[float], float], py: Callable[[float], float]) -> list[str]:
    tone, title = f"tone-{escape(curve.tone)}", f"<title>{escape(curve.label)}</title>"
    parts = []
    if curve.low:
        outline = [*zip(curve.xs, curve.high), *reversed(list(zip(curve.xs, curve.low)))]
        path = "L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in outline)
        parts.append(f'<path class="band {tone}" d="M{path}Z"/>')
    if curve.marks:
        return parts + [
            f'<circle class="point {tone}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="3">{title}</circle>'
            for x, y in zip(curve.xs, curve.ys)
        ]
    path = "L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in zip(curve.xs, curve.ys))
    return [*parts, f'<path class="line {tone}" d="M{path}">{title}</path>']


def _axis(values: Sequence[float], log: bool) -> Axis:
    """Around the values, with a little room."""
    low, high = min(values), max(values)
    if log:
        room = (high / low) ** 0.06 if high > low else 1.5
        return Axis(low / room, high * room)
    room = 0.08 * (high - low) or 1.0
    return Axis(low - room, high + room, log=False)


def _spread(low: float, high: float) -> list[float]:
    return [low * (high / low) ** (k / STEPS) for k in range(STEPS + 1)]


def _tick(value: float) -> str:
    if abs(value) < 1e4:
        return f"{value:.3g}".replace("-", "−")
    power = math.floor(math.log10(value))
    lead = value / 10**power
    return f"10<tspan dy='-4' font-size='9'>{power}</tspan>" if abs(lead - 1) < 1e-6 else f"{lead:.2g}e{power}"
