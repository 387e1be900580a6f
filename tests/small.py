"""A small real tokenizer, small models, and a training of an algorithm on the CPU in seconds."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers.logger import Logger

from athanor import strategies
from athanor.algorithms.base import Algorithm
from athanor.callbacks.checkpoints import Reader
from athanor.corpus.tokenizer import Tokenizer, TrainTokenizer
from athanor.data.base import BatchPlan, Data, Samples
from athanor.models.transformer import Transformer
from athanor.schedules import constant

REPOSITORY = Path(__file__).resolve().parents[1]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
DATA_ROOT = Path(os.environ.get("ATHANOR_DATA_ROOT") or REPOSITORY.parent / "shared" / "data")

TEXTS = [
    "The furnace holds a steady heat for as long as the work takes.",
    "Which is larger, 12 or 7? Copy: a b c d. Reverse: h e a t. 3 + 4 = 7, and 10 - 6 = 4.",
    "A user asks, the assistant answers, and the system says how.",
    "炉火要稳，工夫要长。十二和七哪个大？照抄：甲乙丙丁。三加四等于七。",
    "用户提问，助手回答，系统说明怎样回答。",
    "Human: hello\n\nAssistant: hello, what shall we melt today?\tLead, perhaps.",
]


def train_tokenizer(folder: Path, vocabulary_size: int = 420) -> str:
    """Path of a real SentencePiece model trained on `TEXTS`."""
    job = TrainTokenizer(documents="unused", vocabulary_size=vocabulary_size, character_coverage=1.0)
    path = folder / "tokenizer.model"
    path.write_bytes(job.train(line for text in TEXTS * 20 for line in text.split("\n") if line))
    assert Tokenizer(path).vocabulary_size == vocabulary_size
    return str(path)


def decoder(vocabulary_size: int, seed: int = 0, **shape: Any) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(vocabulary_size, **{"width": 32, "layers": 2, "heads": 2, "context": 64, **shape})


class Metrics(Logger):
    """Keeps what an algorithm reports: {name: [(step, value)]}."""

    name, version = "metrics", 0

    def __init__(self) -> None:
        super().__init__()
        self.history: dict[str, list[tuple[int, float]]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.history.setdefault(name, []).append((step or 0, float(value)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def values(self, name: str) -> list[float]:
        return [value for _, value in self.history.get(name, [])]


class Given(Data):
    """A data module over samples that are at hand."""

    def __init__(self, train: Samples, validation: Samples | None = None, validation_batch_size: int = 32):
        super(Data, self).__init__()
        self.samples = {"train": train, "validation": validation if validation is not None else train}
        self.validation_batch_size = validation_batch_size

    def open(self, split: str, context: int) -> Samples:
        return self.samples[split]


class StopAt(Callback):
    """Saves a checkpoint after a step and ends the training there, as if it had been interrupted."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def fit(
    algorithm: Algorithm,
    data: Data,
    *,
    steps: int,
    batch: int,
    micro: int | None = None,
    seed: int = 1,
    validate_every: int | None = None,
    clip: float | None = 1.0,
    log_every: int = 1,
    world: int = 1,
    strategy: Any = None,
    precision: str = "32-true",
    stop: int | None = None,
    save: Path | None = None,
    resume: Path | None = None,
    callbacks: Sequence[Callback] = (),
    detours: tuple[tuple[int, int], ...] = (),
) -> Metrics:
    """Trains with the trainer's own settings (`athanor.train.make_trainer`), without a run's files.

    Args:
        world: processes; unless they are there already, the script is started anew for each by Lightning.
        strategy: Lightning's; default DistributedDataParallel where there are several processes.
        stop: stop after this step and save a checkpoint to `save`.
        resume: a checkpoint to go on from.
    """
    metrics = Metrics()
    trainer = Trainer(
        accelerator="cpu", devices=world, strategy=strategy or ("ddp" if world > 1 else "auto"), max_steps=steps,
        max_epochs=-1, precision=precision, gradient_clip_val=clip, logger=metrics, check_val_every_n_epoch=None,
        num_sanity_val_steps=0, use_distributed_sampler=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[*callbacks, *([StopAt(stop, save)] if stop and save else [])],
        plugins=[Reader()],
    )  # fmt: skip
    replicas, replica = strategies.replicas(trainer), strategies.replica(trainer)
    plan = BatchPlan(seed, steps, batch, replicas, replica, micro, detours=detours)
    trainer.accumulate_grad_batches = plan.accumulation
    trainer.val_check_interval = (validate_every or steps) * plan.accumulation
    data.attach(plan, algorithm.model.context)  # type: ignore[arg-type]
    algorithm.seed, algorithm.log_every = seed, log_every
    strategies.check(trainer.strategy, trainer.world_size, trainer.callbacks, algorithm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few batches, and of frozen modules in eval mode
        trainer.fit(algorithm, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    assert trainer.global_step == (stop or steps) or any(getattr(callback, "stopped", False) for callback in callbacks)
    return metrics


def optimizer(learning_rate: float, kind: type = torch.optim.AdamW, **settings: Any) -> Callable:
    return partial(kind, lr=learning_rate, **settings)


def steady() -> Callable:
    return partial(constant)


def batches(plan: BatchPlan, stream: Any) -> Iterator[Any]:
    """Every micro-batch of this rank, in order."""
    return (stream[m] for m in range(plan.max_steps * plan.accumulation))


def spread(seed: int, plan: dict[str, Any], worlds: list[tuple[int, int | None]]) -> list[list[BatchPlan]]:
    """For each (world size, micro-batch size) the plans of all ranks."""
    return [
        [BatchPlan(seed=seed, **plan, world_size=world, rank=rank, micro_batch_size=micro) for rank in range(world)]
        for world, micro in worlds
    ]


def valid(tokens: torch.Tensor, labels: torch.Tensor) -> list[tuple[list[int], list[int]]]:
    """Rows without the padding on their right."""
    rows = []
    for t, label in zip(tokens.tolist(), labels.tolist()):
        end = int(np.max(np.flatnonzero(np.array(label) != -100), initial=-1)) + 1
        rows.append((t[:end], label[:end]))
    return rows
