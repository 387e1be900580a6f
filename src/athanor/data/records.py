"""Encoded sequences in flat arrays, and what becomes of those that are too long."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from athanor.batches import IGNORED
from athanor.errors import UserError

TooLong = Literal["error", "drop", "truncate"]


class Sequences:
    """Token sequences of unequal length with a label mask, in two flat arrays (no Python object a sequence)."""

    def __init__(self, rendered: Sequence[tuple[np.ndarray, np.ndarray]]):
        lengths = np.fromiter((len(ids) for ids, _ in rendered), np.int64, len(rendered))
        self.offsets = np.concatenate(([0], np.cumsum(lengths)))
        self.ids = np.concatenate([ids for ids, _ in rendered]) if rendered else np.zeros(0, np.int32)
        self.taught = np.concatenate([taught for _, taught in rendered]) if rendered else np.zeros(0, bool)
        # labels are the taught tokens that have a token before them
        cumulative = np.concatenate(([0], np.cumsum(self.taught)))
        first = self.taught[self.offsets[:-1]] if rendered else 0
        self.labels = cumulative[self.offsets[1:]] - cumulative[self.offsets[:-1]] - first

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def shifted(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, labels) of sequence i, both [T - 1]: labels[t] is token t + 1 if taught, else IGNORED."""
        here = slice(self.offsets[i], self.offsets[i + 1])
        ids, taught = self.ids[here], self.taught[here]
        return ids[:-1], np.where(taught[1:], ids[1:], IGNORED)

    def whole(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """As `shifted`, but with the last token kept; its label is IGNORED. Both [T]."""
        _, labels = self.shifted(i)
        return self.ids[self.offsets[i] : self.offsets[i + 1]], np.append(labels, IGNORED)


def fit_lengths(lengths: Sequence[int], wheres: Sequence[str], context: int, policy: TooLong) -> list[int]:
    """Indices of the sequences to keep.

    Raises:
        UserError: policy "error" and a sequence is longer than the context.
    """
    long = [i for i, length in enumerate(lengths) if length > context]
    if long and policy == "error":
        worst = max(long, key=lambda i: lengths[i])
        raise UserError(
            f"{len(long)} of {len(lengths)} sequences are longer than the model's context of {context} tokens (the "
            f"longest, {wheres[worst]}, has {lengths[worst]}); set data.too_long=drop, or raise model.context."
        )
    if policy == "drop":
        return [i for i, length in enumerate(lengths) if length <= context]
    return list(range(len(lengths)))


def openings(sequences: Sequences, count: int) -> list[list[int]]:
    """The first `count` sequences up to their first taught token."""
    prompts = []
    for i in range(min(count, len(sequences))):
        here = slice(sequences.offsets[i], sequences.offsets[i + 1])
        prompts.append(sequences.ids[here][: int(sequences.taught[here].argmax())].tolist())
    return prompts
