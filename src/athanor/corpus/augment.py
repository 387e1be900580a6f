"""More texts out of those there are: each document is followed by changed copies of it.

A copy has the identity of its origin with the method and a number (`a/7#delete-1`), `meta["origin"]` and
`meta["augmented"]`, and the origin's group, so that it falls in the same split. What becomes of a text is a function of
it, its identity and the seed alone: neither order nor the number of processes changes a byte. Copies are not copied
again. Put these steps after the search for duplicates, which would else take copies out again.

Deletion and swapping of words are those of EDA (Wei & Zou 2019, arXiv:1901.11196), within sentences; synonyms, word
order and translation are in modules of their own.
"""

import logging
import random
import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, Literal

from athanor.corpus.documents import Document
from athanor.corpus.normalize import rare
from athanor.corpus.steps import Step
from athanor.corpus.units import UNSPACED
from athanor.errors import UserError

PIECE = re.compile(f"(?P<unspaced>[{UNSPACED}]+)|(?P<word>[^\\W_{UNSPACED}]+(?:['’-][^\\W_{UNSPACED}]+)*)|(?:[\\W_])")
SENTENCE = re.compile(r"[^.!?。！？；\n]*(?:[.!?。！？；\n]+[\"'”’」』)）]*\s*|$)")
DIGIT = re.compile(r"\d")
Unit = Literal["word", "character"]


class Augment(Step):
    """The base: a subclass says in `changed` what becomes of a text.

    Args:
        copies: of each document, at most; those that come out equal to the origin or to one another are left out.
        share: of the documents that are copied, drawn by the seed.
    """

    method = "augment"

    def __init__(self, seed: int, copies: int = 1, share: float = 1.0, only: list[str] | None = None):
        super().__init__(only)
        if copies < 1 or not 0 < share <= 1:
            raise UserError(f"{self.name}: copies {copies} must be at least 1, share {share} in (0, 1].")
        self.seed = seed
        self.copies = copies
        self.share = share

    def changed(self, document: Document, rng: random.Random) -> str:
        """The text of a copy; the origin's where nothing can be changed."""
        raise NotImplementedError

    def rng(self, document: Document, number: int) -> random.Random:
        return random.Random(f"{self.seed}\0{self.method}\0{number}\0{document.id}")

    def __call__(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            yield document
            if not self.concerns(document) or "augmented" in document.meta:
                continue
            if self.rng(document, 0).random() >= self.share:
                continue
            texts = {document.text}
            for number in range(1, self.copies + 1):
                text = self.changed(document, self.rng(document, number))
                if not text.strip() or text in texts:
                    self.counts["copies left out, with nothing changed"] += 1
                    continue
                texts.add(text)
                self.counts["copies made"] += 1
                yield copy_of(document, text, self.method, number)


def copy_of(document: Document, text: str, method: str, number: int) -> Document:
    group = document.meta.get("group") or document.text
    meta = document.meta | {"origin": document.id, "augmented": method, "group": group}
    return document._replace(id=f"{document.id}#{method}-{number}", text=text, meta=meta)


class RandomDeletion(Augment):
    """Words deleted at random, those with digits never.

    Args:
        rate: probability of each word.
        unit: of Chinese and the like, a word by jieba, or a character.
    """

    name, method = "random deletion", "delete"

    def __init__(
        self,
        seed: int,
        rate: float = 0.1,
        unit: Unit = "word",
        copies: int = 1,
        share: float = 1.0,
        only: list[str] | None = None,
    ):
        super().__init__(seed, copies, share, only)
        self.rate, self.unit = checked(self.name, rate, unit), unit

    def changed(self, document: Document, rng: random.Random) -> str:
        found = pieces(document.text, self.unit)
        kept: list[str] = []
        for piece, word in found:
            if word and not DIGIT.search(piece) and rng.random() < self.rate:
                if kept and kept[-1] == " ":
                    kept.pop()
                continue
            kept.append(piece)
        return "".join(kept).lstrip(" ") if any(word for _, word in found) else document.text


class RandomSwap(Augment):
    """Pairs of words of a sentence that change places.

    Args:
        rate: swaps a word.
        unit: as of RandomDeletion.
        distance: words between which the two are at most.
    """

    name, method = "random swap", "swap"

    def __init__(
        self,
        seed: int,
        rate: float = 0.05,
        unit: Unit = "word",
        distance: int = 3,
        copies: int = 1,
        share: float = 1.0,
        only: list[str] | None = None,
    ):
        super().__init__(seed, copies, share, only)
        if distance < 1:
            raise UserError(f"{self.name}: distance {distance} must be at least 1.")
        self.rate, self.unit, self.distance = checked(self.name, rate, unit), unit, distance

    def changed(self, document: Document, rng: random.Random) -> str:
        return "".join(self.swapped(sentence, rng) for sentence in SENTENCE.findall(document.text))

    def swapped(self, sentence: str, rng: random.Random) -> str:
        parts = pieces(sentence, self.unit)
        words = [place for place, (_, word) in enumerate(parts) if word]
        texts = [piece for piece, _ in parts]
        for first in range(len(words) - 1):
            if rng.random() < self.rate:
                one, other = words[first], words[min(len(words) - 1, first + rng.randint(1, self.distance))]
                texts[one], texts[other] = texts[other], texts[one]
        return "".join(texts)


def checked(name: str, rate: float, unit: str) -> float:
    if not 0 < rate < 1 or unit not in ("word", "character"):
        raise UserError(f"{name}: rate {rate} must lie between 0 and 1, unit {unit!r} be word or character.")
    return rate


def pieces(text: str, unit: Unit = "word") -> list[tuple[str, bool]]:
    """(piece, whether it is a word) in order; joined they are the text. Chinese words are those of jieba."""
    found: list[tuple[str, bool]] = []
    for match in PIECE.finditer(text):
        if match["unspaced"]:
            words = match[0] if unit == "character" else segmenter().cut(match[0], HMM=False)
            found += [(word, True) for word in words]
        else:
            found.append((match[0], match["word"] is not None))
    return found


@cache
def segmenter() -> Any:
    jieba = rare("jieba", "augment")
    jieba.setLogLevel(logging.WARNING)
    return jieba.Tokenizer()
