"""Ends a training that no longer gets better, and keeps the weights of its best validation."""

import copy
import logging
from typing import Any, Literal

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping

from athanor.algorithms.base import Algorithm
from athanor.callbacks.averaging import copy_weights
from athanor.errors import UserError

log = logging.getLogger(__name__)


class EarlyStopping(LightningEarlyStopping):
    """Lightning's, and the run keeps the best weights: as a frozen part of the algorithm, so that checkpoints hold them
    too and a resumed run ends with the same ones. Listed before what puts averages in the weights' place, so that the
    best weights are those that were validated.

    Args:
        patience: validations in a row without a better value after which the training ends.
        metric: of validation.
        least: the smallest difference that is better.
        keep_best: the finished run keeps the best weights, not the last, and its metrics are theirs.
    """

    name = "best"

    def __init__(
        self,
        patience: int = 3,
        metric: str = "validation/loss",
        better: Literal["lower", "higher"] = "lower",
        least: float = 0.0,
        keep_best: bool = True,
    ):
        if patience < 1 or least < 0:
            raise UserError("callbacks.stopping.patience must be at least 1, and .least at least 0.")
        super().__init__(
            metric, min_delta=least, patience=patience, mode={"lower": "min", "higher": "max"}[better],
            check_finite=False, check_on_train_epoch_end=False,
        )  # fmt: skip
        self.keep_best = keep_best
        self.best_step, self.best_metrics = 0, dict[str, float]()

    @property
    def stopped(self) -> bool:
        return self.wait_count >= self.patience

    def setup(self, trainer: Trainer, algorithm: Algorithm, stage: str) -> None:  # type: ignore[override]
        super().setup(trainer, algorithm, stage)
        if not len(trainer.datamodule.validation):  # type: ignore[attr-defined]
            raise UserError("callbacks.stopping needs a validation split, and the data has none.")
        if self.keep_best:
            algorithm.add_frozen(self.name, copy.deepcopy(algorithm.model), saved=True)

    def on_validation_end(self, trainer: Trainer, algorithm: Algorithm) -> None:  # type: ignore[override]
        measured = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("validation/")}
        if self.monitor not in measured:
            raise UserError(
                f"callbacks.stopping.metric={self.monitor} is not measured; this validation measures "
                f"{', '.join(sorted(measured))}."
            )
        before = self.best_score
        super().on_validation_end(trainer, algorithm)
        if not torch.equal(before, self.best_score):
            self.best_step, self.best_metrics = trainer.global_step, measured
            if self.keep_best:
                copy_weights(algorithm.model, algorithm.get_submodule(self.name))
        if self.stopped:
            log.warning(
                "stopped early at step %d: %s has been no better than its %.6g of step %d for %d validations",
                trainer.global_step, self.monitor, float(self.best_score), self.best_step, self.wait_count,
            )  # fmt: skip

    def on_fit_end(self, trainer: Trainer, algorithm: Algorithm) -> None:  # type: ignore[override]
        """After every `on_train_end`: the best weights take the place of whatever averages there are."""
        if not self.best_metrics:
            return
        if self.keep_best:
            copy_weights(algorithm.get_submodule(self.name), algorithm.model)
            algorithm.last_report |= self.best_metrics
        algorithm.report({"best/step": float(self.best_step), f"best/{self.monitor}": float(self.best_score)})

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"best_step": self.best_step, "best_metrics": self.best_metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.best_step, self.best_metrics = state_dict["best_step"], state_dict["best_metrics"]
