"""Optimizers that torch does not have in one piece."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer


class MuonWithAdamW(Optimizer):
    """Muon (Jordan et al. 2024; torch.optim.Muon) for the hidden matrices, AdamW for embeddings, norms and heads.

    Both live in one optimizer, so schedules, clipping and checkpoints see nothing unusual. A group belongs to Muon if
    it says neither `weight_decay` nor `hidden: False` (`Algorithm.configure_optimizers` puts the hidden matrices there)
    and its parameters are matrices with at least `smallest_side` rows and columns; thinner ones go to AdamW.

    Args:
        params: groups; those with different `lr_factor` or `width_factor` stay apart, for the caller to scale their
            learning rates. Muon's groups drop `width_factor`: it is the one of Adam's updates, whose spectral norm
            grows with the width; Muon's does not.
        lr: of AdamW.
        matrix_lr: of Muon; updates have unit spectral norm, scaled by sqrt(max(1, rows/columns)).
        momentum: Nesterov momentum of Muon.
        weight_decay: decoupled, of both.
    """

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
        matrices: dict[float, list[torch.Tensor]] = {}
        rest: dict[tuple[float, float, float], list[torch.Tensor]] = {}
        for group in params:
            decay = group.get("weight_decay", weight_decay)
            factor, width = group.get("lr_factor", 1.0), group.get("width_factor", 1.0)
            for parameter in group["params"]:
                whole = parameter.ndim == 2 and min(parameter.shape) >= smallest_side
                if whole and "weight_decay" not in group and group.get("hidden", True):
                    matrices.setdefault(factor, []).append(parameter)
                else:
                    rest.setdefault((decay, factor, width), []).append(parameter)
        parts: list[Optimizer] = []
        for factor, own in sorted(matrices.items(), key=lambda item: item[0]):
            group = {"params": own, "lr_factor": factor}
            parts.append(Muon([group], lr=matrix_lr, weight_decay=weight_decay, momentum=momentum))
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
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()
