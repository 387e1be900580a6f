"""Instruction data: conversations through the chat template, loss on the assistant's tokens only."""

import numpy as np
import torch

from athanor.batches import IGNORED, SupervisedBatch
from athanor.data.base import Invalid, RecordData, Split, pad_right
from athanor.data.chat import render
from athanor.data.formats import to_messages
from athanor.data.records import Sequences, TooLong, fit_lengths, openings


class Conversations:
    def __init__(self, sequences: Sequences, pad_id: int):
        self.sequences, self.pad_id = sequences, pad_id

    def __len__(self) -> int:
        return len(self.sequences)

    def weights(self, indices: np.ndarray) -> int:
        return int(self.sequences.labels[indices].sum())

    def batch(self, indices: np.ndarray, places: np.ndarray, normalizer: int) -> SupervisedBatch:
        tokens, labels = zip(*(self.sequences.shifted(i) for i in indices))
        return SupervisedBatch(pad_right(tokens, self.pad_id), pad_right(labels, IGNORED), torch.tensor(normalizer))

    def prompts(self, count: int) -> list[list[int]]:
        return openings(self.sequences, count)


class InstructionData(RecordData):
    """Conversations from JSON Lines files in any format of `athanor.data.formats`.

    Args:
        files: training files; without `validation_files` a part of them is held out by content hash.
        validation_fraction: of the conversations of `files`, when there are no `validation_files`.
        too_long: what to do with a conversation longer than `max_length` tokens.
        max_length: default the model's context, which it cannot exceed.
    """

    def __init__(
        self,
        files: list[str],
        tokenizer: str,
        validation_files: list[str] | None = None,
        validation_fraction: float = 0.02,
        too_long: TooLong = "error",
        max_length: int | None = None,
        invalid: Invalid = "error",
        validation_batch_size: int = 64,
        validation_samples: int | None = None,
    ):
        super().__init__(tokenizer, validation_batch_size, validation_samples)
        self.files, self.validation_files, self.validation_fraction = files, validation_files, validation_fraction
        self.too_long: TooLong = too_long
        self.max_length = max_length
        self.invalid = invalid

    def open(self, split: Split, context: int) -> Conversations:
        context = min(context, self.max_length or context)
        wheres, conversations = self.records(split, to_messages, lambda messages: messages[:-1])
        rendered = render(conversations, self.tokenizer)
        keep = fit_lengths([len(ids) - 1 for ids, _ in rendered], wheres, context, self.too_long)
        cut = [(ids[: context + 1], taught[: context + 1]) for ids, taught in (rendered[i] for i in keep)]
        return Conversations(Sequences([c for c in cut if c[1][1:].any()]), self.tokenizer.pad_id)
