"""Pretraining rows: the corpus as one stream of tokens, cut into rows of `sequence_length`.

Documents are packed without padding; attention stays within a document, positions restart with it, and the last token
of a document has no label (the next document's first token does not follow from it).
"""

import numpy as np
import torch

from athanor.batches import IGNORED, PackedBatch
from athanor.corpus.shards import Shards
from athanor.data.base import Data, Split
from athanor.errors import UserError


class PackedRows:
    """Row i holds tokens [i L, i L + L) and as labels the tokens one further on.

    Args:
        limit: so many rows at most, evenly spread over the corpus, whose sources lie one after another.
    """

    def __init__(self, shards: Shards, length: int, limit: int | None = None):
        self.shards, self.length = shards, length
        rows = (len(shards.tokens) - 1) // length
        spread = limit is not None and limit < rows
        self.picked = np.linspace(0, rows - 1, num=limit or 0).astype(np.int64) if spread else None
        self.count = rows if self.picked is None else len(self.picked)

    def __len__(self) -> int:
        return self.count

    def starts(self, indices: np.ndarray) -> np.ndarray:
        return (indices if self.picked is None else self.picked[indices]) * self.length

    def weights(self, indices: np.ndarray) -> int:
        starts = self.starts(indices)
        # a label is lost where the next token opens a document: offsets in (start, start + length]
        opened = np.searchsorted(self.shards.offsets, starts + self.length, "right") - np.searchsorted(
            self.shards.offsets, starts, "right"
        )
        return int(len(indices) * self.length - opened.sum())

    def batch(self, indices: np.ndarray, places: np.ndarray, normalizer: int) -> PackedBatch:
        where = self.starts(indices)[:, None] + np.arange(self.length + 1)
        tokens = self.shards.tokens[where].astype(np.int64)
        documents = self.documents(where)
        starts = np.maximum(self.shards.offsets[documents], where[:, :1])
        same = documents[:, 1:] == documents[:, :-1]
        return PackedBatch(
            tokens_BT=torch.from_numpy(tokens[:, :-1].copy()),
            labels_BT=torch.from_numpy(np.where(same, tokens[:, 1:], IGNORED)),
            documents_BT=torch.from_numpy(documents[:, :-1] - documents[:, :1]),
            positions_BT=torch.from_numpy((where - starts)[:, :-1].copy()),
            normalizer=torch.tensor(normalizer),
        )

    def documents(self, where: np.ndarray) -> np.ndarray:
        """The document of each token of rows, [B, L]: looked up for the first of a row, counted on for the others."""
        offsets = self.shards.offsets
        first, last = (np.searchsorted(offsets, where[:, at], "right") - 1 for at in (0, -1))
        counts = last - first
        rows = np.repeat(np.arange(len(where)), counts)
        opened = offsets[np.arange(len(rows)) + np.repeat(first + 1 - np.cumsum(counts) + counts, counts)]
        further = np.zeros(where.shape, np.int64)
        np.add.at(further, (rows, opened - where[rows, 0]), 1)
        return first[:, None] + np.cumsum(further, axis=1)

    def prompts(self, count: int) -> list[list[int]]:
        """The openings of documents, spread over the split."""
        documents = np.linspace(0, len(self.shards.offsets) - 2, num=count, dtype=np.int64)
        offsets = self.shards.offsets
        return [self.shards.tokens[offsets[d] : min(offsets[d] + 16, offsets[d + 1] - 1)].tolist() for d in documents]


class PretrainingData(Data):
    """Token shards as packed rows. (Version 2 validates on rows from all of the split, not on its first ones.)

    Args:
        shards: directory of a shards run.
        sequence_length: tokens of a row.
    """

    version = 2

    def __init__(
        self,
        shards: str,
        tokenizer: str,
        sequence_length: int,
        validation_batch_size: int = 32,
        validation_samples: int | None = None,
    ):
        super().__init__(tokenizer, validation_batch_size, validation_samples)
        self.shards, self.sequence_length = shards, sequence_length

    @property
    def typical_length(self) -> int:
        return self.sequence_length

    @property
    def sample_tokens(self) -> int:
        return self.sequence_length

    def open(self, split: Split, context: int) -> PackedRows:
        shards = Shards(self.shards, split)
        if len(shards.tokens) <= self.sequence_length and (split == "train" or len(shards)):
            kind = "training" if split == "train" else "validation"
            raise UserError(
                f"The corpus has {len(shards.tokens)} {kind} tokens, fewer than one row of {self.sequence_length}; add "
                "documents or lower data.sequence_length."
            )
        return PackedRows(shards, self.sequence_length, self.validation_samples if split == "validation" else None)
