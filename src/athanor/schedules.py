"""Learning-rate schedules: functions from the optimizer step to the factor on the optimizer's learning rate.

In a config they are partial (`_partial_: true`); the trainer supplies `max_steps` and, to those whose warm-up is told
in tokens, `tokens_per_step` (`bind`). Step s (from 0) uses factor(s).

Every schedule warms up linearly, over `warmup_steps` or over `warmup_tokens`, rounded up to whole steps.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

from athanor.errors import UserError

Schedule = Callable[[int], float]


def bind(make: Callable[..., Schedule], max_steps: int, tokens_per_step: Callable[[], int | None]) -> Schedule:
    """A config's partial, given what the trainer knows.

    Args:
        tokens_per_step: tokens of a global batch, None if they differ; asked only if the warm-up is told in tokens.
    """
    known: dict[str, Any] = {"max_steps": max_steps}
    if getattr(make, "keywords", {}).get("warmup_tokens") is not None:
        known["tokens_per_step"] = tokens_per_step()
    return make(**known)


def _warmup(warmup_steps: int, warmup_tokens: int | None, tokens_per_step: float | None) -> int:
    """Steps of the warm-up, told in one way.

    Raises:
        UserError: told in both, negative, or in tokens where no one says how many a step has.
    """
    if warmup_tokens is None:
        if warmup_steps < 0:
            raise UserError(f"schedule.warmup_steps={warmup_steps} must be at least 0.")
        return warmup_steps
    if warmup_steps:
        raise UserError(
            f"schedule.warmup_steps={warmup_steps} and schedule.warmup_tokens={warmup_tokens} both tell the warm-up; "
            "keep one (schedule.warmup_steps=0)."
        )
    if warmup_tokens < 0:
        raise UserError(f"schedule.warmup_tokens={warmup_tokens} must be at least 0.")
    if tokens_per_step is None or tokens_per_step <= 0:
        raise UserError(
            "schedule.warmup_tokens needs samples of one length, as pretraining has; set schedule.warmup_steps."
        )
    return math.ceil(warmup_tokens / tokens_per_step)


def _warmed(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def _fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"schedule.{name}={value} must lie between 0 and 1.")


def cosine(
    max_steps: int,
    warmup_steps: int = 0,
    final_fraction: float = 0.1,
    warmup_tokens: int | None = None,
    tokens_per_step: float | None = None,
) -> Schedule:
    """Linear warm-up, then half a cosine from 1 down to `final_fraction` at the last step."""
    warmup = _warmup(warmup_steps, warmup_tokens, tokens_per_step)
    _fraction("final_fraction", final_fraction)

    def factor(step: int) -> float:
        if step < warmup:
            return _warmed(step, warmup)
        done = min(1.0, (step - warmup) / max(1, max_steps - 1 - warmup))
        return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * done))

    return factor


def linear(
    max_steps: int,
    warmup_steps: int = 0,
    final_fraction: float = 0.0,
    warmup_tokens: int | None = None,
    tokens_per_step: float | None = None,
) -> Schedule:
    """Linear warm-up, then a straight line from 1 to `final_fraction` at the last step."""
    warmup = _warmup(warmup_steps, warmup_tokens, tokens_per_step)
    _fraction("final_fraction", final_fraction)

    def factor(step: int) -> float:
        if step < warmup:
            return _warmed(step, warmup)
        done = min(1.0, (step - warmup) / max(1, max_steps - 1 - warmup))
        return 1 - (1 - final_fraction) * done

    return factor


def constant(
    max_steps: int, warmup_steps: int = 0, warmup_tokens: int | None = None, tokens_per_step: float | None = None
) -> Schedule:
    """Linear warm-up, then 1."""
    warmup = _warmup(warmup_steps, warmup_tokens, tokens_per_step)
    return lambda step: _warmed(step, warmup)


def wsd(
    max_steps: int,
    warmup_steps: int = 0,
    decay_fraction: float = 0.2,
    decay: Literal["linear", "1-sqrt"] = "1-sqrt",
    final_fraction: float = 0.0,
    warmup_tokens: int | None = None,
    tokens_per_step: float | None = None,
) -> Schedule:
    """Warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395): linear warm-up, then 1, then over the last
    `decay_fraction` of all steps down to `final_fraction` at the last step: along a straight line, or as 1 - sqrt(t),
    t the share of the decay that is done (Hägele et al. 2024, arXiv:2405.18392, section 3).

    Raises:
        UserError: the warm-up and the decay take more than all steps.
    """
    warmup = _warmup(warmup_steps, warmup_tokens, tokens_per_step)
    _fraction("decay_fraction", decay_fraction)
    _fraction("final_fraction", final_fraction)
    if decay not in ("linear", "1-sqrt"):
        raise UserError(f"schedule.decay={decay} must be linear or 1-sqrt.")
    length = round(decay_fraction * max_steps)
    if warmup + length > max_steps:
        raise UserError(
            f"A warm-up of {warmup} steps and a decay of {length} do not fit into max_steps={max_steps}; lower the "
            "warm-up or schedule.decay_fraction."
        )

    def factor(step: int) -> float:
        left = max_steps - 1 - step
        if step < warmup:
            return _warmed(step, warmup)
        if not length or left >= length:
            return 1.0
        done = min(1.0, 1 - left / length)
        return 1 - (1 - final_fraction) * (done if decay == "linear" else math.sqrt(done))

    return factor


def inverse_sqrt(
    max_steps: int, warmup_steps: int = 0, warmup_tokens: int | None = None, tokens_per_step: float | None = None
) -> Schedule:
    """Linear warm-up of w steps, then sqrt(w / (s + 1)) (Vaswani et al. 2017, arXiv:1706.03762, eq. 3, with the rate at
    the end of the warm-up as 1).

    Raises:
        UserError: there is no warm-up, from which the decay takes its scale.
    """
    warmup = _warmup(warmup_steps, warmup_tokens, tokens_per_step)
    if warmup < 1:
        raise UserError("The schedule inverse_sqrt decays on the scale of its warm-up; set schedule.warmup_steps >= 1.")
    return lambda step: min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))
