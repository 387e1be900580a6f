"""The law of Hoffmann et al. 2022 (arXiv:2203.15556, approach 3), fitted to trainings.

    L(N, D) = E + A / N^alpha + B / D^beta

in nats a token, N being parameters and D training tokens. As there, the sum of Huber losses of the errors of log L is
minimised by L-BFGS from a grid of starts; of the grid, only the starts of least loss are followed. The intervals come
from the bootstrap over trainings, which Besiroglu et al. 2024 (arXiv:2404.10102) used to show that those of the paper
were too narrow.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from athanor.errors import UserError

DELTA = 1e-3  # of the Huber loss, in log L
STARTS = 12
FEWEST, LEVELS = 6, 3  # trainings, and different sizes and different token counts among them
FLOPS = 6.0  # of a parameter and a token, forward and backward

Array = NDArray[np.float64]
GRID = np.stack(
    np.meshgrid([0.0, 5, 10, 15, 20, 25], [0.0, 5, 10, 15, 20, 25], [-1.0, -0.5, 0, 0.5, 1],
                [0.0, 0.5, 1, 1.5, 2], [0.0, 0.5, 1, 1.5, 2]), -1,
).reshape(-1, 5)  # fmt: skip
"""a = log A, b = log B, e = log E, alpha, beta: the paper's starts."""


class Point(NamedTuple):
    """One training: parameters, tokens, validation loss in nats a token, and what it is called."""

    parameters: float
    tokens: float
    loss: float
    name: str = ""


class Law(NamedTuple):
    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        return float(self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta)

    def optimum(self, compute: float) -> Point:
        """Where the loss is least for `compute` FLOPs = 6 N D (eq. 4)."""
        product, exponents = compute / FLOPS, self.alpha + self.beta
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / exponents)
        parameters = ratio * product ** (self.beta / exponents)
        return Point(parameters, product / parameters, self.loss(parameters, product / parameters))


class Interval(NamedTuple):
    value: float
    low: float
    high: float


class Fit(NamedTuple):
    """A law, and the laws of the bootstrap's samples."""

    law: Law
    samples: list[Law]
    points: list[Point]
    confidence: float = 0.95

    def coefficients(self) -> dict[str, Interval]:
        return {name: self.interval(*self.each(name)) for name in Law._fields}

    def each(self, name: str) -> tuple[float, list[float]]:
        return getattr(self.law, name), [getattr(law, name) for law in self.samples]

    def interval(self, value: float, values: Sequence[float]) -> Interval:
        """Between the quantiles of the bootstrap's values."""
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(values, [tail, 1 - tail])
        return Interval(value, float(low), float(high))

    def optimum(self, compute: float) -> dict[str, Interval]:
        """Parameters, tokens and loss of the compute-optimal training."""
        best, others = self.law.optimum(compute), [law.optimum(compute) for law in self.samples]
        return {
            name: self.interval(getattr(best, name), [getattr(other, name) for other in others])
            for name in ("parameters", "tokens", "loss")
        }

    def error(self) -> float:
        """Median of the relative errors of the loss."""
        return float(np.median([abs(self.law.loss(p.parameters, p.tokens) / p.loss - 1) for p in self.points]))


def fit(points: Sequence[Point], *, samples: int = 200, seed: int = 0, confidence: float = 0.95) -> Fit:
    """
    Args:
        samples: of the bootstrap.
        confidence: of the intervals.

    Raises:
        UserError: too few trainings, or too few different ones, for five coefficients.
    """
    check(points)
    sizes, tokens, losses = (np.array([getattr(p, name) for p in points]) for name in ("parameters", "tokens", "loss"))
    best = follow(GRID, sizes, tokens, losses, STARTS)
    laws: list[Law] = []
    random = np.random.default_rng(seed)
    while len(laws) < samples:
        rows = random.integers(0, len(points), len(points))
        if min(len(set(sizes[rows])), len(set(tokens[rows]))) >= LEVELS:
            starts = np.concatenate((best[None], jittered(best, random)))
            laws.append(law_of(follow(starts, sizes[rows], tokens[rows], losses[rows], len(starts))))
    return Fit(law_of(best), laws, list(points), confidence)


def check(points: Sequence[Point]) -> None:
    """Raises UserError unless the points can tell five coefficients apart."""
    for point in points:
        if not (point.parameters > 0 and point.tokens > 0 and point.loss > 0 and np.isfinite(point.loss)):
            raise UserError(f"{point.name or point} has no positive parameters, tokens and loss")
    counts = [len({getattr(point, name) for point in points}) for name in ("parameters", "tokens")]
    if len(points) < FEWEST or min(counts) < LEVELS:
        raise UserError(
            f"a scaling law has five coefficients: it takes at least {FEWEST} trainings with {LEVELS} different sizes "
            f"and {LEVELS} different token counts, and these are {len(points)} with {counts[0]} and {counts[1]}"
        )


def jittered(start: Array, random: np.random.Generator, count: int = 1) -> Array:
    return start + random.normal(0, [1.0, 1.0, 0.2, 0.1, 0.1], (count, 5))


def law_of(solution: Array) -> Law:
    a, b, e, alpha, beta = (float(x) for x in solution)
    return Law(float(np.exp(e)), float(np.exp(a)), float(np.exp(b)), alpha, beta)


def follow(starts: Array, sizes: Array, tokens: Array, losses: Array, most: int) -> Array:
    """The best minimum reached from the `most` starts of least loss: a, b, e, alpha, beta."""
    x, y, target = np.log(sizes), np.log(tokens), np.log(losses)
    first = np.array([objective(start, x, y, target)[0] for start in starts])
    chosen = starts[np.argsort(first)[:most]]
    ends = [
        minimize(objective, start, (x, y, target), "L-BFGS-B", jac=True, options={"maxiter": 2000, "ftol": 1e-12})
        for start in chosen
    ]
    return np.asarray(min(ends, key=lambda end: end.fun).x)


def objective(solution: Array, x: Array, y: Array, target: Array) -> tuple[float, Array]:
    """Sum of the Huber losses over DELTA^2, and its gradient."""
    a, b, e, alpha, beta = solution
    terms = np.stack((a - alpha * x, b - beta * y, np.full_like(x, e)))
    error = (logsumexp(terms, axis=0) - target) / DELTA
    slope = np.clip(error, -1, 1)
    value = np.sum(np.where(np.abs(error) <= 1, 0.5 * error**2, np.abs(error) - 0.5))
    pull = softmax(terms, axis=0) * slope / DELTA
    gradient = np.array([pull[0].sum(), pull[1].sum(), pull[2].sum(), -(pull[0] * x).sum(), -(pull[1] * y).sum()])
    return float(value), gradient
