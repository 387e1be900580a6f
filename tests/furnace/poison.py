"""A callback that spoils the gradients of some data, for experiments of the tests."""

from typing import Any

from lightning import Callback


class Poison(Callback):
    """Multiplies the gradients of the steps that train on the data of certain steps of an undisturbed run."""

    def __init__(self, steps: list[int], factor: float) -> None:
        self.steps, self.factor = steps, factor

    def on_before_optimizer_step(self, trainer: Any, algorithm: Any, optimizer: Any) -> None:
        plan = trainer.datamodule.plan
        if plan.place(trainer.global_step) // plan.global_batch_size + 1 in self.steps:
            for parameter in algorithm.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(self.factor)
