"""What goes wrong in a rank, and where: `prepare(fault, rank, folder)` before the training begins.

A fault is {"kind", "place", "step", "micro", "rank", "delay", ...}; its place is a hook of the training, an operation
of the thread that writes checkpoints, or the end of the run. It strikes by itself, in the process that it is meant for,
so that it can be made to happen again, and leaves a file `struck` in the folder first.
"""

import ctypes
import hashlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch.distributed.checkpoint import filesystem

from athanor import models, train
from athanor.algorithms.base import Algorithm
from athanor.callbacks import checkpoints
from athanor.callbacks.checkpoints import Checkpoints, Hashed

DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2  # of <linux/capability.h>


class Witness(Callback):
    """Writes down what the rank trains on, micro-batch by micro-batch, and has the fault strike at a hook."""

    def __init__(self, fault: dict[str, Any] | None, rank: int, folder: Path):
        self.fault, self.rank, self.folder = fault or {}, rank, folder
        self.micro = 0

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        self.pass_("starting", 0)

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, micro: int) -> None:
        self.micro = micro
        self.pass_("forward", trainer.global_step + 1)

    def on_after_backward(self, trainer: Trainer, *_: Any) -> None:
        self.pass_("backward", trainer.global_step + 1)

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        self.pass_("update", trainer.global_step + 1)

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, micro: int) -> None:
        digest = hashlib.sha256()
        for tensor in batch:
            digest.update(torch.as_tensor(tensor).cpu().numpy().tobytes())
        line = json.dumps([micro, digest.hexdigest()[:16]])
        with (self.folder / f"seen-{self.rank}.jsonl").open("a") as file:
            file.write(line + "\n")
        self.pass_("end", trainer.global_step)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.pass_("validating", trainer.global_step)

    def pass_(self, place: str, step: int) -> None:
        fault = self.fault
        if fault.get("rank") == self.rank and "place" in fault and (fault["place"], fault["step"]) == (place, step):
            if place in ("forward", "backward") and self.micro % 2 != fault["micro"]:
                return
            self.fault = {}
            strike(fault, self.folder)


def strike(fault: dict[str, Any], folder: Path) -> None:
    (folder / "struck").touch()
    kind, own = fault["kind"], os.getpid()
    deeds: dict[str, Callable[[], Any]] = {
        "kill_rank": lambda: os.kill(own, signal.SIGKILL),
        "kill_all": lambda: os.killpg(os.getpgrp(), signal.SIGKILL),
        "damage": lambda: os.killpg(os.getpgrp(), signal.SIGKILL),
        "kill_saving": lambda: os.killpg(os.getpgrp(), signal.SIGKILL),
        "kill_finishing": lambda: os.killpg(os.getpgrp(), signal.SIGKILL),
        "kill_worker": lambda: os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL),
        "terminate": lambda: os.kill(own, signal.SIGTERM),
        "stop": lambda: os.kill(own, signal.SIGSTOP),
        "memory": lambda: torch.empty(1 << 46, dtype=torch.uint8),
        "clock": lambda: turn_clock(fault["by"]),
    }
    if fault.get("delay"):
        threading.Timer(fault["delay"], deeds[kind]).start()
    else:
        deeds[kind]()


def turn_clock(by: float) -> None:
    """The time of day jumps, for all that asks for it in this process."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + by  # type: ignore[method-assign]
    time.time_ns = lambda: now_ns() + int(by * 1e9)  # type: ignore[method-assign]


def prepare(fault: dict[str, Any] | None, rank: int, folder: Path) -> None:
    make_trainer = train.make_trainer

    def watched(*arguments: Any) -> Trainer:
        trainer = make_trainer(*arguments)
        trainer.callbacks.insert(0, Witness(fault, rank, folder))  # type: ignore[attr-defined]
        return trainer

    train.make_trainer = watched
    if fault is None:
        return
    if fault["kind"] == "nan" and fault["rank"] == rank:
        poison(fault, folder)
    elif fault["kind"] == "kill_saving" and rank == 0:
        break_saving(fault, folder)
    elif fault["kind"] == "kill_finishing" and rank == 0:
        break_end(fault, folder)
    elif fault["kind"] in ("full", "readonly") and rank == 0:
        break_folder(fault, folder)


def poison(fault: dict[str, Any], folder: Path) -> None:
    """One micro-batch of one rank gives a gradient that is no number."""
    loss = Algorithm.loss

    def poisoned(self: Algorithm, *arguments: Any, **sums: Any) -> Any:
        value = loss(self, *arguments, **sums)
        if self.trainer.global_step + 1 == fault["step"] and not (folder / "struck").exists():
            (folder / "struck").touch()
            return value * float("nan")
        return value

    Algorithm.loss = poisoned  # type: ignore[method-assign]


def break_saving(fault: dict[str, Any], folder: Path) -> None:
    """All die at an operation of the writer of one checkpoint: its n-th write, fsync, rename or removal."""
    write, begun = Checkpoints.write, threading.Event()
    left = [fault["number"]]

    def count(operation: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            writing = begun.is_set() and threading.current_thread().name.startswith("checkpoints")
            if writing and operation == fault["operation"]:
                left[0] -= 1
                if left[0] == 0:
                    strike(fault, folder)
            return call(*arguments, **keywords)

        return counted

    def written(self: Checkpoints, state: Any, step: int, best: Any) -> None:
        if step == fault["step"]:
            begun.set()
        write(self, state, step, best)

    Checkpoints.write = written  # type: ignore[method-assign]
    Hashed.write = count("write", Hashed.write)  # type: ignore[method-assign]
    filesystem._write_item = count("write", filesystem._write_item)
    os.fsync = count("fsync", os.fsync)
    Path.replace = count("replace", Path.replace)  # type: ignore[method-assign]
    Path.unlink = count("unlink", Path.unlink)  # type: ignore[method-assign]


def break_end(fault: dict[str, Any], folder: Path) -> None:
    """All die where the model is about to be written, has been, or the checkpoints are about to go."""
    owner: Any = Checkpoints if fault["operation"] == "discard" else models
    name = "discard" if fault["operation"] == "discard" else "save"
    call = getattr(owner, name)

    def ended(*arguments: Any, **keywords: Any) -> None:
        if fault["operation"] == "saved":
            call(*arguments, **keywords)
        strike(fault, folder)

    setattr(owner, name, ended)


def break_folder(fault: dict[str, Any], folder: Path) -> None:
    """The folder of checkpoints takes no more files, or the disk no more bytes, when one is to be written."""
    if fault["kind"] == "readonly" and os.geteuid() == 0:
        give_up_privileges()
    write = checkpoints.Checkpoints.write

    def refused(self: Checkpoints, state: Any, step: int, best: Any) -> None:
        if step == fault["step"]:
            (folder / "struck").touch()
            self.directory.mkdir(exist_ok=True)
            if fault["kind"] == "full":
                (self.directory / f"step-{step:08d}.ckpt.partial").symlink_to("/dev/full")
            else:
                self.directory.chmod(0o555)
        write(self, state, step, best)

    checkpoints.Checkpoints.write = refused  # type: ignore[method-assign]


def give_up_privileges() -> None:
    """Root no longer passes over the permissions of files."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread, which those it starts follow
    data = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    for word in (0, 1):
        data[word] &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())
