"""Tokens per second, and model FLOPs utilisation where the device's peak is known; the run's progress display."""

import time
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.fabric.utilities.throughput import get_available_flops

from athanor.algorithms.base import Algorithm


class Throughput(Callback):
    """Logs with the algorithm's metrics `train/tokens_per_second` (all ranks, padding included), `train/mfu`, and
    `train/data_wait`, the share of the time in which rank 0 waited for its next batch.
    """

    def __init__(self, progress: Any):
        self.progress = progress
        self.tokens, self.since, self.shown = 0, 0.0, 0.0
        self.waited = 0.0
        self.peak: int | None = None

    def on_train_start(self, trainer: Trainer, algorithm: Algorithm) -> None:  # type: ignore[override]
        device = algorithm.device
        if device.type == "cuda":
            low = "16" in str(trainer.precision)
            self.peak = get_available_flops(device, torch.bfloat16 if low else torch.float32)
        self.restart(time.perf_counter())

    def restart(self, now: float) -> None:
        self.tokens, self.waited, self.since = 0, 0.0, now

    def on_train_batch_start(self, trainer: Trainer, algorithm: Algorithm, *_: Any) -> None:  # type: ignore[override]
        now = time.perf_counter()
        self.waited += now - max(
            algorithm.batch_ended, self.since
        )  # validation and the start of training are not waits

    def on_train_batch_end(self, trainer: Trainer, algorithm: Algorithm, outputs: Any, batch: Any, *_: Any) -> None:  # type: ignore[override]
        self.tokens += algorithm.tokens(batch)
        step, now = trainer.global_step, time.perf_counter()
        if algorithm.logs_at(step):
            rate = self.tokens * algorithm.replicas / max(now - self.since, 1e-9)
            waited = self.waited / max(now - self.since, 1e-9)
            metrics = {"train/tokens_per_second": rate, "train/data_wait": waited}
            if self.peak:
                metrics["train/mfu"] = rate * algorithm.flops_per_token / (self.peak * trainer.world_size)
            algorithm.report(metrics)
            self.restart(now)
            self.rate = rate
        if now - self.shown > 0.3 or step == trainer.max_steps:
            self.shown = now
            loss = algorithm.last_report.get("train/loss")  # the global one, of the last step that was logged
            fields = {} if loss is None else {"loss": loss}
            if hasattr(self, "rate"):
                fields["tokens_per_second"] = self.rate
            self.progress.update(step, trainer.max_steps, **fields)

    def on_validation_end(self, trainer: Trainer, algorithm: Algorithm) -> None:  # type: ignore[override]
        self.restart(time.perf_counter())  # validation is not training
