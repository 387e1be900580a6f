"""A fitted law for the terminal, and as JSON."""

import json
from collections.abc import Sequence

from athanor.scaling.law import Fit


def as_json(fit: Fit, budgets: Sequence[float]) -> str:
    shown = {
        "coefficients": {name: found._asdict() for name, found in fit.coefficients().items()},
        "optimum": {
            f"{budget:g}": {name: found._asdict() for name, found in fit.optimum(budget).items()} for budget in budgets
        },
        "median_error": fit.error(),
        "confidence": fit.confidence,
        "points": [point._asdict() for point in fit.points],
    }
    return json.dumps(shown, indent=2, ensure_ascii=False)


def rows(fit: Fit, budgets: Sequence[float]) -> list[tuple[str, str, str]]:
    """Coefficients and compute-optimal trainings, each with its interval."""
    found = [("", "value", f"{fit.confidence:.0%} interval")]
    named = {**fit.coefficients()}
    for budget in budgets:
        named |= {f"{name} for {budget:g} FLOPs": interval for name, interval in fit.optimum(budget).items()}
    found += [(name, f"{value:.4g}", f"{low:.4g} to {high:.4g}") for name, (value, low, high) in named.items()]
    return [*found, ("median error", f"{100 * fit.error():.2f}%", f"{len(fit.points)} trainings")]
