"""What the curves of a training say, in words: underfit, overfit, healthy, unstable, or trouble with the data; by which
numbers; and what to try.

Rules of thumb, each a finding of its own. The verdict is that of the gravest. Losses in nats.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Series = tuple[Sequence[int], Sequence[float]]  # steps, values

VERDICTS = ("data trouble", "unstable", "overfit", "underfit", "healthy", "too early")  # the gravest first

# What the rules call much. Fractions are of the loss, or of a tenth of chance where the loss is smaller.
AT_CHANCE = 0.03  # so near to chance nothing has been learnt
FAR_BELOW = 0.15  # validation under training
FAR_ABOVE = 0.5  # validation over training
RISEN = 0.02  # of validation over its best
FALLING = 0.02  # within the last fifth of the steps
STILL = 0.01  # of validation within the last third
DIVERGED = 0.15  # of training over its best
SPIKE = 0.25  # of one logged step over its neighbours, beside 10 times their spread
MANY_SPIKES = 3
REPEATED = 4  # epochs up to which repeated data are nearly as good as new ones (Muennighoff et al. 2023)
FEWEST = 8  # logged steps
CERTAIN = 4.5  # standard errors: a difference of training's noisy losses that is smaller is none


class Finding(NamedTuple):
    verdict: str
    says: str
    remedy: str


class Curve:
    """Training's losses by tenths of its course: their mean steps, means and standard errors."""

    def __init__(self, steps: np.ndarray, losses: np.ndarray):
        parts = np.array_split(np.arange(len(losses)), min(10, len(losses) // 4))
        self.steps = np.array([steps[part].mean() for part in parts])
        self.means = np.array([losses[part].mean() for part in parts])
        self.errors = np.array([losses[part].std(ddof=1) / math.sqrt(len(part)) for part in parts])
        self.end, self.end_error = float(self.means[-1]), float(self.errors[-1])
        self.lowest = int(self.means.argmin())
        late = slice(len(losses) * 3 // 5, None)
        (slope, _), covariance = np.polyfit(steps[late], losses[late], 1, cov=True)
        self.fall = -slope * (steps[-1] - steps[0]) / 5
        self.falls = -slope > CERTAIN * math.sqrt(covariance[0, 0])

    def at(self, steps: np.ndarray) -> np.ndarray:
        return np.interp(steps, self.steps, self.means)


def diagnose(
    train: Series, validation: Series, *, chance: float | None = None, epochs: float | None = None
) -> dict[str, Any]:
    """The verdict on a training as far as it has come.

    Args:
        train, validation: the logged losses; those of validation may be few or none. Values that are no numbers are
            passed over.
        chance: the loss of an even guess: ln V for a vocabulary of V, ln 2 for pairs.
        epochs: how often each sample has been seen.

    Returns:
        {"verdict": one of VERDICTS, "findings": [{"verdict", "says", "try"}], the gravest first, "numbers": {name:
        value} that they rest on}; of a finding that needs no remedy "try" is "".
    """
    steps, losses = finite(train)
    held_steps, held = finite(validation)
    numbers: dict[str, float] = {"logged_steps": len(losses), "validations": len(held)}
    numbers |= {name: value for name, value in (("chance", chance), ("epochs", epochs)) if value is not None}
    if len(losses) < FEWEST:
        return _result(
            [Finding("too early", f"Only {len(losses)} steps were logged, too few to judge by.", "")], numbers
        )
    curve = Curve(steps, losses)
    numbers |= {"train_start": losses[0], "train_end": curve.end, "train_lowest": curve.means[curve.lowest]}
    found = [*_data(steps, losses, curve, numbers, chance), *_stability(curve)]
    if len(held):
        found += _held_out(curve, held_steps, held, numbers, chance, epochs)
    if not {"overfit", "data trouble", "unstable"} & {finding.verdict for finding in found}:
        found += _unfinished(curve, held, numbers, chance)
    if not found:
        says = f"The loss has come down from {losses[0]:.3g} to {curve.end:.3g}"
        if len(held):
            says += f", that of validation to {held[-1]:.3g}, no higher than its best"
        found = [Finding("healthy", f"{says}, and it is levelling off.", "")]
    return _result(found, numbers)


def _result(found: list[Finding], numbers: dict[str, float]) -> dict[str, Any]:
    found.sort(key=lambda finding: VERDICTS.index(finding.verdict))
    return {
        "verdict": found[0].verdict,
        "findings": [{"verdict": f.verdict, "says": f.says, "try": f.remedy} for f in found],
        "numbers": {name: float(f"{value:.6g}") for name, value in numbers.items()},
    }


def _scale(loss: float, chance: float | None) -> float:
    return max(loss, 0.1 * (chance or 0.0))


def _data(
    steps: np.ndarray, losses: np.ndarray, curve: Curve, numbers: dict[str, float], chance: float | None
) -> Iterator[Finding]:
    """What points at the data themselves: a loss at chance, a loss that jumps."""
    if chance is not None and curve.end > chance * (1 - AT_CHANCE):
        yield Finding(
            "data trouble",
            f"The loss ends at {curve.end:.3g}; an even guess has {chance:.3g}. Nothing has been learnt.",
            "look at a few batches, whether the labels belong to the inputs and what the mask leaves of them; then "
            "raise optimizer.lr or train longer",
        )
    jumps = spikes(losses)
    numbers["spikes"] = len(jumps)
    if len(jumps) >= MANY_SPIKES:
        where = ", ".join(str(steps[i]) for i in jumps[:5]) + (", ..." if len(jumps) > 5 else "")
        yield Finding(
            "data trouble",
            f"The loss jumped up {len(jumps)} times and came back, at steps {where}.",
            "look at the data of these steps; leave such steps out with +callbacks/guard=skip; lower optimizer.lr",
        )


def _stability(curve: Curve) -> Iterator[Finding]:
    low, error = curve.means[curve.lowest], math.hypot(curve.end_error, curve.errors[curve.lowest])
    if curve.end - low > max(DIVERGED * low, CERTAIN * error):
        yield Finding(
            "unstable",
            f"The loss was {low:.3g} around step {curve.steps[curve.lowest]:.0f} and has risen to {curve.end:.3g}.",
            "lower optimizer.lr, warm up longer, clip harder (gradient_clip)",
        )


def _held_out(
    curve: Curve,
    held_steps: np.ndarray,
    held: np.ndarray,
    numbers: dict[str, float],
    chance: float | None,
    epochs: float | None,
) -> Iterator[Finding]:
    """Training against validation, at the same steps."""
    beside = curve.at(held_steps)
    best, now, train = int(held.argmin()), float(held[-1]), float(beside[-1])
    third = int(np.flatnonzero(held_steps >= held_steps[-1] - (held_steps[-1] - curve.steps[0]) / 3)[0])
    numbers |= {"validation_end": now, "validation_best": held[best], "validation_best_step": held_steps[best]}
    numbers |= {"gap": now - train}
    if train - now > max(FAR_BELOW * _scale(train, chance), CERTAIN * curve.end_error):
        yield Finding(
            "data trouble",
            f"Validation, at {now:.3g}, is far below training, at {train:.3g}.",
            "see whether validation documents are among those of training, or easier; strong dropout, which only "
            "training has, does the same",
        )
    stands = len(held) - third >= 2 and held[third] - now < STILL * _scale(now, chance)
    repeated, far = epochs is not None and epochs > REPEATED, now - train > FAR_ABOVE * _scale(train, chance)
    if now - held[best] > RISEN * _scale(held[best], chance) and beside[best] > train:
        says = f"Validation was best at step {held_steps[best]} with {held[best]:.3g} and has risen to {now:.3g}, "
        says += f"while training fell to {train:.3g}."
        if train < 0.2 * now:
            says += " The training data are being learnt by heart."
    elif stands and curve.falls and curve.fall > FALLING * _scale(train, chance) and now > train:
        says = f"Validation stands still at {now:.3g}, while training goes on falling, to {train:.3g}."
    elif far and (stands or repeated):
        says = f"Validation, at {now:.3g}, is far above training, at {train:.3g}."
    elif far:
        yield Finding(
            "data trouble",
            f"Validation, at {now:.3g}, is far above training, at {train:.3g}, though it goes on falling"
            + (" and the data hardly repeat." if epochs is not None else "."),
            "see whether validation is of another kind than training (other sources, other languages, longer texts), "
            "or whether the model that this began from had learnt the training data",
        )
        return
    else:
        return
    yield Finding(
        "overfit",
        says + (f" Each sample has been seen {epochs:.3g} times." if repeated else ""),
        ("more data or fewer steps, since the data repeat" if repeated else "more data, fewer steps")
        + "; dropout, more weight_decay, a smaller model; +callbacks/stopping=early keeps the best weights",
    )


def _unfinished(curve: Curve, held: np.ndarray, numbers: dict[str, float], chance: float | None) -> Iterator[Finding]:
    numbers["fall_of_last_fifth"] = curve.fall
    still_best = len(held) < 2 or held.argmin() == len(held) - 1
    if curve.falls and curve.fall > FALLING * _scale(curve.end, chance) and still_best:
        says = f"The loss still fell by {curve.fall:.2g} within the last fifth of the steps, to {curve.end:.3g}"
        says += f", and validation with it, to {held[-1]:.3g}." if len(held) > 1 else "."
        yield Finding("underfit", says, "more steps, a higher optimizer.lr, a larger model, less dropout")


def finite(series: Series) -> tuple[np.ndarray, np.ndarray]:
    steps, values = np.asarray(series[0], np.int64), np.asarray(series[1], np.float64)
    return steps[np.isfinite(values)], values[np.isfinite(values)]


def spikes(values: np.ndarray, reach: int = 8) -> list[int]:
    """The places of values far above both the ones before and the ones after."""
    found = []
    for i in range(reach, len(values) - 2):
        before, after = values[i - reach : i], values[i + 1 : i + 1 + reach]
        around = np.concatenate((before, after))
        middle = float(np.median(around))
        spread = 1.4826 * float(np.median(abs(around - middle)))
        if values[i] > max(middle + 10 * spread, (1 + SPIKE) * middle) and values[i] > before.max():
            found.append(i)
    return found
