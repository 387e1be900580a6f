"""The document, and the file between the steps of a corpus: `documents.jsonl.zst`, one JSON object a line."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import zstandard

from athanor.corpus.files import Input, parsed, whole
from athanor.errors import UserError

FILENAME = "documents.jsonl.zst"
UNDETERMINED = "und"  # BCP 47


class Document(NamedTuple):
    """One text.

    id: unique in its file.
    source: the name its source has in the experiment.
    language: BCP 47 code, "und" where nobody said.
    meta: what else is known of it. Documents with an equal `meta["group"]` go to the same split;
        `meta["format"] == "html"` marks a text that still is markup.
    """

    id: str
    text: str
    source: str
    language: str = UNDETERMINED
    meta: dict[str, Any] = {}  # noqa: RUF012 - never changed in place

    @property
    def size(self) -> int:
        """Bytes of the text in UTF-8."""
        return len(self.text) if self.text.isascii() else len(self.text.encode("utf-8", "replace"))


class Keyed(Document):
    """A document that brings along what the next steps know it by: step -> key. A changed copy of it has none."""

    keys: Mapping[Any, bytes] = MappingProxyType({})


def write_documents(path: str | Path, documents: Iterable[Document]) -> int:
    """Write them, whole or not at all, and return their number. Equal documents give equal bytes."""
    count = 0
    compressor = zstandard.ZstdCompressor(level=6, write_checksum=True)
    with whole(path) as temporary, open(temporary, "wb") as file, compressor.stream_writer(file) as stream:
        for document in documents:
            line = json.dumps(document._asdict(), ensure_ascii=False, separators=(",", ":"))
            stream.write(line.encode() + b"\n")
            count += 1
    return count


def read_documents(path: str | Path) -> Iterator[Document]:
    with Input(path) as file:
        for number, offset, line in file.lines():
            try:
                yield Document(**parsed(line, path, offset))
            except (json.JSONDecodeError, TypeError):
                raise UserError(f"{path}, line {number}: not a document; prepare the documents again.") from None


def documents_of(run: str | Path) -> Iterator[Document]:
    """The documents that a finished run wrote, its hash verified."""
    from athanor.runs.store import open_run

    return read_documents(open_run(str(run)).path(FILENAME))
