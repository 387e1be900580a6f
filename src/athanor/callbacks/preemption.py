"""Ends a training where a step ends, saved, once a signal has asked any of its processes to; or saves it by the clock.

The ranks agree by an all-reduce: a signal reaches them at different times, and one that left alone would hang the
others. It runs on the CPU beside the training and is read one step later, so that no device waits for it.
"""

import logging
import signal
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer

from athanor import signals, slurm
from athanor.callbacks.checkpoints import Checkpoints

log = logging.getLogger(__name__)

SAVE, UNSAVED, SUPERSEDED = 1, 999, 1000  # below and beyond the signals': of what the ranks say, the largest counts
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
        if number == UNSAVED:
            self.unsaved()
        self.checkpoints.save_boundary(trainer)
        if number == SAVE:
            if self.asked and int(self.asked[1]) == SAVE:  # said again before this was known
                self.asked[1].zero_()
            return
        self.checkpoints.wait()
        if trainer.strategy.broadcast(self.checkpoints.failed()):
            self.unsaved()
        trainer.strategy.barrier()  # no rank leaves, which may end the job step, before the others know of it
        log.warning("%s: saved at step %d", signal.Signals(number).name, trainer.global_step)
        raise SystemExit(signals.exit_code(number))

    def unsaved(self) -> NoReturn:
        """Rank 0 says why."""
        raise (self.checkpoints.failure if self.checkpoints.is_first else None) or SystemExit(2)

    def wanted(self, trainer: Trainer) -> int:
        """What this rank has to say: a signal's number, one of those above, or 0."""
        if trainer.is_global_zero and time.monotonic() - self.looked > LOOK_EVERY:
            self.looked = time.monotonic()
            if slurm.superseded(self.directory):
                return SUPERSEDED
        if trainer.is_global_zero and self.checkpoints.failed():
            return UNSAVED
        return signals.noted() or SAVE * (trainer.is_global_zero and self.checkpoints.overdue())

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
