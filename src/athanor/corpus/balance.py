"""Mixture: how much of each domain a corpus has, and documents repeated or left out until it has what is wanted.

A domain is the source of a document, its language, or a field of its `meta`. Sizes are UTF-8 bytes, or tokens where a
tokenizer is given. Which documents are left out is decided by the hash of their text, so it does not depend on their
order, and a larger share keeps all that a smaller one kept.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from pathlib import Path

from athanor.corpus.documents import FILENAME, Document, read_documents, write_documents
from athanor.corpus.steps import Step
from athanor.errors import UserError

UNKNOWN = "unknown"


def targets(sizes: dict[str, int], weights: dict[str, float] | None, temperature: float) -> dict[str, float]:
    """The share of each domain, of 1. Explicit weights, or the sizes' own shares flattened by a temperature:

        p_i = n_i^(1/T) / sum_j n_j^(1/T)       (Arivazhagan et al. 2019, arXiv:1907.05019, section 4.2)

    Domains that have no weight share what the weights, as shares of 1, leave, in proportion to their sizes.
    """
    if weights is None:
        raw = {domain: size ** (1 / temperature) for domain, size in sizes.items()}
        return {domain: value / sum(raw.values()) for domain, value in raw.items()}
    others = {domain: size for domain, size in sizes.items() if domain not in weights}
    given = sum(weights.values())
    if not others:
        return {domain: weight / given for domain, weight in weights.items()}
    rest = 1 - given
    return {d: weights.get(d, rest * others.get(d, 0) / sum(others.values())) for d in sizes}


def epochs(sizes: dict[str, int], shares: dict[str, float], cap: float, total: int | None = None) -> dict[str, float]:
    """How often each domain is gone through, at most `cap` times, so that the shares of the result come out.

    With a total the result has that size, and what a capped domain cannot give is taken from the others in proportion.
    Without one it is as large as the shares allow with no domain beyond its cap: the scarcest domain decides.
    """
    wanted = {domain: share for domain, share in shares.items() if share > 0}
    if total is None:
        total = int(min(cap * sizes[domain] / share for domain, share in wanted.items()))
    times: dict[str, float] = dict.fromkeys(sizes, 0.0)
    left, free = float(total), dict(wanted)
    while free:
        scale = left / sum(free.values())
        over = [domain for domain, share in free.items() if share * scale > cap * sizes[domain]]
        if not over:
            return times | {domain: share * scale / sizes[domain] for domain, share in free.items()}
        for domain in over:
            times[domain] = cap
            left -= cap * sizes[domain]
            del free[domain]
    return times


class Balance(Step):
    """Documents wait on disk until all are counted; then each comes as often as its domain wants.

    `counts` has the sizes before and after by domain, `details` also its documents, the share it was to have, the one
    it has, and how often it is gone through. A repetition has the identity of its document with #2, #3, ...
    and falls in the same split, since its text is the same.

    Args:
        weights: share of each domain in the result; the rest goes to the domains not named. None takes temperature.
        temperature: 1 keeps the shares as they are, more makes them more equal.
        by: "source", "language", or a field of meta.
        max_epochs: of any document.
        total: size of the result; None is as much as weights and epochs allow.
        tokenizer: directory of a run that trained one: sizes are then tokens.
    """

    name = "balance"
    alone = False

    def __init__(
        self,
        weights: dict[str, float] | None = None,
        temperature: float = 1.0,
        by: str = "source",
        max_epochs: float = 4.0,
        total: int | None = None,
        tokenizer: str | None = None,
        only: list[str] | None = None,
    ):
        super().__init__(only)
        if weights is not None and (min(weights.values(), default=0) < 0 or not 0 < sum(weights.values()) <= 1 + 1e-9):
            raise UserError(f"Balance: weights {weights} must be shares, none negative, that sum to at most 1.")
        if temperature <= 0 or max_epochs <= 0:
            raise UserError(f"Balance: temperature {temperature} and max_epochs {max_epochs} must be above 0.")
        if total is not None and total <= 0:
            raise UserError(f"Balance: total {total} must be above 0.")
        self.weights = weights
        self.temperature = temperature
        self.by = by
        self.max_epochs = max_epochs
        self.total = total
        self.tokenizer = tokenizer

    def domain(self, document: Document) -> str:
        if self.by in ("source", "language"):
            return getattr(document, self.by)
        return str(document.meta.get(self.by, UNKNOWN))

    def __call__(self, documents: Iterable[Document]) -> Iterator[Document]:
        measure = self.measure()
        before: Counter[str] = Counter()
        after: Counter[str] = Counter()
        documents_of: Counter[str] = Counter()

        def counted() -> Iterator[Document]:
            for document in documents:
                if self.concerns(document):
                    before[self.domain(document)] += measure(document.text)
                    documents_of[self.domain(document)] += 1
                yield document

        with tempfile.TemporaryDirectory(prefix="athanor-") as folder:
            path = Path(folder) / FILENAME
            write_documents(path, counted())
            sizes = {domain: size for domain, size in sorted(before.items()) if size}
            times = self.times(sizes) if sizes else {}
            for document in read_documents(path):
                if not self.concerns(document):
                    yield document
                    continue
                domain = self.domain(document)
                count = repetitions(document.text, times.get(domain, 0.0))
                if not count:
                    self.drop(document, f"too much of {domain}")
                    continue
                after[domain] += count * measure(document.text)
                yield document
                for number in range(2, count + 1):
                    yield document._replace(id=f"{document.id}#{number}")
        unit = "tokens" if self.tokenizer else "bytes"
        for domain in sizes:
            self.counts[f"{unit} of {domain} before"] = before[domain]
            self.counts[f"{unit} of {domain} after"] = after[domain]
        wanted = targets(sizes, self.weights, self.temperature) if sizes else {}
        self.details["mixture"] = {
            "by": self.by,
            "unit": unit,
            "domains": {
                domain: {
                    "documents": documents_of[domain],
                    "before": before[domain],
                    "after": after[domain],
                    "share_before": before[domain] / before.total(),
                    "share_wanted": wanted[domain],
                    "share_after": after[domain] / max(1, after.total()),
                    "epochs": times[domain],
                }
                for domain in sizes
            },
        }

    def times(self, sizes: dict[str, int]) -> dict[str, float]:
        if missing := set(self.weights or ()) - set(sizes):
            raise UserError(
                f"Balance: no document of {', '.join(sorted(missing))}; there are {', '.join(sizes)} by {self.by}."
            )
        return epochs(sizes, targets(sizes, self.weights, self.temperature), self.max_epochs, self.total)

    def measure(self) -> Callable[[str], int]:
        if self.tokenizer is None:
            return lambda text: len(text.encode())
        from athanor.corpus.tokenizer import Tokenizer

        tokenizer = Tokenizer(self.tokenizer)
        return lambda text: len(tokenizer.encode(text))


def repetitions(text: str, times: float) -> int:
    """`times` rounded up for as many texts as its fraction says, for the others down."""
    position = int.from_bytes(blake2b(f"balance\0{text}".encode(), digest_size=8).digest(), "big") / 2**64
    return int(times) + (position < times - int(times))
