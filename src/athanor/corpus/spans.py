"""Removal of word-for-word repetitions: runs of N units and more that stood in an earlier text, or earlier in this one.

What Lee et al. (2022, arXiv:2107.06499) find with a suffix array, here in one pass over a stream: a text is cut in
blocks of N/2 units, remembered by their hashes. Each run of N units holds such a block whole; from a block that is met
again the run is followed to both sides, unit by unit, through the numbers of all units read, which wait on disk (8
bytes a unit; in memory are about 100 for each N/2). A run is missed only if each block in it had stood in PLACES other
places before. Units are compared by 64-bit hashes; letter case, white space and marks between them are ignored.
"""

import tempfile

import numpy as np

from athanor.corpus.deduplicate import GAMMA, hashed, mixed
from athanor.corpus.documents import Document, documents_of
from athanor.corpus.steps import Step
from athanor.corpus.units import UNIT, units
from athanor.errors import UserError

BASE = 0x9E3779B97F4A7C15  # odd, so that its powers have inverses modulo 2^64
PLACES = 8  # that are remembered of a block
BORDER = np.zeros(1, np.uint64)  # between texts on the tape; equal to no unit
INVERSE = pow(BASE, -1, 1 << 64)


class Tape:
    """Numbers on disk, written at the end and read anywhere. The file has no name and goes with the process."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile(prefix="athanor-")  # noqa: SIM115 - as long as the step
        self.length = 0

    def append(self, numbers: np.ndarray) -> None:
        self.file.seek(0, 2)
        self.file.write(numbers.astype("<u8").tobytes())
        self.length += len(numbers)

    def read(self, start: int, end: int) -> np.ndarray:
        start = max(0, start)
        self.file.seek(8 * start)
        return np.frombuffer(self.file.read(8 * max(0, end - start)), "<u8")


def windows(numbers: np.ndarray, size: int) -> np.ndarray:
    """A hash of each run of `size` numbers: sums of number * BASE^place, with the place divided out again."""
    if len(numbers) < size:
        return np.zeros(0, np.uint64)
    powers = np.cumprod(np.full(len(numbers), BASE, np.uint64), dtype=np.uint64)
    sums = np.concatenate([[np.uint64(0)], np.cumsum(numbers * powers, dtype=np.uint64)])
    count = len(numbers) - size + 1
    inverses = np.cumprod(np.full(count, INVERSE, np.uint64), dtype=np.uint64)
    return mixed((sums[size:] - sums[:count]) * inverses + GAMMA)


def matching(one: np.ndarray, other: np.ndarray) -> int:
    """How many numbers agree from the beginning on."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length


class RepeatedSpans(Step):
    """Args:
    minimum: units of the shortest run that goes. Of what is said twice the first stays.
    min_left: share of the text's characters below which the rest of a document is not worth keeping.
    against: directories of runs that prepared documents, whose texts count as read before.
    """

    name = "repeated spans"
    alone = False

    def __init__(
        self,
        minimum: int = 50,
        min_left: float = 0.5,
        against: list[str] | None = None,
        only: list[str] | None = None,
    ):
        super().__init__(only)
        if minimum < 4:
            raise UserError(f"RepeatedSpans: minimum {minimum} must be at least 4.")
        if not 0 <= min_left <= 1:
            raise UserError(f"RepeatedSpans: min_left {min_left} must lie between 0 and 1.")
        self.minimum = minimum
        self.block = minimum // 2
        self.min_left = min_left
        self.against = list(against or [])
        self.first: dict[int, int] = {}  # hash of a block -> where it stands on the tape
        self.more: dict[int, list[int]] = {}  # further places
        self.tape = Tape()

    def apply(self, document: Document) -> Document | str:
        while self.against:
            for earlier in documents_of(self.against.pop(0)):
                self.repeated(earlier.text)
        spans = self.repeated(document.text)
        if not spans:
            return document
        places = [(found.start(), found.end()) for found in UNIT.finditer(document.text)]
        kept, position = [], 0
        for start, end in spans:
            kept.append(document.text[position : places[start][0]])
            position = places[end][0] if end < len(places) else len(document.text)
        text = "".join([*kept, document.text[position:]]).strip()
        if not text or len(text) < self.min_left * len(document.text):
            return "mostly repeated spans"
        self.counts["spans removed"] += len(spans)
        self.counts["units removed"] += sum(end - start for start, end in spans)
        self.counts["documents shortened"] += 1
        return document._replace(text=text)

    def repeated(self, text: str) -> list[tuple[int, int]]:
        """The runs of units, first and last + 1, that were read before; then this text is read too."""
        numbers = np.array([hashed(unit.casefold()) for unit in units(text)], np.uint64)
        keys = windows(numbers, self.block).tolist()
        offset = self.tape.length
        self.tape.append(np.concatenate([numbers, BORDER]))
        runs: list[tuple[int, int]] = []
        reach: dict[int, int] = {}  # distance between two texts -> how far a run of this distance is known to go
        for position, key in enumerate(keys):
            for earlier in self.places(key):
                distance = offset + position - earlier
                if reach.get(distance, 0) > position:
                    continue
                start, end = self.run(numbers, position, earlier, offset)
                reach[distance] = end
                if end - start >= self.minimum:
                    runs.append((start, end))
            if position % self.block == 0:
                self.remember(key, offset + position)
        return united(runs)

    def places(self, key: int) -> tuple[int, ...]:
        first = self.first.get(key)
        return () if first is None else (first, *self.more.get(key, ()))

    def remember(self, key: int, place: int) -> None:
        if self.first.setdefault(key, place) != place:
            others = self.more.setdefault(key, [])
            if len(others) < PLACES - 1:
                others.append(place)

    def run(self, numbers: np.ndarray, position: int, earlier: int, offset: int) -> tuple[int, int]:
        """Around a block that was read before: as far as both texts agree to either side."""
        ahead, behind = numbers[position:], numbers[:position][::-1]
        forward = matching(ahead, self.tape.read(earlier, min(earlier + len(ahead), offset + position)))
        back = matching(behind, self.tape.read(earlier - len(behind), earlier)[::-1])
        return position - back, position + forward


def united(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """In order, those that overlap made one."""
    result: list[tuple[int, int]] = []
    for start, end in sorted(runs):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result
