"""Lion (Chen et al. 2023, arXiv:2302.06675, algorithm 2): the sign of an interpolated momentum.

    update = sign(beta1 m + (1 - beta1) g)
    w <- w - lr (update + weight_decay w)
    m <- beta2 m + (1 - beta2) g

Every weight moves by lr, so lr is 3 to 10 times smaller than AdamW's and weight_decay as much larger (section 5).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from athanor.optimizers.common import check_rates, undone_where


class Lion(Optimizer):
    """
    Args:
        weight_decay: decoupled, as above.
    """

    skips = True
    found_inf: torch.Tensor | None = None

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ):
        check_rates(lr, betas, weight_decay)
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

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
                    self.state[p]["momentum"] = torch.zeros_like(p)
            slopes, momenta = [p.grad for p in weights], [self.state[p]["momentum"] for p in weights]
            lr, (beta1, beta2) = group["lr"], group["betas"]
            with undone_where(self.found_inf, [*weights, *momenta]):
                updates = torch._foreach_lerp(momenta, slopes, 1 - beta1)
                torch._foreach_sign_(updates)
                torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
                torch._foreach_add_(weights, updates, alpha=-lr)
                torch._foreach_lerp_(momenta, slopes, 1 - beta2)
        return loss
