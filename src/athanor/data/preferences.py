"""Preference pairs: one prompt, a chosen and a rejected answer, each rendered through the chat template."""

import numpy as np
import torch

from athanor.batches import IGNORED, PreferenceBatch
from athanor.data.base import Invalid, RecordData, Split, pad_right
from athanor.data.chat import Message, render
from athanor.data.formats import Pair, to_pair
from athanor.data.records import Sequences, TooLong, fit_lengths, openings
from athanor.errors import UserError


class Pairs:
    def __init__(self, chosen: Sequences, rejected: Sequences, pad_id: int):
        self.chosen, self.rejected, self.pad_id = chosen, rejected, pad_id

    def __len__(self) -> int:
        return len(self.chosen)

    def weights(self, indices: np.ndarray) -> int:
        return len(indices)

    def batch(self, indices: np.ndarray, places: np.ndarray, normalizer: int) -> PreferenceBatch:
        sides = [[side.whole(i) for i in indices] for side in (self.chosen, self.rejected)]
        length = max(len(tokens) for side in sides for tokens, _ in side)
        chosen, rejected = (self._padded(side, length) for side in sides)
        return PreferenceBatch(*chosen, *rejected, torch.tensor(normalizer))

    def _padded(self, side: list, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens, labels = zip(*side)
        lengths = torch.tensor([len(row) for row in tokens])
        return pad_right(tokens, self.pad_id, length), pad_right(labels, IGNORED, length), lengths

    def prompts(self, count: int) -> list[list[int]]:
        return openings(self.chosen, count)


class PreferenceData(RecordData):
    """Pairs from JSON Lines files in any preference format of `athanor.data.formats`. Arguments as `InstructionData`;
    `too_long="truncate"` is refused, since a cut answer is another answer."""

    def __init__(
        self,
        files: list[str],
        tokenizer: str,
        validation_files: list[str] | None = None,
        validation_fraction: float = 0.02,
        too_long: TooLong = "error",
        invalid: Invalid = "error",
        validation_batch_size: int = 64,
        validation_samples: int | None = None,
    ):
        super().__init__(tokenizer, validation_batch_size, validation_samples)
        if too_long == "truncate":
            raise UserError("data.too_long=truncate would judge answers by their cut-off half; use error or drop.")
        self.files, self.validation_files, self.validation_fraction = files, validation_files, validation_fraction
        self.too_long: TooLong = too_long
        self.invalid = invalid

    def open(self, split: Split, context: int) -> Pairs:
        wheres, pairs = self.records(split, to_pair, lambda pair: pair.prompt)
        return encode_pairs(pairs, wheres, self.tokenizer, context, self.too_long)


def encode_pairs(pairs: list[Pair], wheres: list[str], tokenizer, context: int, too_long: TooLong) -> Pairs:
    """Renders both sides; only the last answer is labelled, earlier assistant turns belong to the prompt."""
    chosen = render([_answered(p.prompt, p.chosen) for p in pairs], tokenizer)
    rejected = render([_answered(p.prompt, p.rejected) for p in pairs], tokenizer)
    shared = [len(ids) + 1 for ids, _ in render([p.prompt for p in pairs], tokenizer)]
    lengths = [max(len(c[0]), len(r[0])) for c, r in zip(chosen, rejected)]
    keep = fit_lengths(lengths, wheres, context, too_long)

    def last_answer(side: list) -> Sequences:
        return Sequences([(side[i][0], side[i][1] & (np.arange(len(side[i][0])) >= shared[i])) for i in keep])

    return Pairs(last_answer(chosen), last_answer(rejected), tokenizer.pad_id)


def _answered(prompt: list[Message], answer: str) -> list[Message]:
    return [*prompt, Message(role="assistant", content=answer)]
