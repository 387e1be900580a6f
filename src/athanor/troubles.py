"""What a training may die of that is no mistake in the program, in a sentence with a remedy."""

import re
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from lightning import Trainer

from athanor import strategies
from athanor.errors import UserError

NO_MEMORY = re.compile(r"out of memory|can't allocate memory|ALLOC_FAILED", re.I)
LOST_RANK = re.compile(
    r"connection (closed|reset) by peer|connection refused|broken pipe|remote process exited|socket timeout|"
    r"(no longer|not) alive|timed out waiting",
    re.I,
)
LOST_WORKER = re.compile(r"DataLoader worker .*(killed|exited)", re.I)


class LostError(RuntimeError):
    """Another process of the training is gone; the same command goes on."""


def explained(error: Exception, trainer: Trainer, config: dict[str, Any]) -> Exception:
    """The error that is to be raised in its place, or itself."""
    said = str(error)
    step, rank = trainer.global_step + 1, f"rank {trainer.global_rank}"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or NO_MEMORY.search(said):
        tried = re.search(r"allocate:? ([\d.]+ \w+)", said)
        return UserError(
            f"{rank} ran out of memory at step {step}{f' (for {tried[1]} more)' if tried else ''}. "
            f"Try, in this order: {'; '.join(remedies(trainer, config))}. The result stays the same, and the run goes "
            "on from its last checkpoint."
        )
    if any(map(is_of_a_worker, before(error))):
        return LostError(
            f"a data-loading process of {rank} was killed at step {step}, for want of memory, if nobody did it: lower "
            "cluster.num_workers. The same command goes on"
        )
    if isinstance(error, RuntimeError) and trainer.world_size > 1 and LOST_RANK.search(said):
        return LostError(
            f"another rank is gone, as {rank} noticed at step {step}: what it said last tells why. The same command "
            "goes on"
        )
    return error


def before(error: BaseException) -> Iterator[BaseException]:
    """An error, and those while which were dealt with it arose, the last first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__context__


def is_of_a_worker(error: BaseException) -> bool:
    """Whether a data-loading process was killed: torch says so, from within a signal's handler and so in the middle of
    anything; or it came of taking a tensor from that process, which had to be there still.
    """
    if not isinstance(error, OSError | EOFError):
        return isinstance(error, RuntimeError) and LOST_WORKER.search(str(error)) is not None
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == "multiprocessing.resource_sharer" for frame, _ in frames)


def remedies(trainer: Trainer, config: dict[str, Any]) -> list[str]:
    """The knobs that make a training smaller on each device, the cheapest first."""
    plan, cluster = trainer.datamodule.plan, config["cluster"]  # type: ignore[attr-defined]
    found = []
    if plan.micro > 1:
        smaller = next(size for size in range(plan.micro // 2, 0, -1) if plan.per_rank % size == 0)
        found.append(f"cluster.micro_batch_size={smaller} (now {plan.micro})")
    if cluster.get("recompute", "none") != "full":
        found.append("cluster.recompute=full, which makes activations again in the backward pass")
    if not isinstance(trainer.strategy, strategies.Sharded):
        more = "" if trainer.world_size > 1 else " on several devices"
        found.append(f"strategy=fsdp2{more}, which shards weights and optimizer states")
    else:
        found.append("more devices, which makes the shards smaller, or strategy=zero3_offload")
    return found
