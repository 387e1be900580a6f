"""How processes share the work of one training: what Lightning's own strategies lack, or have on GPUs only.

Whatever is chosen, the same experiment gives the same model, on CPU (gloo) and CUDA (nccl) alike:

- An algorithm is sharded with all its networks, frozen ones and critics too. Each layer (`Block`) is a unit that is
  gathered when it is needed. What lies outside the layers (embeddings, final norms, heads), of all networks, is one
  more, gathered for as long as a training or validation step lasts: algorithms may call any method of a network.
- Mixed precision is autocast over float32 parameters, everywhere.
- Checkpoints hold tensors in the form of an unsharded training, whoever wrote them, whole ones or each process's share
  (`athanor.shares`), and can be read by every strategy and any number of processes.
- What generates text, in as many passes as it takes, works on a copy with whole weights (`whole`).

Sources: ZeRO, Rajbhandari et al. 2020 (arXiv:1910.02054); FSDP, Zhao et al. 2023 (arXiv:2304.11277).
"""

from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies.strategy import Strategy
from torch import nn

from athanor.algorithms.base import Algorithm
from athanor.callbacks.averaging import ExponentialAverage
from athanor.callbacks.checkpoints import Checkpoints
from athanor.callbacks.guard import Guard
from athanor.callbacks.stopping import EarlyStopping
from athanor.config import build
from athanor.errors import UserError
from athanor.optimizers import LAMB, MuonWithAdamW
from athanor.strategies.fsdp import FSDP
from athanor.strategies.fsdp2 import FSDP2
from athanor.strategies.sharded import Sharded, networks, without_data
from athanor.strategies.zero import ZeRO

__all__ = [
    "FSDP",
    "FSDP2",
    "Sharded",
    "ZeRO",
    "check",
    "compiled",
    "make",
    "networks",
    "replica",
    "replicas",
    "without_data",
]

WHOLE = (MuonWithAdamW, torch.optim.Muon, LAMB, torch.optim.Adafactor)
"""Optimizers that reckon with whole matrices, not with each of their numbers."""


def make(config: dict[str, Any]) -> Strategy | str:
    """The strategy of an experiment, for Lightning's Trainer.

    Raises:
        UserError: it does not fit the experiment's cluster or precision, or its package is missing.
    """
    chosen, precision = config["strategy"], config["precision"]
    if chosen == "single":
        count, nodes = config["cluster"]["devices"], config["cluster"]["nodes"]
        if nodes != 1 or (len(count) if isinstance(count, list) else count) not in (1, "1"):
            raise UserError(
                f"strategy=single trains on one device, but the cluster has {nodes} x {count}; choose strategy=ddp or "
                "another that shares the work, or set cluster.devices=1."
            )
        return "auto"
    if isinstance(chosen, str):
        return chosen
    strategy = build(chosen)
    if isinstance(strategy, Sharded):
        known = ("32-true", "bf16-mixed") if isinstance(strategy, ZeRO) else ("32-true", "bf16-mixed", "bf16-true")
        if precision not in known:
            raise UserError(f"precision={precision} is not for {strategy}, which has {', '.join(known)}.")
    return strategy


def check(strategy: Strategy | str, processes: int, callbacks: Sequence[Callback], algorithm: Algorithm) -> None:
    """Raises UserError if the strategy fits the number of processes, the networks, the optimizer or a callback not."""
    if not isinstance(strategy, Sharded):
        return
    strategy.check(processes, algorithm)
    probe = algorithm.make_optimizer([{"params": [nn.Parameter(torch.zeros(2, 2))]}])
    if not strategy.keeps_matrices and isinstance(probe, WHOLE):
        raise UserError(
            f"{strategy} gives an optimizer pieces of parameters, but {type(probe).__name__} needs whole "
            "matrices; choose strategy=ddp or strategy=fsdp2, or optimizer=adamw."
        )
    for callback in callbacks:
        if isinstance(callback, Checkpoints) and callback.sharded and not strategy.shares:
            raise UserError(
                f"{strategy} gathers its checkpoints; leave checkpoint.sharded out, or choose strategy=fsdp2 or "
                "deepspeed_zero3."
            )
        if isinstance(callback, Guard) and callback.on_spike == "skip" and not strategy.skips:
            raise UserError(
                f"{strategy} cannot leave a step out; take callbacks.guard.on_spike=roll_back, or strategy=ddp or fsdp."
            )
        copies = isinstance(callback, ExponentialAverage) or (
            isinstance(callback, EarlyStopping) and callback.keep_best
        )
        if copies and not strategy.cuts_alike:
            raise UserError(
                f"{strategy} cuts the weights in other places than their copy that {type(callback).__name__} keeps, "
                "which so cannot follow them; choose strategy=fsdp2 or deepspeed_zero2, or leave that callback out."
            )
    if isinstance(strategy, ZeRO) and hasattr(probe, "eval"):
        raise UserError(
            f"{strategy} keeps the optimizer's weights to itself, and {type(probe).__name__} could not put its average "
            "in the model's place; choose strategy=ddp or strategy=fsdp2."
        )


def compiled(trainer: Trainer, cluster: dict[str, Any]) -> dict[str, Any]:
    """The cluster, with `compile` as the strategy can have it: sharded layers are compiled only if asked for.

    Raises:
        UserError: compilation is asked for and the strategy has none.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, Sharded) or cluster["compile"] is False:
        return cluster
    if cluster["compile"] is True:
        if strategy.compiles:
            return cluster
        raise UserError(f"cluster.compile=true is not for {strategy}; set cluster.compile=false, or strategy=fsdp2.")
    return {**cluster, "compile": False}


def replicas(trainer: Trainer) -> int:
    """Processes, or groups of them, that train on data of their own."""
    return getattr(trainer.strategy, "replicas", trainer.world_size)


def replica(trainer: Trainer) -> int:
    """The number of this process's among them."""
    return getattr(trainer.strategy, "replica", trainer.global_rank)
