"""The page of a scaling law: its coefficients, how well it holds, and what to train for a budget."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from athanor.report.formats import number
from athanor.report.frame import fill
from athanor.report.scaling.drawings import frontier, losses, misses
from athanor.runs.files import write_atomic

if TYPE_CHECKING:
    from athanor.scaling.law import Fit, Interval

DECADES = 3  # of compute beyond the dearest training, in the table of optima


def write(fit: Fit, budgets: list[float], command: str, path: Path) -> Path:
    """Writes the page; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, fill("scaling.html", _context(fit, budgets, command)))
    return path


def _context(fit: Fit, budgets: list[float], command: str) -> dict[str, Any]:
    spent = [6 * point.parameters * point.tokens for point in fit.points]
    table = sorted({*budgets, *(10.0**k * _leading(max(spent)) for k in range(DECADES + 1))})
    wanted = budgets[0] if budgets else table[-1]
    best = fit.optimum(wanted)
    return {
        "points": [
            (point, fit.law.loss(point.parameters, point.tokens))
            for point in sorted(fit.points, key=lambda point: (point.parameters, point.tokens))
        ],
        "coefficients": fit.coefficients(),
        "confidence": fit.confidence,
        "samples": len(fit.samples),
        "figures": [
            (f"{fit.law.E:.3g}", "nats a token remain", f"E, {_bounds(fit.coefficients()['E'])}"),
            (f"{100 * fit.error():.2f}%", "median error", f"of {len(fit.points)} trainings"),
            (_short(best["parameters"].value), "parameters", f"for {_power(wanted)} FLOPs"),
            (_short(best["tokens"].value), "tokens", f"{best['tokens'].value / best['parameters'].value:.3g} each"),
        ],
        "optima": [(_power(budget), fit.optimum(budget)) for budget in table],
        "panels": [
            ("Loss by size", "nats a token", losses(fit)),
            ("Compute-optimal size", "parameters", frontier(fit, min(spent), table[-1])),
            ("Measured against the law", "%", misses(fit)),
        ],
        "command": command,
        "short": _short,
        "bounds": _bounds,
    }


def _leading(value: float) -> float:
    """The next power of ten."""
    return float(10.0 ** math.ceil(math.log10(value)))


def _short(value: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:,.3g}{unit}" if value < 1e15 else f"{value:.1e}"
    return f"{value:.3g}"


def _power(value: float) -> str:
    mantissa, exponent = f"{value:.2g}".split("e") if "e" in f"{value:.2g}" else (f"{value:.2g}", "0")
    return f"{mantissa}e{int(exponent)}"


def _bounds(interval: Interval) -> str:
    return f"{_bound(interval.low)} to {_bound(interval.high)}"


def _bound(value: float) -> str:
    return _short(value) if abs(value) >= 1e4 else number(value)
