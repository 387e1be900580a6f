"""From an indexed set of samples to the micro-batches of one rank, each a pure function of its position.

A data module states what a sample is and how samples make a batch. Everything about position (seed, epoch,
accumulation, ranks, resuming) lives here, once: micro-batch m of a rank belongs to optimizer step m // accumulation,
and resuming is starting the sampler at a later m.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from athanor import signals
from athanor.data.formats import read_records
from athanor.data.order import order
from athanor.data.plan import BatchPlan
from athanor.errors import UserError
from athanor.split import held_out

Split = Literal["train", "validation"]
Invalid = Literal["error", "drop"]
T = TypeVar("T")
log = logging.getLogger(__name__)


class Samples(Protocol):
    """What a data module provides for each split."""

    def __len__(self) -> int: ...

    def weights(self, indices: np.ndarray) -> int:
        """Terms of the loss (labels, pairs, prompts) that these samples hold together."""
        ...

    def batch(self, indices: np.ndarray, places: np.ndarray, normalizer: int) -> Any:
        """The NamedTuple of `athanor.batches`."""
        ...

    def prompts(self, count: int) -> list[list[int]]:
        """Token ids of `count` prompts to show samples for."""
        ...


class Stream(Dataset):
    """Micro-batch m of this rank."""

    def __init__(self, samples: Samples, plan: BatchPlan):
        self.samples, self.plan = samples, plan

    def __getitem__(self, m: int) -> Any:
        plan = self.plan
        step, part = divmod(m, plan.accumulation)
        first = plan.place(step)
        indices = order(plan.seed, len(self.samples), first, first + plan.global_batch_size)
        begin = plan.rank * plan.per_rank + part * plan.micro
        mine = slice(begin, begin + plan.micro)
        places = np.arange(first, first + plan.global_batch_size)[mine]
        return self.samples.batch(indices[mine], places, self.samples.weights(indices))


class Once(Dataset):
    """Every sample once, in order, in batches of `size` or a little less; rank r takes every world_size-th batch. For
    validation.

    All ranks have equally many batches, none of them empty (a forward pass may be collective); where there are too few
    samples for that, batches of a little more than `size`.
    """

    def __init__(self, samples: Samples, plan: BatchPlan, size: int):
        count, world = len(samples), plan.world_size
        if 0 < count < world:
            raise UserError(
                f"The validation split holds {count} samples, fewer than the {world} devices; hold out more, or use "
                "fewer devices."
            )
        batches = min(-(-count // (size * world)), count // world) * world
        self.samples = samples
        self.ranges = [(count * i // batches, count * (i + 1) // batches) for i in range(plan.rank, batches, world)]

    def __len__(self) -> int:
        return len(self.ranges)

    def __getitem__(self, i: int) -> Any:
        indices = np.arange(*self.ranges[i])
        return self.samples.batch(indices, indices, self.samples.weights(indices))


class Positions(Sampler[int]):
    """start, start + 1, ... total - 1; its length is `total`, because Lightning counts the batches before `start`
    too.
    """

    def __init__(self, start: int, total: int):
        self.start, self.total = start, total

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))


class Data(LightningDataModule):
    """Base of the data modules. `open(split)` gives the samples; `train.py` sets `plan` before the first loader is
    asked for.

    Args of every data module:
        tokenizer: directory of a tokenizer run.
        validation_batch_size: samples of one validation batch on a device.
        validation_samples: at most so many validation samples, always the same: of shards rows from all of the split,
            of records the first ones.
    """

    plan: BatchPlan

    def __init__(self, tokenizer: str, validation_batch_size: int = 32, validation_samples: int | None = None):
        super().__init__()
        from athanor.corpus.tokenizer import Tokenizer

        if validation_batch_size < 1:
            raise UserError(f"data.validation_batch_size={validation_batch_size} must be at least 1.")
        self.tokenizer_run = tokenizer
        self.tokenizer = Tokenizer(tokenizer)
        self.validation_batch_size, self.validation_samples = validation_batch_size, validation_samples

    def open(self, split: Split, context: int) -> Samples:
        """Samples of "train" or "validation", none longer than the model's `context`."""
        raise NotImplementedError

    def check(self, model: Any) -> None:
        """Holds the samples against the model, before any is read.

        Raises:
            UserError: the model has too few ids, or positions.
        """
        pieces, needed = self.tokenizer.vocabulary_size, self.vocabulary_size
        if needed > model.vocabulary_size:
            raise UserError(
                f"The tokenizer has {pieces} pieces{' and the data sentinels besides' * (needed > pieces)} but the "
                f"model only {model.vocabulary_size}; set model.vocabulary_size={needed}."
            )
        if self.sample_tokens and self.sample_tokens > model.context:
            raise UserError(
                f"data.sequence_length={self.sample_tokens} exceeds the model's context of {model.context}; lower it "
                "or raise model.context."
            )

    def attach(self, plan: BatchPlan, context: int) -> None:
        """Opens both splits, so that every complaint about the data comes before the first step."""
        plan.check()
        self.plan = plan
        self.train, self.validation = self.open("train", context), self.open("validation", context)
        if not len(self.train):
            raise UserError("The training split holds no samples; add data or lower data.validation_fraction.")
        if not len(self.validation):
            self.miss_validation()

    def miss_validation(self) -> None:
        """Called where the validation split is empty."""

    @property
    def vocabulary_size(self) -> int:
        """The model must have so many ids at least."""
        return self.tokenizer.vocabulary_size

    @property
    def typical_length(self) -> int:
        """Tokens of a sequence, for the arithmetic of attention."""
        return 128

    @property
    def sample_tokens(self) -> int | None:
        """Tokens of every sample; None where they differ."""
        return None

    def train_dataloader(self) -> DataLoader:
        accumulation = self.plan.accumulation
        start = self.trainer.global_step * accumulation if self.trainer else 0
        positions = Positions(start, self.plan.max_steps * accumulation)
        return self._loader(self.stream(), sampler=positions)

    def stream(self) -> Dataset:
        return Stream(self.train, self.plan)

    def val_dataloader(self) -> DataLoader | list:
        if not len(self.validation):
            return []
        return self._loader(Once(self.validation, self.plan, self.validation_batch_size))

    def _loader(self, dataset: Dataset, **arguments: Any) -> DataLoader:
        workers = self.plan.num_workers
        return DataLoader(
            dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(), worker_init_fn=signals.ignore, **arguments,
        )  # fmt: skip


class RecordData(Data):
    """Data modules that read files of records: those of `validation_files`, or a held-out part of `files`.

    Args of every one of them:
        files: JSON Lines files, in any format of `athanor.data.formats`.
        validation_fraction: of the prompts of `files`, chosen by the hash of the content, without `validation_files`.
        invalid: what to do with a record that cannot be understood.
    """

    files: list[str]
    validation_files: list[str] | None
    validation_fraction: float
    invalid: Invalid

    def miss_validation(self) -> None:
        if self.validation_files and self.validation_samples != 0:
            raise UserError("The validation split holds no samples; correct data.validation_files.")
        if self.validation_files is None and self.validation_fraction and self.validation_samples != 0:
            log.warning("no record falls in the validation split; raise data.validation_fraction to have one")

    def records(
        self, split: Split, convert: Callable[[dict[str, Any], str], T], prompt: Callable[[T], Any]
    ) -> tuple[list[str], list[T]]:
        """(places in the files, converted records) of a split; all that share their `prompt` fall on the same side, and
        augmented ones on that of their origin, whose prompt they have as `split_key`.

        Raises:
            UserError: a file cannot be read; `convert` refuses a record and `invalid` is "error".
        """
        own = self.validation_files is not None
        places, values, refused = [], [], []
        for where, record in read_records(self.validation_files or [] if own and split == "validation" else self.files):
            try:
                value = convert(record, where)
            except UserError as error:
                if self.invalid == "error":
                    sentence = str(error).rstrip(".")
                    raise UserError(f"{sentence}, or set data.invalid=drop to leave such records out.") from None
                refused.append(str(error))
                continue
            key = str(record.get("split_key") or json.dumps(prompt(value), ensure_ascii=False))
            if own or held_out(key, self.validation_fraction) == (split == "validation"):
                places.append(where)
                values.append(value)
        if refused:
            log.warning(
                "%d of %d records left out; the first: %s", len(refused), len(refused) + len(values), refused[0]
            )
        limit = self.validation_samples if split == "validation" else None
        return places[:limit], values[:limit]


def pad_right(rows: Sequence[np.ndarray], fill: int, length: int | None = None) -> torch.Tensor:
    """int64 [B, T], T the longest row (or `length`)."""
    width = length or max(len(row) for row in rows)
    out = np.full((len(rows), width), fill, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)
