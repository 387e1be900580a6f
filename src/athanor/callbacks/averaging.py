"""Averages of the weights, which are validated and kept in the place of the newest ones."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from lightning import Callback, Trainer
from torch.optim import Optimizer

from athanor.algorithms.base import Algorithm
from athanor.errors import UserError


class ExponentialAverage(Callback):
    """An exponential moving average of the trained model's weights (Polyak and Juditsky 1992, with a horizon).

        average <- d average + (1 - d) weights after every step, d = min(decay, (1 + step) / (10 + step))

    It is a frozen part of the algorithm, so that checkpoints hold it and every strategy shards it as it does the model.
    Listed before the checkpoints, which are saved where the next step begins.

    Args:
        decay: the average's horizon is about 1 / (1 - decay) steps.
        validate: validation, and the samples shown there, are of the average.
        save: the finished run keeps the average as its model.
    """

    name = "average"

    def __init__(self, decay: float = 0.999, validate: bool = True, save: bool = True):
        if not 0 < decay < 1:
            raise UserError(f"callbacks.average.decay={decay} must lie between 0 and 1.")
        self.decay, self.validate, self.save = decay, validate, save
        self.counted = 0

    def setup(self, trainer: Trainer, algorithm: Algorithm, stage: str) -> None:  # type: ignore[override]
        algorithm.add_frozen(self.name, copy.deepcopy(algorithm.model), saved=True)

    def on_train_start(self, trainer: Trainer, algorithm: Algorithm) -> None:  # type: ignore[override]
        if any(switching(trainer)):
            raise UserError("The schedule-free optimizer averages the weights itself; leave callbacks.average out.")
        if any(p.dtype in (torch.bfloat16, torch.float16) for p in algorithm.model.parameters()):
            raise UserError(
                "callbacks.average needs weights in float32, since smaller types round its small moves away; set "
                "precision=bf16-mixed, or leave it out."
            )
        self.counted = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, algorithm: Algorithm, *_: Any) -> None:  # type: ignore[override]
        step = trainer.global_step
        if step == self.counted:  # a micro-batch whose step is not complete
            return
        self.counted = step
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average(algorithm)), list(algorithm.model.parameters()), 1 - decay)

    def average(self, algorithm: Algorithm) -> Iterator[torch.Tensor]:
        return algorithm.get_submodule(self.name).parameters()

    @torch.no_grad()
    def exchange(self, algorithm: Algorithm) -> None:
        for ours, theirs in zip(algorithm.model.parameters(), self.average(algorithm)):
            kept = ours.clone()
            ours.copy_(theirs)
            theirs.copy_(kept)

    def on_validation_start(self, trainer: Trainer, algorithm: Algorithm) -> None:  # type: ignore[override]
        if self.validate:
            self.exchange(algorithm)

    def on_validation_end(self, trainer: Trainer, algorithm: Algorithm) -> None:  # type: ignore[override]
        if self.validate:
            self.exchange(algorithm)

    def on_train_end(self, trainer: Trainer, algorithm: Algorithm) -> None:  # type: ignore[override]
        if self.save:
            copy_weights(algorithm.get_submodule(self.name), algorithm.model)


class AveragedIterates(Callback):
    """Has optimizers that average by themselves (`athanor.optimizers.schedule_free`) put the average in the weights'
    place for validation and at the end. Checkpoints hold what the next step needs, which is not the average; after a
    validation it is put back as it was, to the bit, which switching twice would round.
    """

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []

    def on_train_start(self, trainer: Trainer, algorithm: Algorithm) -> None:  # type: ignore[override]
        for optimizer in switching(trainer):
            optimizer.train()

    def on_validation_start(self, trainer: Trainer, algorithm: Algorithm) -> None:  # type: ignore[override]
        for optimizer in switching(trainer):
            self.kept += [p.detach().clone() for p in weights(optimizer)]
            optimizer.eval()

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, algorithm: Algorithm) -> None:  # type: ignore[override]
        kept, self.kept = iter(self.kept), []
        for optimizer in switching(trainer):
            optimizer.train()
            for weight in weights(optimizer):
                weight.copy_(next(kept))

    def on_train_end(self, trainer: Trainer, algorithm: Algorithm) -> None:  # type: ignore[override]
        for optimizer in switching(trainer):
            optimizer.eval()


def switching(trainer: Trainer) -> Iterator[Any]:
    """The optimizers that have a train and an eval mode."""
    for optimizer in trainer.optimizers:
        assert isinstance(optimizer, Optimizer)
        if hasattr(optimizer, "eval"):
            yield optimizer


def weights(optimizer: Optimizer) -> Iterator[torch.Tensor]:
    return (weight for group in optimizer.param_groups for weight in group["params"])


@torch.no_grad()
def copy_weights(source: torch.nn.Module, target: torch.nn.Module) -> None:
    for theirs, ours in zip(source.parameters(), target.parameters()):
        ours.copy_(theirs)
