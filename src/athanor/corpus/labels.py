"""What a document is about or what kind of text it is, written to a field of its `meta`, for `Balance` to go by.

Three ways to know: where it comes from, the words it uses, or a classifier fitted on examples, naive Bayes by the
ratios of counts of Wang & Manning (2012, https://aclanthology.org/P12-2018) on units and pairs of them. Units are
words, and characters where there are no spaces, so that all three read Chinese as they read English.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import numpy as np

from athanor.corpus.contamination import records
from athanor.corpus.documents import Document
from athanor.corpus.lists import WordList
from athanor.corpus.steps import Step
from athanor.corpus.units import units
from athanor.errors import UserError

UNKNOWN = "unknown"
FEATURES = 1 << 18
SMOOTHING = 0.3  # of 0.1 to 1 good on THUCNews, hotel reviews, TREC and SST-2 alike
LONGEST = 2000  # units of a text that are looked at


class LabelSources(Step):
    """Labels documents by their source; those of sources that are not named are "unknown".

    Args:
        labels: source: label.
        field: of meta.
    """

    name = "label by source"

    def __init__(self, labels: dict[str, str], field: str = "domain", only: list[str] | None = None):
        super().__init__(only)
        self.labels = labels
        self.field = field

    def apply(self, document: Document) -> Document:
        label = self.labels.get(document.source, UNKNOWN)
        self.counts[label] += 1
        return document._replace(meta=document.meta | {self.field: label})


class LabelWords(Step):
    """Labels a document by the list whose words it uses most, by their number in a thousand units.

    Args:
        lists: label: files with a word or phrase a line, as for `athanor.corpus.lists.WordList`.
        minimum: listed words in a thousand units that a label takes; below it a document is "unknown".
        field: of meta.
    """

    name = "label by words"

    def __init__(
        self,
        lists: dict[str, list[str] | str],
        minimum: float = 2.0,
        field: str = "domain",
        only: list[str] | None = None,
    ):
        super().__init__(only)
        if not lists or minimum <= 0:
            raise UserError(f"LabelWords: give lists, and a minimum {minimum} above 0.")
        self.patterns = {label: WordList(files).pattern for label, files in sorted(lists.items())}
        self.minimum = minimum
        self.field = field

    def apply(self, document: Document) -> Document:
        text = document.text.casefold()
        found = {label: sum(1 for _ in pattern.finditer(text)) for label, pattern in self.patterns.items()}
        best = max(found, key=lambda label: found[label])
        length = max(1, len(units(text)))
        label = best if 1000 * found[best] >= self.minimum * length else UNKNOWN
        self.counts[label] += 1
        return document._replace(meta=document.meta | {self.field: label})


class Classify(Step):
    """Labels documents by a classifier that is fitted on examples when the step begins.

    `details` has the examples of each label, and the share of held-out ones that it gets right.

    Args:
        files: JSON Lines of examples.
        text_key, label_key: of an example.
        field: of meta.
        held_out: share of the examples, by the hash of their text, on which it is measured.
        minimum: probability of the best label, of all; below it a document is "unknown".
    """

    name = "classify"

    def __init__(
        self,
        files: list[str] | str,
        text_key: str = "text",
        label_key: str = "label",
        field: str = "domain",
        held_out: float = 0.1,
        minimum: float = 0.0,
        only: list[str] | None = None,
    ):
        super().__init__(only)
        if not 0 <= held_out < 1 or not 0 <= minimum <= 1:
            raise UserError(f"Classify: held_out {held_out} must lie in [0, 1), minimum {minimum} in [0, 1].")
        self.files = [files] if isinstance(files, str) else files
        self.text_key, self.label_key, self.field = text_key, label_key, field
        self.held_out, self.minimum = held_out, minimum
        self.bayes: Bayes | None = None

    def examples(self) -> Iterator[tuple[str, str]]:
        for path in self.files:
            for number, record in records(Path(path)):
                try:
                    yield str(record[self.text_key]), str(record[self.label_key])
                except (KeyError, TypeError):
                    keys = f"{self.text_key!r} and {self.label_key!r}"
                    raise UserError(f"{path}, line {number}: an example has the fields {keys}.") from None

    def fitted(self) -> "Bayes":
        held = [(text, label) for text, label in self.examples() if position(text) < self.held_out]
        bayes = Bayes((text, label) for text, label in self.examples() if position(text) >= self.held_out)
        right = sum(bayes.label(text)[0] == label for text, label in held)
        self.details["classifier"] = {
            "examples": dict(sorted(bayes.examples.items())),
            "held_out": len(held),
            "accuracy": round(right / len(held), 4) if held else None,
        }
        return bayes

    def apply(self, document: Document) -> Document:
        self.bayes = self.bayes or self.fitted()
        label, probability = self.bayes.label(document.text)
        label = label if probability >= self.minimum else UNKNOWN
        self.counts[label] += 1
        return document._replace(meta=document.meta | {self.field: label})


class Bayes:
    """A feature weighs for a label what its share of the label's counts is over its share of all others', as logarithm:

        w_lf = log((c_lf + s) / sum_f (c_lf + s)) - log((c_!lf + s) / sum_f (c_!lf + s)),    s = SMOOTHING

    where c counts documents.
    """

    def __init__(self, examples: Iterable[tuple[str, str]]):
        counts: dict[str, np.ndarray] = {}
        self.examples: Counter[str] = Counter()
        for text, label in examples:
            if label not in counts:
                counts[label] = np.zeros(FEATURES, np.float32)
            counts[label][features(text)] += 1
            self.examples[label] += 1
        if len(counts) < 2:
            raise UserError(f"Classify: a classifier needs examples of two labels, these have {len(counts)}.")
        self.labels = sorted(counts)
        seen = np.stack([counts[label] for label in self.labels])  # [labels, features]
        others = seen.sum(0) - seen
        own, others = seen + SMOOTHING, others + SMOOTHING
        self.weights = np.log(own / own.sum(1, keepdims=True)) - np.log(others / others.sum(1, keepdims=True))

    def label(self, text: str) -> tuple[str, float]:
        """The best label, and its softmax among the labels' sums of weights, over the root of the features' number."""
        found = features(text)
        if not len(found):
            return UNKNOWN, 0.0
        scores = self.weights[:, found].sum(1, dtype=np.float64) / np.sqrt(len(found))
        best = int(scores.argmax())
        return self.labels[best], float(1 / np.exp(scores - scores[best]).sum())


def features(text: str) -> np.ndarray:
    """Distinct ones, as numbers below FEATURES."""
    parts = units(text.casefold())[:LONGEST]
    runs = {*parts, *map(" ".join, pairwise(parts))}
    return np.array(sorted({crc32(run.encode()) % FEATURES for run in runs}), np.int64)


def position(text: str) -> float:
    """In [0, 1), by the text alone."""
    return crc32(f"held out\0{text}".encode("utf-8", "replace")) / 2**32
