"""What every cleaning step is: documents in, documents out, and a count of what it dropped and why."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from athanor.corpus.documents import Document

SAMPLES = 3  # texts kept for each reason
SAMPLE_LENGTH = 200  # characters


class Step:
    """A step over one document at a time: a subclass says in `apply` what becomes of it.

    dropped: documents dropped, by reason.
    samples: the beginnings of the first few of them, by reason.
    counts: other things worth reporting, by name.
    details: what is more than a count, as JSON; for the data card.
    only: the sources that the step applies to; the documents of others pass untouched. None is all.
    alone: whether what it does with a document depends on that document alone, so that parts of a corpus can be cleaned
        apart.
    keyed: whether it compares documents by what `known_by` makes of each alone, of `key_bytes` bytes, which parts can
        have ready.
    """

    name = "step"
    alone = True
    keyed = False
    key_bytes = 0

    def __init__(self, only: list[str] | None = None):
        self.only = only
        self.dropped: Counter[str] = Counter()
        self.samples: dict[str, list[str]] = {}
        self.counts: Counter[str] = Counter()
        self.details: dict[str, Any] = {}

    def apply(self, document: Document) -> Document | str:
        """The document to pass on, or the reason for dropping it."""
        raise NotImplementedError

    def known_by(self, document: Document) -> bytes:
        """What the step, if it is keyed, compares of a document."""
        raise NotImplementedError

    def concerns(self, document: Document) -> bool:
        return self.only is None or document.source in self.only

    def __call__(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            if not self.concerns(document):
                yield document
                continue
            result = self.apply(document)
            if isinstance(result, str):
                self.drop(document, result)
            else:
                yield result

    def drop(self, document: Document, reason: str) -> None:
        self.dropped[reason] += 1
        samples = self.samples.setdefault(reason, [])
        if len(samples) < SAMPLES:
            samples.append(document.text[:SAMPLE_LENGTH])
