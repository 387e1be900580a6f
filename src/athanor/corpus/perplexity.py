"""Texts that a trained model of this project finds too surprising, or not at all: garbage, and boilerplate.

As CCNet does with n-gram models (Wenzek et al. 2020, arXiv:1911.00359), but in bits per byte, which do not depend on
the tokenizer:

    bits per byte = -(sum of log2 p of the tokens, the end of the document among them) / bytes of UTF-8
"""

import math
from functools import cached_property
from typing import Any

from athanor.corpus.documents import Document
from athanor.corpus.steps import Step
from athanor.corpus.tokenizer import FILENAME, Tokenizer
from athanor.errors import UserError

ROWS = 32  # texts that are read at once


class Scorer:
    """Args:
    model: directory of a run that trained a decoder.
    max_tokens: read of a text; None for all.
    """

    def __init__(self, model: str, max_tokens: int | None = 2048):
        if max_tokens is not None and max_tokens < 2:
            raise UserError(f"Scorer: max_tokens {max_tokens} must be at least 2, or null for all.")
        self.run = model
        self.max_tokens = max_tokens

    @cached_property
    def model(self) -> Any:
        from athanor import models

        model = models.load(self.run)
        models.require_form(model, "decoder", f"the model of {self.run}")
        return model

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from athanor.runs.store import open_run

        return Tokenizer(open_run(self.run).path(FILENAME))

    def bits(self, text: str) -> tuple[float, int]:
        """(of the tokens read, the bytes they stand for). A text longer than the context is read in pieces."""
        import torch

        from athanor.functional import token_logps

        ids = [self.tokenizer.bos_id, *self.tokenizer.encode(text), self.tokenizer.eos_id]
        size = len(text.encode("utf-8", "replace"))
        if self.max_tokens is not None and len(ids) > self.max_tokens + 1:
            ids = ids[: self.max_tokens + 1]
            size = len(self.tokenizer.decode(ids[1:]).encode("utf-8", "replace"))
        context = int(self.model.context)
        nats = 0.0
        with torch.inference_mode():
            for start in range(0, len(ids) - 1, context):
                piece = torch.tensor([ids[start : start + context + 1]])
                nats -= float(token_logps(self.model(piece[:, :-1]), piece[:, 1:]).sum())
        return nats / math.log(2), size

    def bits_of_each(self, texts: list[str]) -> list[float]:
        """Of short texts, many at a time: those of `bits`, but of as many tokens as the context holds."""
        import torch

        from athanor.functional import IGNORED, token_logps

        context = int(self.model.context)
        rows = [
            [self.tokenizer.bos_id, *self.tokenizer.encode(text), self.tokenizer.eos_id][: context + 1]
            for text in texts
        ]
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
        found = [0.0] * len(rows)
        for start in range(0, len(order), ROWS):
            numbers = order[start : start + ROWS]
            longest = len(rows[numbers[-1]])
            tokens_BT = torch.tensor([rows[n] + [self.tokenizer.eos_id] * (longest - len(rows[n])) for n in numbers])
            labels_BT = tokens_BT[:, 1:].clone()
            for row, number in enumerate(numbers):
                labels_BT[row, len(rows[number]) - 1 :] = IGNORED
            with torch.inference_mode():
                nats_B = -token_logps(self.model(tokens_BT[:, :-1]), labels_BT).sum(-1)
            for number, nats in zip(numbers, nats_B.tolist()):
                found[number] = nats / math.log(2)
        return found


class Perplexity(Step):
    """Notes bits_per_byte in meta.

    Args:
        model: directory of a run that trained a decoder, on clean text in the languages of the corpus.
        maximum, minimum: bits per byte, both inclusive; None is no limit.
        max_tokens: read of each text.
    """

    name = "perplexity"

    def __init__(
        self,
        model: str,
        maximum: float | None = None,
        minimum: float | None = None,
        max_tokens: int | None = 2048,
        only: list[str] | None = None,
    ):
        super().__init__(only)
        if maximum is not None and minimum is not None and maximum < minimum:
            raise UserError(f"Perplexity: maximum {maximum} is below minimum {minimum}; exchange them.")
        self.scorer = Scorer(model, max_tokens)
        self.maximum = maximum
        self.minimum = minimum

    def apply(self, document: Document) -> Document | str:
        bits, size = self.scorer.bits(document.text)
        if not size:
            return "empty"
        value = round(bits / size, 4)
        if self.maximum is not None and value > self.maximum:
            return f"more than {self.maximum} bits per byte"
        if self.minimum is not None and value < self.minimum:
            return f"less than {self.minimum} bits per byte"
        return document._replace(meta=document.meta | {"bits_per_byte": value})
