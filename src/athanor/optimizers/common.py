"""What the optimizers of this folder share: steps that can be left out without asking the device, and refusals."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from athanor.errors import require


def check_rates(lr: float, betas: Sequence[float], weight_decay: float) -> None:
    require(lr >= 0, f"optimizer.lr={lr} must be at least 0")
    require(all(0 <= beta < 1 for beta in betas), f"optimizer.betas={list(betas)} must lie in [0, 1)")
    require(weight_decay >= 0, f"optimizer.weight_decay={weight_decay} must be at least 0")


def refuse_width_factors(params: Iterable[Any], name: str) -> list[Any]:
    """The groups, none of which muP has given a factor: its factors are derived for updates whose size does not depend
    on the weights'.

    Raises:
        ValueError: one has.
    """
    groups = list(params)
    factors = {group.get("width_factor", 1.0) for group in groups if isinstance(group, dict)}
    require(
        factors <= {1.0},
        f"{name} moves a weight in proportion to its size, for which muP's learning rates are not made; take another "
        "model.initialisation, or adamw, lion or muon as the optimizer",
    )
    return groups


@contextmanager
def undone_where(found_inf: Tensor | None, tensors: Sequence[Tensor]) -> Iterator[None]:
    """What the block does to the tensors is undone where `found_inf` (float32 scalar) is 1; the host does not learn
    whether it is. With None the block is left as it is, and nothing is copied.
    """
    if found_inf is None or not tensors:
        yield
        return
    before = torch._foreach_clone(list(tensors))
    yield
    undo = found_inf.bool()
    for tensor, old in zip(tensors, before):
        tensor.copy_(torch.where(undo, old, tensor))


def can_skip(optimizer: Optimizer) -> bool:
    """Whether its `step` leaves everything as it was where its attribute `found_inf`, a float32 scalar on the device,
    is 1: torch's fused ones do, and those here that say `skips`.
    """
    own = getattr(optimizer, "skips", None)
    return own if own is not None else all(group.get("fused") for group in optimizer.param_groups)
