"""Which texts of a corpus hold what a model will be asked: runs of n units that evaluation sets have too.

GPT-3's rule (Brown et al. 2020, arXiv:2005.14165, appendix C): 13 words in a row, case and punctuation aside. In texts
of which most units are Chinese characters, 13 of these: unrelated texts share eight now and then, an idiom, and hardly
ever 10 that are no quotation (docs/corpus.md). A passage shorter than a run is one as a whole from 8 words or 10
characters on, and cannot be judged below.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from athanor.corpus.documents import Document
from athanor.corpus.files import Input, decode
from athanor.corpus.steps import Step
from athanor.corpus.units import UNIT, UNSPACED_UNIT, ngrams, units
from athanor.errors import UserError


class Runs(NamedTuple):
    """The length of the runs of units that are compared.

    n: words. characters: of texts mostly in characters. minimum, minimum_characters: from which on a shorter passage
    is a run.
    """

    n: int = 13
    characters: int = 13
    minimum: int = 8
    minimum_characters: int = 10

    def of(self, text: str) -> tuple[int, list[str]]:
        """Their length in a passage and the distinct ones, in order; (0, []) where it is too short."""
        parts = [part.casefold() for part in units(text)]
        spaced = 2 * sum(map(bool, map(UNSPACED_UNIT.match, parts))) < len(parts)
        size, least = (self.n, self.minimum) if spaced else (self.characters, self.minimum_characters)
        if len(parts) < min(size, least):
            return 0, []
        size = min(size, len(parts))
        return size, list(dict.fromkeys(ngrams(parts, size)))


HEAD = 4


class Index:
    """Runs of many passages, each with the names of those that have it; found by their first HEAD units."""

    def __init__(self, runs: Runs | None = None) -> None:
        self.runs = runs or Runs()
        self.names: dict[str, set[str]] = {}
        self.sizes: dict[str, set[int]] = {}  # of the runs that begin so

    def add(self, name: str, text: str) -> int:
        """How many runs the passage has."""
        size, found = self.runs.of(text)
        for run in found:
            self.names.setdefault(run, set()).add(name)
            self.sizes.setdefault(" ".join(run.split(" ", HEAD)[:HEAD]), set()).add(size)
        return len(found)

    def shared(self, text: str) -> dict[str, list[tuple[int, int]]]:
        """Each run that the text has too, and where: (first unit, one after the last)."""
        parts = [part.casefold() for part in units(text)]
        found: dict[str, list[tuple[int, int]]] = {}
        for first, head in enumerate(ngrams(parts, HEAD)):
            for size in self.sizes.get(head, ()):
                run = " ".join(parts[first : first + size])
                if run in self.names:
                    found.setdefault(run, []).append((first, first + size))
        return found


def passages(record: Any) -> Iterator[str]:
    """All strings of a record, however deep."""
    if isinstance(record, str):
        yield record
    elif isinstance(record, dict | list):
        for item in record.values() if isinstance(record, dict) else record:
            yield from passages(item)


def records(path: str | Path) -> Iterator[tuple[int, Any]]:
    """(line, record) of a JSON Lines file; of any other, each line as a string."""
    lines = ".jsonl" in Path(path).name
    with Input(path) as file:
        for number, offset, line in file.lines():
            text = decode(line, path, offset).strip()
            try:
                if text:
                    yield number, json.loads(text) if lines else text
            except json.JSONDecodeError:
                raise UserError(f"{path}, line {number}: not JSON; correct or remove the line.") from None


class Decontaminate(Step):
    """Takes what evaluation sets have out of the corpus. `counts` has the documents and runs met of each set.

    Args:
        files: evaluation sets as JSON Lines, or texts, a passage a line.
        keys: the fields of a record that are compared; None for every string in it.
        n, characters, minimum, minimum_characters: see `Runs`.
        action: "drop" the document; or "cut" each run out of it with `around` characters on both sides: what is left
            are documents of their own, in the same split, as GPT-3's were.
        shortest: characters; a shorter piece goes.
        most_pieces: a document that would fall into more goes.
    """

    name = "contamination"

    def __init__(
        self,
        files: list[str] | str,
        keys: list[str] | None = None,
        n: int = 13,
        characters: int = 13,
        minimum: int = 8,
        minimum_characters: int = 10,
        action: Literal["drop", "cut"] = "drop",
        around: int = 200,
        shortest: int = 200,
        most_pieces: int = 10,
        only: list[str] | None = None,
    ):
        super().__init__(only)
        if not HEAD <= minimum <= n or not HEAD <= minimum_characters <= characters:
            raise UserError(
                f"Decontaminate: {HEAD} <= minimum {minimum} <= n {n} must hold, and the same of minimum_characters "
                f"{minimum_characters} and characters {characters}."
            )
        if action not in ("drop", "cut"):
            raise UserError(f"Decontaminate: action {action!r} must be drop or cut.")
        self.action, self.around, self.shortest, self.most_pieces = action, around, shortest, most_pieces
        self.index = Index(Runs(n, characters, minimum, minimum_characters))
        for path in [files] if isinstance(files, str) else files:
            name = Path(path).name.split(".")[0]
            for number, record in records(path):
                if keys and isinstance(record, dict):
                    if missing := [key for key in keys if key not in record]:
                        raise UserError(f"{path}, line {number}: no field {missing[0]!r}; correct `keys`.")
                    record = [record[key] for key in keys]
                for text in passages(record):
                    self.index.add(name, text)
        if not self.index.names:
            raise UserError(f"Decontaminate: no passage of {files} has {minimum} words; lower minimum.")

    def __call__(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            if not self.concerns(document) or not (found := self.index.shared(document.text)):
                yield document
                continue
            sets = {name for run in found for name in self.index.names[run]}
            self.counts.update({f"documents that share with {name}": 1 for name in sets})
            self.counts["runs shared"] += len(found)
            reason = f"shares with {', '.join(sorted(sets))}"
            pieces = self.pieces(document.text, found) if self.action == "cut" else []
            if not pieces or len(pieces) > self.most_pieces:
                self.drop(document, reason)
                continue
            self.counts["documents cut"] += 1
            group = document.meta.get("group") or document.text
            for number, piece in enumerate(pieces, 1):
                meta = document.meta | {"group": group}
                yield document._replace(id=f"{document.id}/{number}", text=piece, meta=meta)

    def pieces(self, text: str, found: dict[str, list[tuple[int, int]]]) -> list[str]:
        """What is left of a text."""
        spans = [match.span() for match in UNIT.finditer(text)]
        gone = bytearray(len(text))
        for first, end in (place for places in found.values() for place in places):
            left, right = max(0, spans[first][0] - self.around), min(len(text), spans[end - 1][1] + self.around)
            gone[left:right] = b"\1" * (right - left)
        kept, start = [], 0
        while start < len(text):
            end = gone.find(1 - gone[start], start)
            end = len(text) if end < 0 else end
            if not gone[start] and len(piece := text[start:end].strip()) >= self.shortest:
                kept.append(piece)
            start = end
        return kept
