"""Rows of pretraining with a part of their tokens hidden: for an encoder to fill in, for a decoder to say.

What is hidden is a pure function of the seed and of the sample's place in the run's order (of the row alone in
validation, so that all runs are held to the same). How much is hidden is a function of the row.

Sources: masked language modelling, Devlin et al. 2019 (arXiv:1810.04805, section 3.1); masking of spans, Joshi et al.
2020 (arXiv:1907.10529, section 3.1, with spans and gaps drawn as by T5); span corruption, Raffel et al. 2020
(arXiv:1910.10683, section 3.1.4). Marks (beginning, end, roles) are never hidden, and no span crosses documents.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from athanor.batches import IGNORED, PackedBatch, SourceBatch
from athanor.corpus.tokenizer import Tokenizer
from athanor.data.answers import Pair, source_batch
from athanor.data.base import Split
from athanor.data.chat import END
from athanor.data.pretraining import PackedRows, PretrainingData
from athanor.errors import UserError


class Marks(NamedTuple):
    """Ids that are not text."""

    mask: int  # <unk>, which no text encodes to
    end: int
    text: np.ndarray  # bool [vocabulary]: may be hidden
    ordinary: np.ndarray  # the ids that may, from which random replacements are drawn

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Marks":
        text = np.ones(tokenizer.vocabulary_size, bool)
        text[[tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, *tokenizer.special.values()]] = 0
        return cls(tokenizer.unk_id, tokenizer.special[END], text, np.flatnonzero(text))


def rounded(number: float) -> int:
    """To the nearest integer, halves up."""
    return int(number + 0.5)


def span_counts(tokens: int, rate: float, mean: float) -> tuple[int, int]:
    """(hidden tokens, spans they form) of a document of so many tokens; both 0 where there are fewer than two."""
    if tokens < 2:
        return 0, 0
    hidden = min(max(1, rounded(tokens * rate)), tokens - 1)
    return hidden, min(max(1, rounded(hidden / mean)), tokens - hidden)


def spans_of(tokens: int, rate: float, mean: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """(start, stop) of the spans to hide, in order, no two of which touch; a draw among all with these counts."""
    hidden, spans = span_counts(tokens, rate, mean)
    lengths = parted(hidden, spans, rng)
    gaps = parted(tokens - hidden, spans, rng)  # one before each span; what follows the last one is cut off the first
    found, place = [], int(rng.integers(gaps[0] + 1)) if spans else 0
    for i, length in enumerate(lengths):
        found.append((place, place + length))
        place += length + (gaps[i + 1] if i + 1 < spans else 0)
    return found


def parted(total: int, parts: int, rng: np.random.Generator) -> list[int]:
    """`total` as a sum of so many positive numbers, all such sums alike likely."""
    if parts == 0:
        return []
    cuts = np.sort(rng.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate(([0], cuts, [total]))).tolist()


def hide(
    tokens_T: np.ndarray, groups: Sequence[np.ndarray], marks: Marks, rng: np.random.Generator, masked: float,
    random: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(tokens, labels): each group of places becomes the mask, random tokens, or stays; its labels are the tokens."""
    tokens_T, labels_T = tokens_T.copy(), np.full(len(tokens_T), IGNORED, np.int64)
    for group in groups:
        labels_T[group] = tokens_T[group]
        fate = rng.random()
        if fate < masked:
            tokens_T[group] = marks.mask
        elif fate < masked + random:
            tokens_T[group] = rng.choice(marks.ordinary, len(group))
    return tokens_T, labels_T


def single_tokens(text: np.ndarray, rate: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Of the places of `text`, so many as the rate says."""
    return list(np.sort(rng.permutation(text)[: chosen_of(len(text), rate)])[:, None])


def chosen_of(tokens: int, rate: float) -> int:
    return min(tokens, max(1, rounded(tokens * rate)))


class HiddenRows:
    """Rows of which a part is hidden; a subclass says what becomes of a row."""

    def __init__(self, rows: PackedRows, marks: Marks, seed: int | None):
        self.rows, self.marks, self.seed = rows, marks, seed

    def __len__(self) -> int:
        return len(self.rows)

    def documents(self, index: int) -> list[np.ndarray]:
        """The tokens of each document's part of a row."""
        length, shards = self.rows.length, self.rows.shards
        start, stop = index * length, (index + 1) * length
        first, last = np.searchsorted(shards.offsets, (start, stop), "right")
        cuts = [start, *(int(offset) for offset in shards.offsets[first:last] if start < offset < stop), stop]
        return [shards.tokens[a:b].astype(np.int64) for a, b in pairwise(cuts)]

    def text(self, tokens: np.ndarray) -> np.ndarray:
        """Where the tokens that may be hidden stand."""
        return np.flatnonzero(self.marks.text[tokens])

    def rng(self, index: int, place: int) -> np.random.Generator:
        return np.random.default_rng((0, index) if self.seed is None else (self.seed % 2**64, 1, place))


class MaskedRows(HiddenRows):
    """See `MaskedData`."""

    def __init__(
        self, rows: PackedRows, marks: Marks, seed: int | None, rate: float, masked: float, random: float,
        span: float | None,
    ):  # fmt: skip
        super().__init__(rows, marks, seed)
        self.rate, self.masked, self.random, self.span = rate, masked, random, span

    def weights(self, indices: np.ndarray) -> int:
        if self.span is None:
            tokens = self.rows.shards.tokens[indices[:, None] * self.rows.length + np.arange(self.rows.length)]
            return sum(chosen_of(count, self.rate) for count in self.marks.text[tokens].sum(1).tolist())
        sizes = (len(self.text(tokens)) for index in indices for tokens in self.documents(index))
        return sum(span_counts(size, self.rate, self.span)[0] for size in sizes)

    def choice(self, tokens: np.ndarray, documents: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """Places to hide, in groups that are treated alike."""
        if self.span is None:
            return single_tokens(self.text(tokens), self.rate, rng)
        groups = []
        for document in np.unique(documents):
            text = np.flatnonzero(self.marks.text[tokens] & (documents == document))
            groups += [text[a:b] for a, b in spans_of(len(text), self.rate, self.span, rng)]
        return groups

    def batch(self, indices: np.ndarray, places: np.ndarray, normalizer: int) -> PackedBatch:
        batch = self.rows.batch(indices, places, normalizer)
        rows = []
        for index, place, tokens, documents in zip(
            indices, places, batch.tokens_BT.numpy(), batch.documents_BT.numpy()
        ):
            rng = self.rng(int(index), int(place))
            groups = self.choice(tokens, documents, rng)
            rows.append(hide(tokens, groups, self.marks, rng, self.masked, self.random))
        tokens_BT, labels_BT = (torch.from_numpy(np.stack(side)) for side in zip(*rows))
        return batch._replace(tokens_BT=tokens_BT, labels_BT=labels_BT)

    def prompts(self, count: int) -> list[list[int]]:
        return []


class CorruptedRows(HiddenRows):
    """See `SpanCorruptionData`. `first_sentinel`: id of the first span's."""

    def __init__(
        self, rows: PackedRows, marks: Marks, seed: int | None, rate: float, span: float, first_sentinel: int
    ):  # fmt: skip
        super().__init__(rows, marks, seed)
        self.rate, self.span, self.first_sentinel = rate, span, first_sentinel

    def weights(self, indices: np.ndarray) -> int:
        counts = [
            span_counts(len(self.text(tokens)), self.rate, self.span)
            for index in indices
            for tokens in self.documents(index)
        ]
        return sum(hidden + spans + 1 for hidden, spans in counts if spans)

    def corrupted(self, index: int, place: int) -> list[Pair]:
        """(source, target) of each document of a row that has something to hide."""
        rng, pairs = self.rng(index, place), []
        for tokens in self.documents(index):
            text = self.text(tokens)
            source, target, done = [], [], 0
            for number, (a, b) in enumerate(spans_of(len(text), self.rate, self.span, rng)):
                sentinel = [self.first_sentinel + number]
                start, stop = text[a], text[b - 1] + 1
                source += [tokens[done:start], sentinel]
                target += [sentinel, tokens[start:stop]]
                done = stop
            if target:
                pairs.append((np.concatenate([*source, tokens[done:]]), np.concatenate([*target, [self.marks.end]])))
        return pairs

    def batch(self, indices: np.ndarray, places: np.ndarray, normalizer: int) -> SourceBatch:
        return source_batch([self.corrupted(int(i), int(p)) for i, p in zip(indices, places)], normalizer)

    def prompts(self, count: int) -> list[list[int]]:
        indices = np.linspace(0, len(self) - 1, num=min(count, len(self)), dtype=np.int64)
        return [pairs[0][0].tolist() for i in indices if (pairs := self.corrupted(int(i), int(i)))]


def check_rate(rate: float) -> None:
    if not 0 < rate < 1:
        raise UserError(f"data.rate={rate} must lie between 0 and 1; BERT and T5 hide 0.15.")


def check_span(span: float | None) -> None:
    if span is not None and span < 1:
        raise UserError(f"data.span={span} must be at least 1 token.")


class MaskedData(PretrainingData):
    """Rows for an encoder: of the tokens chosen, most are replaced by the mask (the tokenizer's <unk>, which no text
    encodes to), some by random ones, the rest stay; the label is the token itself.

    Args:
        rate: share of a row's tokens that are chosen.
        masked, random: shares of the chosen that become the mask, and a random token.
        span: tokens of a chosen span, on average, its fate one for all of them; null chooses each token by itself.
    """

    def __init__(
        self,
        shards: str,
        tokenizer: str,
        sequence_length: int,
        rate: float = 0.15,
        masked: float = 0.8,
        random: float = 0.1,
        span: float | None = None,
        validation_batch_size: int = 32,
        validation_samples: int | None = None,
    ):
        super().__init__(shards, tokenizer, sequence_length, validation_batch_size, validation_samples)
        check_rate(rate)
        check_span(span)
        if min(masked, random) < 0 or masked + random > 1:
            raise UserError(
                f"data.masked={masked} and data.random={random} are shares, and must not exceed 1 together."
            )
        self.rate, self.masked, self.random, self.span = rate, masked, random, span

    def open(self, split: Split, context: int) -> MaskedRows:  # type: ignore[override]
        seed = self.plan.seed if split == "train" else None
        rows, marks = super().open(split, context), Marks.of(self.tokenizer)
        return MaskedRows(rows, marks, seed, self.rate, self.masked, self.random, self.span)


class SpanCorruptionData(PretrainingData):
    """Rows for an encoder-decoder: spans of the source are replaced by sentinels, and the target is each sentinel with
    what it stands for, then <|end|>. Sentinels are ids after the tokenizer's last; the model's vocabulary must hold
    them. They begin anew with each document.

    Args:
        rate: share of a document's tokens that are hidden.
        span: tokens of a span, on average.
        sentinels: how many there are, the most spans of one document.
    """

    def __init__(
        self,
        shards: str,
        tokenizer: str,
        sequence_length: int,
        rate: float = 0.15,
        span: float = 3.0,
        sentinels: int = 64,
        validation_batch_size: int = 32,
        validation_samples: int | None = None,
    ):
        super().__init__(shards, tokenizer, sequence_length, validation_batch_size, validation_samples)
        check_rate(rate)
        check_span(span)
        needed = span_counts(sequence_length, rate, span)[1]
        if sentinels < needed:
            raise UserError(
                f"data.sentinels={sentinels} are too few: a row of {sequence_length} tokens has up to {needed} spans; "
                "raise it, or data.span."
            )
        self.rate, self.span, self.sentinels = rate, span, sentinels

    @property
    def vocabulary_size(self) -> int:
        return self.tokenizer.vocabulary_size + self.sentinels

    @property
    def typical_lengths(self) -> tuple[int, int]:
        """Of a source and a target."""
        hidden, spans = span_counts(self.sequence_length, self.rate, self.span)
        return self.sequence_length - hidden + spans, hidden + spans + 1

    def open(self, split: Split, context: int) -> CorruptedRows:  # type: ignore[override]
        seed = self.plan.seed if split == "train" else None
        rows, marks = super().open(split, context), Marks.of(self.tokenizer)
        return CorruptedRows(rows, marks, seed, self.rate, self.span, self.tokenizer.vocabulary_size)
