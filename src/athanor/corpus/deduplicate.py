"""Removal of documents that were seen before: equal ones by hash, similar ones by MinHash and LSH.

Similarity is the Jaccard index of the sets of n-grams of units (see units.py): J = |A ∩ B| / |A ∪ B|. It is estimated
from MinHash signatures (Broder 1997), with a standard error of sqrt(J (1 - J) / permutations); rensa computes them.
Banding only proposes candidates; a document is dropped if its estimated similarity to an earlier, kept one reaches the
threshold. The first of each family stays.
"""

from hashlib import blake2b

from rensa import RMinHash, RMinHashLSH

from athanor.corpus.documents import Document
from athanor.corpus.steps import Step
from athanor.corpus.units import ngrams, units
from athanor.errors import UserError

RECALL = 0.99  # of pairs exactly at the threshold; more similar ones are found more surely


class ExactDuplicates(Step):
    """Texts that are equal but for white space and case."""

    name = "exact duplicates"

    def __init__(self, only: list[str] | None = None):
        super().__init__(only)
        self.seen: set[bytes] = set()

    def apply(self, document: Document) -> Document | str:
        key = blake2b(" ".join(document.text.casefold().split()).encode(), digest_size=16).digest()
        if key in self.seen:
            return "exact duplicate"
        self.seen.add(key)
        return document


class NearDuplicates(Step):
    """Args:
    threshold: estimated Jaccard index from which on a document is a duplicate, in (0, 1).
    ngram: units in a run. Longer runs make documents less alike.
    permutations: length of a signature.
    seed: of the permutations.
    """

    name = "near duplicates"

    def __init__(
        self,
        threshold: float = 0.8,
        ngram: int = 3,
        permutations: int = 128,
        seed: int = 1,
        only: list[str] | None = None,
    ):
        super().__init__(only)
        if not 0 < threshold < 1:
            raise UserError(f"NearDuplicates: threshold {threshold} must lie between 0 and 1.")
        self.threshold = threshold
        self.ngram = ngram
        self.permutations = permutations
        self.seed = seed
        self.index = RMinHashLSH(threshold, permutations, bands(threshold, permutations))
        self.signatures: list[RMinHash] = []

    def apply(self, document: Document) -> Document | str:
        text = document.text.casefold()
        signature = RMinHash(self.permutations, self.seed)
        signature.update(ngrams(units(text), self.ngram) or [text])
        if any(signature.jaccard(self.signatures[key]) >= self.threshold for key in self.index.query(signature)):
            return "near duplicate"
        self.index.insert(len(self.signatures), signature)
        self.signatures.append(signature)
        return document


def bands(threshold: float, permutations: int) -> int:
    """The fewest bands that propose a pair of similarity s with probability 1 - (1 - s^rows)^bands >= RECALL."""
    divisors = (count for count in range(1, permutations + 1) if permutations % count == 0)
    return next(b for b in divisors if b == permutations or 1 - (1 - threshold ** (permutations // b)) ** b >= RECALL)
