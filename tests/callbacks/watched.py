"""What the tests of this folder train on, and eyes and hands inside a training."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from lightning import Callback

from athanor.algorithms.sft import SFT
from athanor.data.instructions import Conversations
from athanor.data.records import Sequences
from small import decoder, optimizer, steady

VOCABULARY = 29


class Watcher(Callback):
    """The weights after every step, those that are validated, and the tokens of every step."""

    def __init__(self) -> None:
        self.after: dict[int, list[torch.Tensor]] = {}
        self.validated: dict[int, list[torch.Tensor]] = {}
        self.tokens: dict[int, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: Any, algorithm: Any, batch: Any, batch_idx: int) -> None:
        self.tokens[trainer.global_step + 1] = batch.tokens_BT

    def on_train_batch_end(self, trainer: Any, algorithm: Any, *_: Any) -> None:
        self.after[trainer.global_step] = [p.detach().clone() for p in algorithm.model.parameters()]

    def on_validation_epoch_start(self, trainer: Any, algorithm: Any) -> None:
        self.validated[trainer.global_step] = [p.detach().clone() for p in algorithm.model.parameters()]


class Poison(Callback):
    """Multiplies the gradients of the steps that train on certain data: the places of their first samples."""

    def __init__(self, places: Iterable[int], factor: float = 1e4) -> None:
        self.places, self.factor = set(places), factor

    def on_before_optimizer_step(self, trainer: Any, algorithm: Any, optimizer: Any) -> None:
        if trainer.datamodule.plan.place(trainer.global_step) in self.places:
            for parameter in algorithm.model.parameters():
                parameter.grad.mul_(self.factor)


def conversations(seed: int = 1, count: int = 20) -> Conversations:
    """Random ones, some tokens rarer than others: all else can only be learnt by heart."""
    rng = np.random.default_rng(seed)
    lengths, tokens = rng.integers(4, 20, count), np.arange(1, VOCABULARY)
    shares = (1 / tokens) / (1 / tokens).sum()
    rows = [(rng.choice(tokens, n, p=shares).astype(np.int32), np.arange(n) > n // 2) for n in lengths]
    return Conversations(Sequences(rows), 0)


def sft(make: Any = None, dropout: float = 0.1) -> SFT:
    return SFT(decoder(VOCABULARY, dropout=dropout), make or optimizer(0.01, fused=True), steady())


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
