"""Watches loss and gradient: what is not finite ends the run, and a spike is skipped or rolled back, if asked for.

All is judged on the device, in a handful of operations on a few hundred numbers a step. The host reads a verdict one
step later, from memory that the device has already written: it never waits for the step under way. Whether a step is
left out is decided on the device alone, by the attribute `found_inf` that torch's fused optimizers and ours obey.
Nothing is saved, and the run does not end, before the last verdict is read. Gradients, and the sum of losses, are the
same in all ranks, so their verdicts are.

A step spikes where its loss or its gradient norm exceeds median + deviations * 1.4826 * (median distance to the median)
of the last `window` steps: the rule of OLMo-core's SkipStepOptimizer (Allen Institute for AI, 2024), with a spread that
the spikes themselves, which are among those steps, hardly widen. Lightning's SpikeDetection judges each
micro-batch on the host, after its step has been taken, and ends the run.
"""

import logging
from collections import deque
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning import Callback, Trainer
from torch import Tensor
from torch.optim import Optimizer

from athanor.algorithms.base import Algorithm
from athanor.callbacks.checkpoints import Checkpoints, newest_step
from athanor.data.base import Data
from athanor.errors import UserError
from athanor.optimizers.common import can_skip

log = logging.getLogger(__name__)

FINE, SPIKE, NOT_FINITE = 0.0, 1.0, 2.0


class RolledBack(Exception):  # noqa: N818
    """Training is to go on from the newest checkpoint, by these detours past the data that led into a spike."""

    def __init__(self, detours: tuple[tuple[int, int], ...]):
        super().__init__(f"rolled back {len(detours)} times")
        self.detours = detours


class Guard(Callback):
    """Listed before what saves, and after what measures waiting: it may wait a moment for the device.

    Args:
        on_spike: "ignore" it; "skip" the step, as if it had not been (the schedule goes on); or "roll_back" to the
            newest checkpoint and pass over the data from there to the spike.
        deviations, window: of the rule above.
        least: steps before which nothing counts as a spike.
        most: so many steps that are not finite in a row (skip), or so many roll-backs, end the run.
    """

    def __init__(
        self,
        on_spike: Literal["ignore", "skip", "roll_back"] = "ignore",
        deviations: float = 10.0,
        window: int = 128,
        least: int = 64,
        most: int = 5,
    ):
        for name, value, smallest in (("window", window, 8), ("least", least, 4), ("most", most, 1)):
            if value < smallest:
                raise UserError(f"callbacks.guard.{name}={value} must be at least {smallest}.")
        if deviations <= 0:
            raise UserError(f"callbacks.guard.deviations={deviations} must be positive.")
        if least > window:
            raise UserError(f"callbacks.guard.least={least} must be at most callbacks.guard.window={window}.")
        self.on_spike, self.deviations, self.window, self.least, self.most = on_spike, deviations, window, least, most
        self.recent = torch.full((2, window), torch.inf)  # losses and gradient norms; inf: not yet
        self.count = torch.zeros((), dtype=torch.int64)
        self.pending: deque[tuple[int, Tensor, Any]] = deque()
        self.skipped = self.in_a_row = 0
        self.detours: tuple[tuple[int, int], ...] = ()

    def setup(self, trainer: Trainer, algorithm: Algorithm, stage: str) -> None:  # type: ignore[override]
        self.trainer, self.data = trainer, trainer.datamodule  # type: ignore[attr-defined]
        self.scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if self.scaled and self.on_spike == "skip":
            raise UserError(
                "precision=16-mixed skips steps by itself to find its scale; with callbacks.guard.on_spike=skip take "
                "bf16-mixed."
            )
        if self.on_spike == "roll_back" and type(self.data).stream is not Data.stream:
            raise UserError("callbacks.guard.on_spike=roll_back cannot pass over rollouts; take skip.")
        self.detour(self.data.plan.detours)
        algorithm.watch = self.judge

    def on_train_start(self, trainer: Trainer, algorithm: Algorithm) -> None:  # type: ignore[override]
        self.recent, self.count = self.recent.to(algorithm.device), self.count.to(algorithm.device)
        if self.on_spike == "skip" and not all(map(can_skip, trainer.optimizers)):
            names = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers)
            raise UserError(
                f"{names} cannot leave a step out; take callbacks.guard.on_spike=roll_back, or the optimizer adamw "
                "(fused: true), muon, lion or lamb."
            )

    # --- on the device ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def judge(self, optimizer: Optimizer, loss: Tensor, norm: Tensor) -> None:
        """Called between the gradients and the step.

        Args:
            loss: this rank's share of the step's, float32 scalar.
            norm: of the gradient of all ranks, before clipping.
        """
        watched = self.on_spike != "ignore"
        if self.trainer.world_size > 1 and (watched or self.scaled):
            dist.all_reduce(loss := loss.clone(), group=getattr(self.trainer.strategy, "data_group", None))
        found = torch.stack((loss.float(), norm.float()))
        finite = found[:1].isfinite().all() if self.scaled else found.isfinite().all()
        verdict, limits = torch.where(finite, FINE, NOT_FINITE), torch.full_like(found, torch.inf)
        if watched:
            limits = self.limits()
            verdict = torch.where(finite & (found > limits).any(), SPIKE, verdict)
            place = self.count.remainder(self.window).expand(2, 1)
            self.recent.scatter_(1, place, torch.where(found.isfinite().all(), found, torch.inf)[:, None])
            self.count += found.isfinite().all()
        if self.on_spike == "skip":
            optimizer.found_inf = (verdict > FINE).float()  # type: ignore[attr-defined]
        self.note(self.trainer.global_step + 1, torch.cat((verdict[None], found, limits)))

    def limits(self) -> Tensor:
        """What loss and gradient norm may be, float32 [2]; inf before there are enough steps to tell."""
        last = self.count.clamp(1, self.window).sub(1).div(2, rounding_mode="floor").expand(2, 1)
        middle = self.recent.sort(1).values.gather(1, last)
        spread = (self.recent - middle).abs().sort(1).values.gather(1, last)
        limits = (middle + self.deviations * 1.4826 * spread)[:, 0]
        return torch.where(self.count >= self.least, limits, torch.inf)

    def note(self, step: int, row: Tensor) -> None:
        if row.is_cuda:
            host = torch.empty(row.shape, dtype=row.dtype, pin_memory=True)
            host.copy_(row, non_blocking=True)
            written = torch.cuda.Event()
            written.record()
            self.pending.append((step, host, written))
        else:
            self.pending.append((step, row, None))

    # --- on the host ------------------------------------------------------------------------------------------------

    def read(self, left: int = 0) -> None:
        """Reads the verdicts on all steps but the last `left`.

        Raises:
            UserError: a step is not finite, or too many are.
            RolledBack: there was a spike.
        """
        while len(self.pending) > left:
            step, row, written = self.pending.popleft()
            if written is not None:
                written.synchronize()
            verdict, *numbers = row.tolist()
            self.in_a_row = self.in_a_row + 1 if verdict == NOT_FINITE else 0
            if verdict == FINE:
                continue
            loss, norm, most_loss, most_norm = numbers
            said = f"loss {loss:.4g} (limit {most_loss:.4g}), gradient norm {norm:.4g} (limit {most_norm:.4g})"
            if self.on_spike == "ignore" or (self.on_spike == "skip" and self.in_a_row > self.most):
                raise UserError(self.epitaph(step, loss, norm))
            if self.on_spike == "skip":
                self.skipped += 1
                log.warning("step %d is left out: %s", step, said)
            else:
                if len(self.detours) >= self.most:
                    raise UserError(self.epitaph(step, loss, norm, after=f" after {self.most} roll-backs"))
                self.roll_back(step, said)

    def roll_back(self, step: int, said: str) -> None:
        saved = int(self.trainer.strategy.broadcast(newest_step(self.directory)))
        log.warning("step %d spikes: %s; back to step %d, past the data up to here", step, said, saved)
        raise RolledBack((*self.detours, (saved, step - saved)))

    @property
    def directory(self) -> Path | None:
        """Of the checkpoints, what is being written among them."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoints):
                callback.wait()
                return callback.directory
        return None

    def epitaph(self, step: int, loss: float, norm: float, after: str = "") -> str:
        """The one sentence with which a run ends."""
        saved = newest_step(self.directory)
        kept = (
            f"the last good checkpoint is {self.directory}/step-{saved:08d}.ckpt, from which the same command goes on"
            if saved
            else "there is no checkpoint before it"
        )
        remedy = "lower optimizer.lr, warm up longer, clip harder"
        if self.on_spike == "ignore":
            remedy += ", or leave such steps out with +callbacks/guard=skip"
        return (
            f"The training is lost at step {step}{after}: loss {loss:.4g}, gradient norm {norm:.4g}; {kept}. "
            f"Where the data is to blame or the rate, it will end so again: {remedy}, which makes a new run."
        )

    def on_train_batch_start(self, trainer: Trainer, algorithm: Algorithm, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.read(left=1 if algorithm.device.type == "cuda" else 0)

    def on_train_batch_end(self, trainer: Trainer, algorithm: Algorithm, *_: Any) -> None:  # type: ignore[override]
        if self.on_spike != "ignore" and algorithm.logs_at(trainer.global_step):
            self.read()
            skips = self.on_spike == "skip"
            algorithm.report({"guard/skipped": self.skipped} if skips else {"guard/rolled_back": len(self.detours)})

    def on_train_end(self, trainer: Trainer, algorithm: Algorithm) -> None:  # type: ignore[override]
        self.read()

    # --- state ------------------------------------------------------------------------------------------------------

    def detour(self, detours: tuple[tuple[int, int], ...]) -> None:
        self.detours = detours
        self.data.plan = self.data.plan._replace(detours=detours)

    def state_dict(self) -> dict[str, Any]:
        self.read()  # nothing is saved after a step that went wrong
        if self.on_spike == "ignore":
            return {}
        return {
            "recent": self.recent.cpu(),
            "count": self.count.cpu(),
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "detours": [list(detour) for detour in self.detours],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not state_dict:
            return
        self.recent, self.count = state_dict["recent"], state_dict["count"]
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]
        stored = tuple((start, by) for start, by in state_dict["detours"])
        if len(stored) > len(self.detours):  # of a run that is resumed; one that rolls back knows of one more
            self.detour(stored)
