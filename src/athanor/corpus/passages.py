"""Removal of passages that were seen before, in whatever document: boilerplate that whole-document methods do not see.

What C4 does with spans of three sentences (Raffel et al. 2020, arXiv:1910.10683, section 2.2) and CCNet with paragraphs
(Wenzek et al. 2020, arXiv:1911.00359). The first occurrence stays, and so does every character around those that go.
"""

import re
from hashlib import blake2b
from typing import Literal

from athanor.corpus.documents import Document
from athanor.corpus.steps import Step
from athanor.corpus.units import units
from athanor.errors import UserError

PARAGRAPH = re.compile(r".*?(?:\n+|\Z)", re.DOTALL)
# To a full stop that ends a word, a Chinese one, or a line; closing quotes and the space after it belong to it.
SENTENCE = re.compile(r""".*?(?:(?<![.!?])[.!?]+["'’”)\]]*(?:\s+|\Z)|[。！？…]+["'’”」』）]*\s*|\n+|\Z)""", re.DOTALL)


def split(text: str, level: Literal["paragraph", "sentence"]) -> list[str]:
    """The passages with what follows them; joined they are the text."""
    return [part for part in (PARAGRAPH if level == "paragraph" else SENTENCE).findall(text) if part]


class RepeatedPassages(Step):
    """Args:
    level: paragraphs are lines.
    span: a run of so many passages is compared as one.
    minimum: units from which on a run counts; shorter ones, such as "Chapter 2", may recur.
    min_left: share of the text's characters below which the rest of a document is not worth keeping.
    """

    name = "repeated passages"
    alone = False

    def __init__(
        self,
        level: Literal["paragraph", "sentence"] = "paragraph",
        span: int = 1,
        minimum: int = 10,
        min_left: float = 0.5,
        only: list[str] | None = None,
    ):
        super().__init__(only)
        if span < 1:
            raise UserError(f"RepeatedPassages: span {span} must be at least 1.")
        if not 0 <= min_left <= 1:
            raise UserError(f"RepeatedPassages: min_left {min_left} must lie between 0 and 1.")
        self.level: Literal["paragraph", "sentence"] = level
        self.span = span
        self.minimum = minimum
        self.min_left = min_left
        self.seen: set[int] = set()

    def apply(self, document: Document) -> Document | str:
        parts = split(document.text, self.level)
        repeated: set[int] = set()
        for start in range(max(1, len(parts) - self.span + 1)):
            end = start + self.span
            run = units("\n".join(parts[start:end]).casefold())
            if len(run) < self.minimum:
                continue
            key = int.from_bytes(blake2b(" ".join(run).encode(), digest_size=8).digest(), "big")
            if key in self.seen:
                repeated.update(range(start, min(end, len(parts))))
            self.seen.add(key)
        if not repeated:
            return document
        text = "".join(part for number, part in enumerate(parts) if number not in repeated).rstrip()
        if not text or len(text) < self.min_left * len(document.text):
            return "mostly repeated passages"
        self.counts["passages removed"] += len(repeated)
        self.counts["documents shortened"] += 1
        return document._replace(text=text)
