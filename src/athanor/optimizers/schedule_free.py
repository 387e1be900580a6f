"""Schedule-free AdamW (Defazio et al. 2024, arXiv:2405.15682), of the package `schedulefree`: instead of letting the
learning rate decay, the iterates are averaged, so that the weights are good at every step.

Gradients are taken at one point (y), and another (x) is what one validates and keeps. `optimizer.train()` and `.eval()`
switch; `athanor.callbacks.averaging.AveragedIterates` calls them. The schedule should be `constant`, with its warm-up.
"""

from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer

from athanor.errors import UserError
from athanor.optimizers.common import check_rates


def schedule_free_adamw(
    params: Iterable[dict[str, Any]],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
) -> Optimizer:
    """
    Args:
        lr: 1 to 10 times AdamW's.
        betas: the interpolation between the average and the newest iterate, and the decay of the second moments.
        weight_decay: towards 0 at y.
        r, weight_lr_power: an iterate counts (step + 1)^r times (largest learning rate so far)^weight_lr_power.

    Raises:
        UserError: the package is not installed.
    """
    try:
        from schedulefree import AdamWScheduleFree
    except ModuleNotFoundError:
        raise UserError("The schedule-free optimizer needs an extra: pip install 'athanor[schedulefree]'.") from None
    check_rates(lr, betas, weight_decay)
    return AdamWScheduleFree(
        params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay, r=r, weight_lr_power=weight_lr_power
    )
