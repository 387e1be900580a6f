"""Ends a training that others have shown to be poor. Its run stays interrupted: the ordinary command would go on."""

from collections.abc import Callable

from lightning import Callback, LightningModule, Trainer

from athanor.errors import UserError


class Pruned(KeyboardInterrupt):
    """How it ends: as on Ctrl-C, which Lightning handles in all ranks, and which leaves a run that can go on."""


class Pruning(Callback):
    """Shows each validation's metric to `judge`, and ends the training where that says so.

    Args:
        metric: of validation.
        judge: (optimizer step, value) -> whether to end. Asked on rank 0; the other ranks follow.
    """

    def __init__(self, metric: str, judge: Callable[[int, float], bool]):
        self.metric, self.judge = metric, judge
        self.pruned = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        measured = trainer.callback_metrics
        if self.metric not in measured:
            raise UserError(
                f"the pruner looks at {self.metric}, which is not measured by validation; this one measures "
                f"{', '.join(sorted(name for name in measured if name.startswith('validation/'))) or 'nothing'}."
            )
        value = float(measured[self.metric])  # which all ranks have to ask for
        poor = trainer.is_global_zero and self.judge(trainer.global_step, value)
        self.pruned = bool(trainer.strategy.broadcast(poor)) and trainer.global_step < trainer.max_steps
        if self.pruned:
            raise Pruned
