"""Pairs for an encoder-decoder: what is read, and what is to be answered."""

from collections.abc import Sequence

import numpy as np
import torch

from athanor.batches import IGNORED, SourceBatch
from athanor.data.base import Split, pad_right
from athanor.data.chat import render
from athanor.data.formats import to_messages
from athanor.data.instructions import InstructionData
from athanor.data.records import Sequences, fit_lengths
from athanor.errors import UserError

Pair = tuple[np.ndarray, np.ndarray]


def source_batch(rows: Sequence[Sequence[Pair]], normalizer: int) -> SourceBatch:
    """Rows of one (source, target) or of several, padded on the right on both sides."""
    empty = [np.zeros(0, np.int64)]  # a row may hold nothing; a batch is at least one token wide
    sides: list[torch.Tensor] = []
    for side, fill in ((0, 0), (1, IGNORED)):
        texts = [np.concatenate([*empty, *(pair[side] for pair in pairs)]) for pairs in rows]
        lengths = [[len(pair[side]) for pair in pairs] for pairs in rows]
        documents = [np.repeat(np.arange(len(row)), np.array(row, np.int64)) for row in lengths]
        positions = [np.concatenate([*empty, *map(np.arange, row)]) for row in lengths]
        width = max(1, *map(len, texts))
        sides += [pad_right(texts, fill, width), pad_right(documents, -1, width), pad_right(positions, 0, width)]
    return SourceBatch._make([*sides, torch.tensor(normalizer)])


class Answers:
    """Each sequence's last run of taught tokens is the target, all before it the source."""

    def __init__(self, sequences: Sequences):
        self.sequences = sequences
        lengths = np.diff(sequences.offsets)
        given = np.flatnonzero(~sequences.taught)
        self.starts = given[np.searchsorted(given, sequences.offsets[1:]) - 1] + 1 - sequences.offsets[:-1]
        self.targets = lengths - self.starts

    def __len__(self) -> int:
        return len(self.sequences)

    def weights(self, indices: np.ndarray) -> int:
        return int(self.targets[indices].sum())

    def pair(self, i: int) -> Pair:
        here = slice(self.sequences.offsets[i], self.sequences.offsets[i + 1])
        ids, start = self.sequences.ids[here], int(self.starts[i])
        return ids[:start], ids[start:]

    def batch(self, indices: np.ndarray, places: np.ndarray, normalizer: int) -> SourceBatch:
        return source_batch([[self.pair(i)] for i in indices], normalizer)

    def prompts(self, count: int) -> list[list[int]]:
        return [self.pair(i)[0].tolist() for i in range(min(count, len(self)))]


class AnswerData(InstructionData):
    """Conversations as prompt and last answer. Arguments as `InstructionData`; `max_length` (default the model's
    context) holds for each side, and `too_long=truncate` is refused, since a cut prompt is another one.
    """

    def open(self, split: Split, context: int) -> Answers:  # type: ignore[override]
        if self.too_long == "truncate":
            raise UserError("data.too_long=truncate would ask with half a prompt; use error or drop.")
        context = min(context, self.max_length or context)
        wheres, conversations = self.records(split, to_messages, lambda messages: messages[:-1])
        rendered = render(conversations, self.tokenizer)
        whole = Answers(Sequences(rendered))
        lengths = np.maximum(whole.starts, whole.targets).tolist()
        return Answers(Sequences([rendered[i] for i in fit_lengths(lengths, wheres, context, self.too_long)]))

    @property
    def typical_lengths(self) -> tuple[int, int]:
        """Of a source and a target."""
        return int(np.mean(self.train.starts)), int(np.mean(self.train.targets))  # type: ignore[attr-defined]
