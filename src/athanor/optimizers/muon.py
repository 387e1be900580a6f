"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon; torch.optim.Muon) for the hidden matrices, AdamW for the
rest, in one optimizer.

    b <- momentum b + (1 - momentum) g
    w <- (1 - lr weight_decay) w - lr sqrt(max(1, rows / columns)) orthogonalised((1 - momentum) g + momentum b)

Shapes: E experts of a layer, R rows, C columns.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from athanor.errors import require
from athanor.optimizers.common import check_rates, undone_where

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, as in torch.optim.Muon
ITERATIONS = 5


class MuonWithAdamW(Optimizer):
    """Muon for the hidden matrices, AdamW for embeddings, norms and heads.

    Both live in one optimizer, so schedules, clipping and checkpoints see nothing unusual. A group belongs to Muon if
    it says neither `weight_decay` nor `hidden: False` (`Algorithm.configure_optimizers` puts the hidden matrices there)
    and its parameters are matrices, or stacks of the experts' matrices, with at least `smallest_side` rows and columns;
    thinner ones go to AdamW.

    Args:
        params: groups; those with different `lr_factor` or `width_factor` stay apart, for the caller to scale their
            learning rates. Muon's groups drop `width_factor`: it is the one of Adam's updates, whose spectral norm
            grows with the width; Muon's does not.
        lr: of AdamW.
        matrix_lr: of Muon; updates have unit spectral norm, scaled by sqrt(max(1, rows/columns)).
        momentum: Nesterov momentum of Muon.
        weight_decay: decoupled, of both.
    """

    skips = True
    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        matrix_lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        smallest_side: int = 16,
    ):
        check_rates(lr, betas, weight_decay)
        require(matrix_lr >= 0, f"optimizer.matrix_lr={matrix_lr} must be at least 0")
        require(0 <= momentum < 1, f"optimizer.momentum={momentum} must lie in [0, 1)")
        matrices: dict[float, list[Tensor]] = {}
        stacks: dict[float, list[Tensor]] = {}
        rest: dict[tuple[float, float, float], list[Tensor]] = {}
        for group in params:
            decay = group.get("weight_decay", weight_decay)
            factor, width = group.get("lr_factor", 1.0), group.get("width_factor", 1.0)
            for parameter in group["params"]:
                whole = parameter.ndim in (2, 3) and min(parameter.shape[-2:]) >= smallest_side
                if whole and "weight_decay" not in group and group.get("hidden", True):
                    (matrices if parameter.ndim == 2 else stacks).setdefault(factor, []).append(parameter)
                else:
                    rest.setdefault((decay, factor, width), []).append(parameter)
        parts: list[Optimizer] = []
        for kind, found in ((Muon, matrices), (StackedMuon, stacks)):
            for factor, own in sorted(found.items(), key=lambda item: item[0]):
                group = {"params": own, "lr_factor": factor}
                parts.append(kind([group], lr=matrix_lr, weight_decay=weight_decay, momentum=momentum))
        for (decay, factor, width), own in sorted(rest.items(), key=lambda item: item[0]):
            group = {"params": own, "lr_factor": factor, "width_factor": width}
            parts.append(AdamW([group], lr=lr, betas=betas, weight_decay=decay, fused=True))
        self.parts = parts
        super().__init__([{"params": group["params"]} for part in parts for group in part.param_groups], {})
        self.param_groups = [group for part in parts for group in part.param_groups]
        self._share()

    def _share(self) -> None:
        """The parts work on this optimizer's own groups and state."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            if isinstance(part, AdamW):
                part.found_inf = self.found_inf  # type: ignore[attr-defined]
                part.step()
            else:
                with undone_where(self.found_inf, list(self._moved(part))):
                    part.step()
        return loss

    def _moved(self, part: Optimizer) -> Iterable[Tensor]:
        """The weights and momenta that a step of Muon changes."""
        for group in part.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p].setdefault("momentum_buffer", torch.zeros_like(p.grad))
                    yield from (p, self.state[p]["momentum_buffer"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()


class StackedMuon(Optimizer):
    """torch.optim.Muon for stacks of matrices [E, R, C], each orthogonalised by itself, all of a stack at once."""

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, weight_decay: float, momentum: float):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        assert closure is None
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p.grad))
                buffer.lerp_(p.grad, 1 - momentum)
                update = orthogonalised(p.grad.lerp(buffer, momentum))
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update, alpha=-lr * math.sqrt(max(1, p.shape[-2] / p.shape[-1])))


def orthogonalised(x_ERC: Tensor, eps: float = 1e-7) -> Tensor:
    """U V' of each matrix U S V', its singular values only near 1: five Newton-Schulz iterations in bfloat16, the same
    as torch.optim.Muon's. An empty gradient, of an expert that no token went to, stays zero.
    """
    a, b, c = COEFFICIENTS
    tall = x_ERC.shape[-2] > x_ERC.shape[-1]
    x = x_ERC.mT.bfloat16() if tall else x_ERC.bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
