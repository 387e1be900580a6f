"""Removal of documents that were seen before: equal ones by hash, similar ones by MinHash or SimHash.

MinHash estimates the Jaccard index of the sets of n-grams of units (see units.py), J = |A ∩ B| / |A ∪ B|, from
signatures (Broder 1997), with a standard error of sqrt(J (1 - J) / permutations); rensa computes them. SimHash
(Charikar 2002) makes 64 bits of the same n-grams, and texts are alike whose bits differ in few places (Manku et al.
2007, doi:10.1145/1242572.1242592). Hash tables only propose candidates; what counts is the estimated similarity or the
number of differing bits.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from functools import lru_cache
from hashlib import blake2b
from itertools import combinations, pairwise
from math import comb
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rensa import RMinHash

from athanor.corpus.buckets import Buckets, Keys
from athanor.corpus.documents import FILENAME, Document, Keyed, documents_of, read_documents, write_documents
from athanor.corpus.steps import Step
from athanor.corpus.units import ngrams, units
from athanor.errors import UserError

LETTER = re.compile(r"[^\W_]")
RECALL = 0.99  # of pairs exactly at the threshold; more similar ones are found more surely
MOST_TABLES = 100  # of SimHash: 1.2 kB a document
Keep = Literal["first", "longest", "newest", "best"]
Unit = Literal["word", "character"]


class Duplicates(Step):
    """The base: a subclass says what a document is known by, which earlier ones are like it, and remembers it.

    "first" decides at once: a document goes if it is like one that was kept. The other rules gather families first,
    documents that are linked by likeness, while the documents wait on disk; of each family one stays, at its own place:
    the longest, the newest by `meta["date"]` (ISO 8601), or the best by `meta["quality"]`; of equals the first.

    Args:
        keep: which of a family stays.
        against: directories of runs that prepared documents: what is like one of theirs goes.
    """

    reason = "duplicate"
    alone = False
    keyed = True

    def __init__(self, keep: Keep = "first", against: list[str] | None = None, only: list[str] | None = None):
        super().__init__(only)
        if keep not in ("first", "longest", "newest", "best"):
            raise UserError(f"{self.name}: keep {keep!r} must be first, longest, newest or best.")
        self.keep = keep
        self.against = against or []
        self.earlier: int | None = None  # how many of those remembered are of an earlier corpus
        self.doubles: Counter[int] = Counter()  # of each that was kept

    def key(self, document: Document) -> bytes:
        """What it is known by; ready where it comes from a part."""
        ready = document.keys.get(self) if isinstance(document, Keyed) else None
        return ready or self.known_by(document)

    def alike(self, key: bytes) -> list[int]:
        """The numbers of those remembered."""
        raise NotImplementedError

    def remember(self, key: bytes) -> int:
        """Its number, counted from 0."""
        raise NotImplementedError

    def read_earlier(self) -> int:
        if self.earlier is None:
            self.earlier = 0
            for run in self.against:
                for document in documents_of(run):
                    self.earlier = self.remember(self.known_by(document)) + 1
        return self.earlier

    def apply(self, document: Document) -> Document | str:
        earlier = self.read_earlier()
        key = self.key(document)
        if found := self.alike(key):
            if min(found) < earlier:
                return "in an earlier corpus"
            self.doubles[min(found)] += 1
            return self.reason
        self.remember(key)
        return document

    def __call__(self, documents: Iterable[Document]) -> Iterator[Document]:
        if self.keep == "first":
            yield from super().__call__(documents)
            self.tell(1 + number for number in self.doubles.values())
            return
        families = Families(self.read_earlier())
        with tempfile.TemporaryDirectory(prefix="athanor-") as folder:
            path = Path(folder) / FILENAME
            write_documents(path, self.gathered(documents, families))
            number = families.earlier
            for document in read_documents(path):
                if not self.concerns(document):
                    yield document
                    continue
                if reason := families.verdict(number):
                    self.drop(document, self.reason if reason == "family" else reason)
                else:
                    yield document
                number += 1
        self.counts["families of two and more"] = families.plural()
        self.tell(families.sizes())

    def tell(self, sizes: Iterable[int]) -> None:
        """How many clusters have so many documents, for the data card."""
        self.details["clusters"] = {str(size): number for size, number in sorted(Counter(sizes).items())}

    def gathered(self, documents: Iterable[Document], families: "Families") -> Iterator[Document]:
        for document in documents:
            if self.concerns(document):
                key = self.key(document)
                found = self.alike(key)
                number = self.remember(key)
                families.add(number, found, self.rank(document))
            yield document

    def rank(self, document: Document) -> Any:
        if self.keep == "longest":
            return len(document.text)
        if self.keep == "newest":
            return str(document.meta.get("date") or "")
        return float(document.meta.get("quality", float("-inf")))


class Families:
    """Which documents are linked by likeness (union and find), and the one of each family that stays.

    Args:
        earlier: the numbers below it are of an earlier corpus. Whoever is like one of these goes and founds no family.
    """

    def __init__(self, earlier: int):
        self.earlier = earlier
        self.parents = list(range(earlier))
        self.ranks: list[Any] = [None] * earlier
        self.best = list(range(earlier))

    def add(self, number: int, found: list[int], rank: Any) -> None:
        """A document, those before it that it is like, and its rank; the highest rank of a family stays."""
        self.parents.append(number)
        self.ranks.append(rank)
        self.best.append(number)
        if found and found[0] < self.earlier:
            self.best[number] = -1
            return
        for other in found:
            if self.best[other] >= 0:
                self.unite(self.root(other), self.root(number))

    def root(self, number: int) -> int:
        while self.parents[number] != number:
            self.parents[number] = self.parents[self.parents[number]]
            number = self.parents[number]
        return number

    def unite(self, one: int, other: int) -> None:
        if one != other:
            first, second = sorted((one, other))
            self.parents[second] = first
            self.best[first] = max(self.best[first], self.best[second], key=lambda n: (self.ranks[n], -n))

    def verdict(self, number: int) -> str:
        """Why the document goes; "" if it stays."""
        if self.best[number] < 0:
            return "in an earlier corpus"
        return "" if self.best[self.root(number)] == number else "family"

    def sizes(self) -> list[int]:
        """Of the families of two and more."""
        members = Counter(self.root(n) for n in range(self.earlier, len(self.parents)) if self.best[n] >= 0)
        return [size for size in members.values() if size > 1]

    def plural(self) -> int:
        return len({self.root(n) for n in range(self.earlier, len(self.parents)) if self.parents[n] != n})


class ExactDuplicates(Duplicates):
    """Texts that are equal but for white space and case."""

    name = "exact duplicates"
    reason = "exact duplicate"
    key_bytes = 16

    def __init__(self, keep: Keep = "first", against: list[str] | None = None, only: list[str] | None = None):
        super().__init__(keep, against, only)
        self.seen: dict[Hashable, int] = {}
        self.count = 0

    def known_by(self, document: Document) -> bytes:
        return blake2b(" ".join(document.text.casefold().split()).encode(), digest_size=self.key_bytes).digest()

    def alike(self, key: bytes) -> list[int]:
        return [self.seen[key]] if key in self.seen else []

    def remember(self, key: bytes) -> int:
        self.seen.setdefault(key, self.count)
        self.count += 1
        return self.count - 1


class NearDuplicates(Duplicates):
    """By MinHash.

    Args:
        threshold: estimated Jaccard index from which on a document is a duplicate, in (0, 1).
        ngram: units in a run. Longer runs make documents less alike.
        unit: "word" is a unit of units.py; "character" is every letter and digit, which forgives slips of the pen, for
            an edit spoils as many runs of letters as `ngram`, but `ngram` whole words.
        permutations: length of a signature.
        seed: of the permutations.
    """

    name = "near duplicates"
    reason = "near duplicate"

    def __init__(
        self,
        threshold: float = 0.8,
        ngram: int = 3,
        unit: Unit = "word",
        permutations: int = 128,
        seed: int = 1,
        keep: Keep = "first",
        against: list[str] | None = None,
        only: list[str] | None = None,
    ):
        super().__init__(keep, against, only)
        if not 0 < threshold < 1:
            raise UserError(f"NearDuplicates: threshold {threshold} must lie between 0 and 1.")
        if permutations < 1 or ngram < 1:
            raise UserError(f"NearDuplicates: permutations {permutations} and ngram {ngram} must be at least 1.")
        self.threshold = threshold
        self.ngram = ngram
        self.unit: Unit = unit
        self.permutations = permutations
        self.key_bytes = 4 * permutations
        self.seed = seed
        count = bands(threshold, permutations)
        odd = np.random.default_rng(0).integers(0, 2**63, permutations // count, np.uint64) * np.uint64(2) + np.uint64(
            1
        )
        self.index = Buckets(
            permutations, "u4", lambda rows: (rows.reshape(len(rows), count, -1) * odd).sum(2, dtype=np.uint64)
        )

    def known_by(self, document: Document) -> bytes:
        text = document.text.casefold()
        signature = RMinHash(self.permutations, self.seed)
        signature.update(ngrams(parts(text, self.unit), self.ngram) or [text])
        return np.array(signature.digest(), np.uint32).tobytes()

    def alike(self, key: bytes) -> list[int]:
        signature = np.frombuffer(key, np.uint32)
        found = self.index.candidates(signature)
        if not found:
            return []
        similarity = (self.index.signatures[found] == signature).sum(1) / self.permutations
        return [number for number, value in zip(found, similarity) if value >= self.threshold]

    def remember(self, key: bytes) -> int:
        return self.index.add(np.frombuffer(key, np.uint32))


def bands(threshold: float, permutations: int) -> int:
    """The fewest bands that propose a pair of similarity s with probability 1 - (1 - s^rows)^bands >= RECALL."""
    divisors = (count for count in range(1, permutations + 1) if permutations % count == 0)
    return next(b for b in divisors if b == permutations or 1 - (1 - threshold ** (permutations // b)) ** b >= RECALL)


class SimilarDuplicates(Duplicates):
    """By SimHash: 8 bytes a document, and 12 for each table, where MinHash has 512. None within `distance` is missed.

    Tables are made anew, with longer keys, when the corpus has outgrown them.

    Args:
        distance: bits that may differ, 0 to 10. Unrelated texts differ in 32 or so, texts on one subject in 12.
        ngram, unit: as of NearDuplicates.
    """

    name = "similar documents"
    reason = "near duplicate"
    key_bytes = 8

    def __init__(
        self,
        distance: int = 6,
        ngram: int = 3,
        unit: Unit = "word",
        keep: Keep = "first",
        against: list[str] | None = None,
        only: list[str] | None = None,
    ):
        super().__init__(keep, against, only)
        if not 0 <= distance <= 10:
            raise UserError(f"SimilarDuplicates: distance {distance} must lie between 0 and 10; beyond it use MinHash.")
        if ngram < 1:
            raise UserError(f"SimilarDuplicates: ngram {ngram} must be at least 1.")
        self.distance = distance
        self.ngram = ngram
        self.unit: Unit = unit
        self.masks: list[int] = []
        self.index = Buckets(1, "u8", self.keys(0) or folded, self.keys)

    def keys(self, count: int) -> Keys | None:
        """Of a signature by the tables for so many documents; None if these are those it has."""
        if (chosen := tables(self.distance, count)) == self.masks:
            return None
        self.masks = chosen
        masks = np.array(chosen, np.uint64)
        return lambda rows: folded(rows & masks)

    def known_by(self, document: Document) -> bytes:
        return np.uint64(simhash(document.text, self.ngram, self.unit)).tobytes()

    def alike(self, key: bytes) -> list[int]:
        signature = np.frombuffer(key, np.uint64)
        found = self.index.candidates(signature)
        if not found:
            return []
        others, own = self.index.signatures[found, 0].tolist(), int(signature[0])
        return [number for number, other in zip(found, others) if (own ^ other).bit_count() <= self.distance]

    def remember(self, key: bytes) -> int:
        return self.index.add(np.frombuffer(key, np.uint64))


def tables(distance: int, count: int = 0) -> list[int]:
    """Masks of the bits that each table compares: two numbers within `distance` bits agree under at least one.

    64 bits are cut in blocks, more than `distance`; a table holds all blocks but `distance` of them, for every choice
    (Manku et al.). More blocks make longer keys, and more tables. The fewest blocks are taken whose keys have 10 bits
    and of `count` documents hardly two have the same by chance, where MOST_TABLES are enough for that.
    """
    possible = [b for b in range(distance + 1, 65) if (b - distance) * (64 // b) >= 10]
    long = [b for b in possible if 1 << ((b - distance) * (64 // b)) >= count and comb(b, distance) <= MOST_TABLES]
    affordable = [b for b in possible if comb(b, distance) <= MOST_TABLES]
    blocks = (long or affordable[-1:] or possible)[0]
    edges = [64 * block // blocks for block in range(blocks + 1)]
    masks = [(1 << end) - (1 << start) for start, end in pairwise(edges)]
    return [sum(chosen) for chosen in combinations(masks, blocks - distance)]


def folded(keys: np.ndarray) -> np.ndarray:
    """Keys whose every bit reaches the upper ones when they are multiplied."""
    return keys ^ (keys >> np.uint64(32))


def parts(text: str, unit: Unit) -> list[str]:
    return units(text) if unit == "word" else LETTER.findall(text)


def simhash(text: str, ngram: int, unit: Unit = "word") -> int:
    """64 bits: each is what most of the text's distinct n-grams of units have there. Letter case is ignored."""
    text = text.casefold()
    hashes = np.array([hashed(part) for part in parts(text, unit)] or [hashed(text)], np.uint64)
    length = min(ngram, len(hashes))
    runs = np.zeros(len(hashes) - length + 1, np.uint64)
    for start in range(length):
        runs = mixed(runs + hashes[start : start + len(runs)] + GAMMA)
    runs = np.unique(runs)
    ones = np.unpackbits(runs.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little").sum(0, dtype=int)
    return int(np.packbits(2 * ones > len(runs), bitorder="little").view("<u8")[0])


GAMMA = np.uint64(0x9E3779B97F4A7C15)


def mixed(numbers: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele et al. 2014): every bit of a number changes half of the result's."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


@lru_cache(1 << 18)
def hashed(unit: str) -> int:
    return int.from_bytes(blake2b(unit.encode("utf-8", "replace"), digest_size=8).digest(), "little")
