"""Checkpoints to resume from: copied where a step begins, and written behind the training under a temporary name,
fsynced, checksummed, renamed; the newest sound one is used.

A file holds whole tensors, whatever the strategy. A large model does not fit into the memory of rank 0, which writes
it: then a folder of the same name holds what each process has (`athanor.shares`). Any strategy, on any number of
processes, reads either.
"""

import contextlib
import copy
import hashlib
import logging
import os
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

from athanor import shares
from athanor.errors import UserError
from athanor.runs.files import PARTIAL, remove, sha256, write_atomic
from athanor.shares import Share

log = logging.getLogger(__name__)

SHARDED_FROM = 1_000_000_000
"""Trained parameters from which a checkpoint is written in shares, where nothing else is asked for: 12 GB by AdamW."""


class Checkpoints(Callback):
    """Saves every `every_n_steps` optimizer steps and keeps the last `keep`.

    A step is saved when the next one begins: all that is logged of it, its validation too, is then on disk, and a run
    that resumes there lacks no line and writes none twice. The training waits for the copy in memory, which rank 0
    keeps for the next one, and for the file only where the next one is due, or the training ends.

    Args:
        every_minutes: besides, when so long nothing was saved (`athanor.callbacks.preemption` has the ranks agree).
        best: besides, and beyond the end of the run, keeps so many of the lowest `validation/loss`.
        sharded: a folder into which each process writes its own share, where the strategy has shares; default from
            `SHARDED_FROM` trained parameters.
    """

    def __init__(
        self,
        directory: Path,
        every_n_steps: int | None,
        keep: int = 2,
        every_minutes: float | None = None,
        best: int = 0,
        sharded: bool | None = None,
    ):
        if keep < 1 or best < 0 or any(every is not None and every <= 0 for every in (every_n_steps, every_minutes)):
            raise UserError(
                "checkpoint.every_n_steps and checkpoint.keep must be at least 1, checkpoint.every_minutes positive, "
                "and checkpoint.best at least 0."
            )
        if every_n_steps is None and every_minutes is None:
            raise UserError("Without checkpoints nothing survives: set checkpoint.every_n_steps or .every_minutes.")
        self.directory, self.keep, self.best = directory, keep, best
        self.every_n_steps, self.every_minutes = every_n_steps, every_minutes
        self.sharded, self.sharing, self.group = sharded, False, cast(Any, None)
        self.is_first = True  # of the processes
        self.saved_at, self.saved_when = 0, 0.0
        self.measured: tuple[int, float] | None = None  # step and loss of the last validation
        self.losses: dict[int, float] = {}  # of steps that were saved
        self.memory: Any = None
        self.writer = ThreadPoolExecutor(1, "checkpoints")
        self.writing: Future[None] | None = None
        self.failure: UserError | None = None
        self.blocked: list[float] = []  # seconds that the training stood still for each

    # --- when -------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved_at, self.saved_when = trainer.global_step, time.monotonic()
        if getattr(trainer.strategy, "shares", False):
            trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
            self.sharing = trained >= SHARDED_FROM if self.sharded is None else self.sharded
            if self.sharing and trainer.world_size > 1:
                self.group = dist.new_group(backend="gloo")  # of its own, beside what the training does

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (loss := trainer.callback_metrics.get("validation/loss")) is not None:
            self.measured = trainer.global_step, float(loss)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        step = trainer.global_step
        if (self.every_n_steps and step % self.every_n_steps == 0) or self.is_best(step):
            self.save_boundary(trainer)

    def overdue(self) -> bool:
        """By this process's own clock, which no change of the time of day disturbs."""
        return self.every_minutes is not None and time.monotonic() - self.saved_when > 60 * self.every_minutes

    def is_best(self, step: int) -> bool:
        if not self.best or self.measured is None or self.measured[0] != step:
            return False
        return len(self.losses) < self.best or self.measured[1] < sorted(self.losses.values())[self.best - 1]

    # --- what -------------------------------------------------------------------------------------------------------

    def save_boundary(self, trainer: Trainer) -> None:
        """Saves where a step begins, unless that is where the training began or was last saved. Collective."""
        if trainer.global_step == self.saved_at:
            return
        progress = trainer.fit_loop.epoch_loop.batch_progress
        for count in (progress.total, progress.current):
            count.ready -= 1  # the batch at hand, which a resumed run will ask for again
        self.save(trainer)
        for count in (progress.total, progress.current):
            count.ready += 1

    def save(self, trainer: Trainer) -> None:
        """Collective: every rank must call it at the same step. What goes wrong with the file is in `failure`."""
        began = time.perf_counter()
        self.saved_at, self.saved_when = trainer.global_step, time.monotonic()
        if self.measured and self.measured[0] == self.saved_at:
            self.losses[self.saved_at] = self.measured[1]
        self.is_first = trainer.is_global_zero
        with cast(Any, trainer.strategy).in_shares(True) if self.sharing else contextlib.nullcontext():
            state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        self.wait()
        if (self.is_first or self.sharing) and self.failure is None:
            self.memory = copied(state, self.memory)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            self.writing = self.writer.submit(self.write, self.memory, self.saved_at, self.best_steps())
        self.blocked.append(time.perf_counter() - began)
        log.info("step %d: the training waited %.1f ms for its checkpoint", self.saved_at, 1e3 * self.blocked[-1])

    def wait(self) -> None:
        """Until what is being written is in its place, or `failure` says why it is not."""
        if self.writing is not None:
            writing, self.writing = self.writing, None
            try:
                writing.result()
            except UserError as error:
                self.failure = error

    def failed(self) -> bool:
        """Whether it is already known that a file could not be written."""
        if self.writing is not None and self.writing.done():
            self.wait()
        return self.failure is not None

    def write(self, state: dict[str, Any], step: int, best: list[int]) -> None:
        """Raises UserError where the disk refuses, on each process that writes."""
        began = time.perf_counter()
        path = self.directory / f"step-{step:08d}.ckpt"
        temporary = path.with_name(f"{path.name}{PARTIAL}")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if self.sharing:
                digest = shares.write(state, temporary, self.group)
            else:
                with temporary.open("wb") as file:
                    hashed = Hashed(file)
                    torch.save(state, cast(BinaryIO, hashed))
                    file.flush()
                    os.fsync(file.fileno())
                digest = hashed.sha.hexdigest()
            if digest is None:
                return  # rank 0 does the rest
            for logged in self.directory.parent.glob("*.jsonl"):
                synchronize(logged)
            if temporary.is_dir():
                synchronize(temporary)
            write_atomic(path.with_suffix(".sha256"), digest)
            if temporary.is_dir() or path.is_dir():
                remove(path)  # a damaged one, which was passed over
            temporary.replace(path)
            synchronize(self.directory)  # the names, before an older one goes: a power cut must not take both
            self.prune(path, best)
            log.info("step %d: its checkpoint was written in %.1f ms", step, 1e3 * (time.perf_counter() - began))
        except OSError as error:
            if self.is_first:
                with contextlib.suppress(OSError):
                    remove(temporary)
            found = newest_step(self.directory)
            raise UserError(
                f"The checkpoint of step {step} cannot be written to {self.directory}: {error.strerror or error}. Mend "
                f"that, and the same command goes on from {f'step {found}' if found else 'the beginning'}."
            ) from error

    def prune(self, path: Path, best: list[int]) -> None:
        """Leaves the last ones up to `path`, and the best; a later one is damaged, for it was passed over."""
        found = sorted(self.directory.glob("step-*.ckpt"))
        kept = {other for other in found if other <= path}
        kept = {*sorted(kept)[-self.keep :], *(other for other in kept if step_of(other) in best)}
        for other in set(found) - kept:
            remove(other)
            other.with_suffix(".sha256").unlink(missing_ok=True)

    def best_steps(self) -> list[int]:
        return sorted(self.losses, key=lambda step: (self.losses[step], step))[: self.best]

    # --- the end ----------------------------------------------------------------------------------------------------

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.wait()
        if self.failure is not None:  # no longer needed
            log.warning("%s", self.failure)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        try:
            self.wait()
        except RuntimeError as error:  # another process has gone
            log.warning("the last checkpoint was not finished: %s", error)

    def discard(self) -> None:
        """Of a run that is finished: all but the best."""
        if not (best := self.best_steps()):
            shutil.rmtree(self.directory, ignore_errors=True)
        for path in self.directory.glob("step-*.*"):
            if step_of(path) not in best:
                remove(path)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": {str(step): loss for step, loss in self.losses.items()}} if self.best else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses = {int(step): loss for step, loss in state_dict.get("losses", {}).items()}


class Hashed:
    """A file that is written and hashed at once."""

    def __init__(self, file: BinaryIO):
        self.file, self.sha = file, hashlib.sha256()

    def write(self, block: Any) -> int:
        self.sha.update(block)
        return self.file.write(block)

    def flush(self) -> None:
        self.file.flush()


def copied(value: Any, into: Any = None) -> Any:
    """A value whose tensors lie in the CPU's memory and in no other's hands: those of `into`, an earlier copy, where
    they fit.
    """
    if isinstance(value, Tensor):
        if not isinstance(into, Tensor) or (into.shape, into.dtype) != (value.shape, value.dtype):
            into = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        return into.copy_(value.detach(), non_blocking=True)
    if isinstance(value, Share):
        return value.of(copied(value.own, into.own if isinstance(into, Share) else None))
    if isinstance(value, dict):
        earlier = into if isinstance(into, dict) else {}
        return {key: copied(entry, earlier.get(key)) for key, entry in value.items()}
    if type(value) in (list, tuple):
        before = into if type(into) is type(value) and len(into) == len(value) else [None] * len(value)
        return type(value)(map(copied, value, before))
    return copy.deepcopy(value)


def synchronize(path: Path) -> None:
    """Has a file, or what the files of a folder are called, written to its disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def step_of(path: Path) -> int:
    """Of a checkpoint by its name."""
    return int(path.name.removeprefix("step-").partition(".")[0])


def newest_step(directory: Path | None) -> int:
    """Of the newest checkpoint, sound or not; 0 if there is none."""
    return max(map(step_of, directory.glob("step-*.ckpt")), default=0) if directory else 0


def newest(directory: Path, contents: bool = True) -> Path | None:
    """The newest checkpoint whose checksum holds; a damaged one is passed over with a warning.

    Args:
        contents: read all of a folder too; else `load` has the processes share that.

    Raises:
        UserError: there are checkpoints and none is sound.
    """
    damaged: list[Path] = []
    for path in sorted(directory.glob("step-*.ckpt"), reverse=True):
        mark = path.with_suffix(".sha256")
        expected = mark.read_text("latin-1") if mark.exists() else ""
        if shares.is_whole(path, expected, contents) if path.is_dir() else sha256(path) == expected:
            for bad in damaged:
                log.warning("%s is damaged; resuming from %s instead", bad, path.name)
            return path
        damaged.append(path)
    if damaged:
        raise UserError(
            f"{damaged[0]} is damaged or cut off and there is no older checkpoint to fall back on; "
            "start again with --force."
        )
    return None


def load(path: Path, lazily: bool = False) -> dict[str, Any]:
    """A checkpoint, file or folder, on the CPU. Collective, where there are several processes.

    Args:
        lazily: with an `athanor.shares.Stored` for each tensor that is in shares.

    Raises:
        shares.DamagedError: a folder is damaged, which `newest` no longer names.
    """
    if path.is_dir():
        shares.verify(path, path.with_suffix(".sha256"))
        return shares.load(path, lazily=lazily)
    return cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True, mmap=True))


class Reader(TorchCheckpointIO):
    """For Lightning's own strategies."""

    def load_checkpoint(self, path: Any, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        return load(Path(path)) if Path(path).is_dir() else super().load_checkpoint(path, *arguments, **keywords)
