"""Ends a training where a step ends, saved, once a signal has asked any of its processes to.

The ranks agree by an all-reduce: a signal reaches them at different times, and one that left alone would hang the
others. It runs on the CPU beside the training and is read one step later, so that no device waits for it.
"""

import logging
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer

from athanor import signals, slurm
from athanor.callbacks.checkpoints import Checkpoints

log = logging.getLogger(__name__)

SUPERSEDED = 1000  # beyond any signal's number: of what the ranks say, the largest counts
LOOK_EVERY = 2.0  # seconds between looks at who has claimed the run


class Preemption(Callback):
    """Listed after `checkpoints`, by which it saves. Leaves by SystemExit, in all ranks at the same step."""

    def __init__(self, checkpoints: Checkpoints, directory: Path):
        self.checkpoints, self.directory = checkpoints, directory
        self.group: Any = None
        self.asked: tuple[Any, torch.Tensor] | None = None
        self.looked = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            self.group = dist.new_group(backend="gloo")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return
        number = self.agreed(self.wanted(trainer))
        if not number:
            return
        if self.asked:
            self.asked[0].wait()
        if number == SUPERSEDED:
            log.warning("this job has been restarted elsewhere; leaving the run to it")
            raise SystemExit(128 + signal.SIGTERM)
        self.checkpoints.save_boundary(trainer)
        trainer.strategy.barrier()  # no rank leaves, which may end the job step, before the checkpoint is in its place
        log.warning("%s: saved at step %d", signal.Signals(number).name, trainer.global_step)
        raise SystemExit(signals.exit_code(number))

    def wanted(self, trainer: Trainer) -> int:
        """What this rank has to say: a signal's number, SUPERSEDED, or 0."""
        if trainer.is_global_zero and time.monotonic() - self.looked > LOOK_EVERY:
            self.looked = time.monotonic()
            if slurm.superseded(self.directory):
                return SUPERSEDED
        return signals.noted()

    def agreed(self, own: int) -> int:
        """The largest of what the ranks said where the last step ended; alone, what this one says now."""
        if self.group is None:
            return own
        before, number = self.asked, torch.tensor([own])
        self.asked = (dist.all_reduce(number, dist.ReduceOp.MAX, group=self.group, async_op=True), number)
        if before is None:
            return 0
        before[0].wait()
        return int(before[1])
