"""Adafactor (Shazeer and Stern 2018, arXiv:1804.04235), torch's: of a matrix's second moments only the row and column
means are kept, and a weight moves in proportion to its size, by at most 1/sqrt(t) of it.
"""

from collections.abc import Iterable
from typing import Any

import torch

from athanor.optimizers.common import refuse_width_factors


class Adafactor(torch.optim.Adafactor):
    """As torch's; refuses the learning rates of muP.

    Args:
        lr: the largest relative step (rho of the paper).
        beta2_decay: c of 1 - t^c, the decay of the second moments.
        eps: the smallest squared gradient (null is torch's choice), and the size that a weight at least counts as.
        d: an update's root mean square is clipped to it.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
    ):
        groups = refuse_width_factors(params, "Adafactor")
        super().__init__(groups, lr=lr, beta2_decay=beta2_decay, eps=tuple(eps), d=d, weight_decay=weight_decay)  # type: ignore[arg-type]
