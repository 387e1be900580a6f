"""LAMB (You et al. 2019, arXiv:1904.00962, algorithm 2): Adam's direction, as long as the weights are; for very large
batches.

    m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2
    r = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay w
    w <- w - lr min(|w|, largest_norm) / |r| r,  the factor being 1 where either norm is 0

Norms are those of a matrix, of each expert's where they are stacked. As in the authors' code, vectors (norms, biases)
move as under Adam, without the factor.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from athanor.errors import require
from athanor.optimizers.common import check_rates, refuse_width_factors, undone_where


class LAMB(Optimizer):
    """
    Args:
        largest_norm: a matrix counts as no longer than this.
    """

    skips = True
    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        largest_norm: float = 10.0,
    ):
        check_rates(lr, betas, weight_decay)
        require(eps > 0, f"optimizer.eps={eps} must be positive")
        require(largest_norm > 0, f"optimizer.largest_norm={largest_norm} must be positive")
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        # capturable: torch then loads `step` in float32 and to the device, whatever the weights' type
        defaults |= {"largest_norm": largest_norm, "capturable": True}
        super().__init__(refuse_width_factors(params, "LAMB"), defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            for p in weights:
                if not self.state[p]:
                    step = torch.zeros((), device=p.device)
                    self.state[p].update(step=step, mean=torch.zeros_like(p), square=torch.zeros_like(p))
            steps, means, squares = ([self.state[p][k] for p in weights] for k in ("step", "mean", "square"))
            with undone_where(self.found_inf, [*weights, *steps, *means, *squares]):
                self._step(group, weights, [p.grad for p in weights], steps, means, squares)
        return loss

    def _step(
        self,
        group: dict[str, Any],
        weights: list[Tensor],
        slopes: list[Tensor],
        steps: list[Tensor],
        means: list[Tensor],
        squares: list[Tensor],
    ) -> None:
        beta1, beta2 = group["betas"]
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(means, slopes, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, slopes, slopes, 1 - beta2)
        updates = torch._foreach_div(squares, [corrected(beta2, t) for t in steps])
        torch._foreach_sqrt_(updates)
        torch._foreach_add_(updates, group["eps"])
        torch._foreach_reciprocal_(updates)
        torch._foreach_mul_(updates, means)
        torch._foreach_div_(updates, [corrected(beta1, t) for t in steps])
        torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        torch._foreach_mul_(updates, [trust(p, r, group["largest_norm"]) for p, r in zip(weights, updates)])
        torch._foreach_add_(weights, updates, alpha=-group["lr"])


def corrected(beta: float, step: Tensor) -> Tensor:
    """1 - beta^step, exact also where beta is near 1."""
    return -torch.expm1(step * (math.log(beta) if beta else -math.inf))


def trust(weight: Tensor, update: Tensor, largest_norm: float) -> Tensor:
    """min(|w|, largest_norm) / |r| of each matrix, 1 where either is 0 and for vectors."""
    if weight.ndim < 2:
        return torch.ones((), device=weight.device, dtype=weight.dtype)
    long, move = (x.norm(dim=(-2, -1), keepdim=True) for x in (weight, update))
    return torch.where((long > 0) & (move > 0), long.clamp(max=largest_norm) / move, 1.0)
