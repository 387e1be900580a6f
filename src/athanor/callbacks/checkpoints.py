"""Checkpoints to resume from: written under a temporary name, fsynced, checksummed, renamed; the newest sound one is
used.
"""

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from athanor.errors import UserError
from athanor.runs.files import write_atomic

log = logging.getLogger(__name__)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:  # Python 3.10
    sha = hashlib.sha256()
    while block := file.read(1 << 20):
        sha.update(block)
    return sha.hexdigest()


class Checkpoints(Callback):
    """Saves every `every_n_steps` optimizer steps and keeps the last `keep`.

    A step is saved when the next one begins: all that is logged of it, its validation too, is then on disk, and a run
    that resumes there lacks no line and writes none twice.
    """

    def __init__(self, directory: Path, every_n_steps: int, keep: int = 2):
        if every_n_steps < 1 or keep < 1:
            raise UserError("checkpoint.every_n_steps and checkpoint.keep must be at least 1.")
        self.directory, self.every_n_steps, self.keep = directory, every_n_steps, keep
        self.saved_at = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved_at = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self.save_boundary(trainer)

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
        """Collective: every rank must call it at the same step."""
        self.saved_at = trainer.global_step
        path = self.directory / f"step-{trainer.global_step:08d}.ckpt"
        temporary = path.with_suffix(".tmp")
        trainer.save_checkpoint(temporary, weights_only=False)
        if trainer.is_global_zero:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            write_atomic(path.with_suffix(".sha256"), digest(temporary))
            temporary.replace(path)
            keep_names(self.directory)  # before an older one goes: a power cut must not take both
            found = sorted(self.directory.glob("step-*.ckpt"))
            sound = [other for other in found if other <= path]  # a later one is damaged: it was passed over
            kept = sound[-self.keep :]
            for other in set(found) - set(kept):
                other.unlink()
                other.with_suffix(".sha256").unlink(missing_ok=True)


def keep_names(directory: Path) -> None:
    """Has what the files of a folder are called written to its disk."""
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def newest(directory: Path) -> Path | None:
    """The newest checkpoint whose checksum holds; a damaged one is passed over with a warning.

    Raises:
        UserError: there are checkpoints and none is sound.
    """
    damaged: list[Path] = []
    for path in sorted(directory.glob("step-*.ckpt"), reverse=True):
        expected = path.with_suffix(".sha256")
        if expected.exists() and expected.read_text() == digest(path):
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
