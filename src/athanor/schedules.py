"""Learning-rate schedules: functions from the optimizer step to the factor on the optimizer's learning rate.

In a config they are partial (`_partial_: true`); the trainer supplies `max_steps`. Step s (from 0) uses factor(s).
"""

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def _warmed(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def cosine(max_steps: int, warmup_steps: int = 0, final_fraction: float = 0.1) -> Schedule:
    """Linear warm-up, then half a cosine from 1 down to `final_fraction` at the last step."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return _warmed(step, warmup_steps)
        done = min(1.0, (step - warmup_steps) / max(1, max_steps - 1 - warmup_steps))
        return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * done))

    return factor


def linear(max_steps: int, warmup_steps: int = 0, final_fraction: float = 0.0) -> Schedule:
    """Linear warm-up, then a straight line from 1 to `final_fraction` at the last step."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return _warmed(step, warmup_steps)
        done = min(1.0, (step - warmup_steps) / max(1, max_steps - 1 - warmup_steps))
        return 1 - (1 - final_fraction) * done

    return factor


def constant(max_steps: int, warmup_steps: int = 0) -> Schedule:
    """Linear warm-up, then 1."""
    return lambda step: _warmed(step, warmup_steps)
