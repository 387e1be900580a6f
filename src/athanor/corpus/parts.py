"""A corpus in parts, each cleaned by itself, wherever: as far as a step asks nothing but the document before it.

A part is some files of one source, one after another. The steps up to the first that compares documents (duplicates,
mixture) run on each part alone and leave its documents, its account, and the signatures by which the next steps know
each document, if they remove duplicates; the rest runs in one stream over the parts in their order. What comes out is,
to the byte, what one process alone would have written, whatever the number of parts, of processes and of attempts: a
part that was finished is kept, one that was killed left nothing and is made again, alone.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from athanor.corpus.documents import Document, Keyed, read_documents, write_documents
from athanor.corpus.files import size_of, whole
from athanor.corpus.sources import Source
from athanor.corpus.steps import SAMPLES, Step

if TYPE_CHECKING:
    from athanor.corpus.prepare import PrepareDocuments

PART_BYTES = 256 << 20  # of files, compressed, from which on a part takes no more


class Part(NamedTuple):
    """files: None where the source cannot be divided."""

    number: int
    source: int
    files: list[str] | None
    size: int

    @property
    def name(self) -> str:
        return f"{self.number:05}"


def divided(sources: Sequence[Source], part_bytes: int = PART_BYTES) -> list[Part]:
    parts: list[Part] = []

    def add(source: int, files: list[str] | None, size: int) -> None:
        parts.append(Part(len(parts), source, files, size))

    for place, source in enumerate(sources):
        if not source.divisible:
            add(place, None, source.bytes_total)
            continue
        files: list[str] = []
        size = 0
        for path in source.files:
            files.append(str(path))
            size += size_of(path)
            if size >= part_bytes:
                add(place, files, size)
                files, size = [], 0
        if files:
            add(place, files, size)
    return parts


def leading(steps: Sequence[Step]) -> list[Step]:
    return list(takewhile(lambda step: step.alone, steps))


def keyed(steps: Sequence[Step]) -> list[Step]:
    """Those behind the leading ones that compare keys: a document comes to all of them unchanged."""
    return list(takewhile(lambda step: step.keyed, steps[len(leading(steps)) :]))


def flow(documents: Iterable[Document], steps: Sequence[Step], passed: list[int]) -> Iterator[Document]:
    """Documents through steps. passed: counts of those that came to each step, and to the end, [steps + 1]."""

    def counting(documents: Iterable[Document], position: int) -> Iterator[Document]:
        for document in documents:
            passed[position] += 1
            yield document

    stream = counting(documents, 0)
    for position, step in enumerate(steps, 1):
        stream = counting(step(stream), position)
    return stream


def with_keys_written(
    documents: Iterable[Document], steps: Sequence[Step], files: Sequence[BinaryIO]
) -> Iterator[Document]:
    """Documents as they are, while each step's keys of those that concern it go to its file."""
    for document in documents:
        for step, file in zip(steps, files):
            if step.concerns(document):
                file.write(step.known_by(document))
        yield document


def with_keys_read(documents: Iterable[Document], steps: Sequence[Step], files: Sequence[BinaryIO]) -> Iterator[Keyed]:
    for plain in documents:
        document = Keyed(*plain)
        concerned = [(step, file) for step, file in zip(steps, files) if step.concerns(plain)]
        document.keys = {step: file.read(step.key_bytes) for step, file in concerned}
        yield document


class Account(NamedTuple):
    """What is known of a part besides its documents, as JSON. incoming: documents and bytes read; steps: of each its
    dropped, samples, counts and details.
    """

    key: str
    source: str
    incoming: dict[str, int]
    skipped: dict[str, int]
    faults: dict[str, str]
    passed: list[int]
    steps: list[dict[str, Any]]


def key_of(part: Part, part_bytes: int) -> str:
    """Changes with the files of a part and with the code of this package, so that an old part is not taken for it."""
    return hashlib.sha256(json.dumps([part, part_bytes, code()]).encode()).hexdigest()


@cache
def code() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_made(folder: Path, part: Part, key: str) -> bool:
    """Whether a part is there, whole: its account is written last."""
    try:
        account = json.loads((folder / f"{part.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return account.get("key") == key and (folder / f"{part.name}.jsonl.zst").exists()


def make(job: "PrepareDocuments", part: Part, folder: Path, key: str) -> None:
    """Writes a part. The job is one of its own: its steps have not seen a document."""
    source, steps, comparing = job.sources[part.source], leading(job.steps), keyed(job.steps)
    if part.files is not None:
        source.files = list(part.files)
    incoming, passed = Counter(documents=0, bytes=0), [0] * (len(steps) + 1)

    def read() -> Iterator[Document]:
        for document in source:
            incoming.update(documents=1, bytes=document.size)
            yield document

    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        paths = [stack.enter_context(whole(folder / f"{part.name}.{place}.keys")) for place in range(len(comparing))]
        files = [stack.enter_context(open(path, "wb")) for path in paths]
        stream = with_keys_written(flow(read(), steps, passed), comparing, files)
        write_documents(folder / f"{part.name}.jsonl.zst", stream)
    told = [{"dropped": s.dropped, "samples": s.samples, "counts": s.counts, "details": s.details} for s in steps]
    account = Account(key, source.name, incoming, source.skipped, source.faults, passed, told)
    with whole(folder / f"{part.name}.json") as path:
        path.write_text(json.dumps(account._asdict(), ensure_ascii=False), encoding="utf-8")


def gather(job: "PrepareDocuments", parts: Sequence[Part], folder: Path) -> tuple[dict[str, Counter[str]], list[int]]:
    """Adds the accounts of all parts, in order, to the sources and steps of a job, as if it had read them itself.

    Returns:
        (documents and bytes that came from each source, documents that came to each leading step and through them).
    """
    steps = leading(job.steps)
    incoming = {source.name: Counter(documents=0, bytes=0) for source in job.sources}
    passed = [0] * (len(steps) + 1)
    for part in parts:
        account = Account(**json.loads((folder / f"{part.name}.json").read_text(encoding="utf-8")))
        source = job.sources[part.source]
        incoming[source.name].update(account.incoming)
        source.skipped.update(account.skipped)
        source.faults = {**account.faults, **source.faults}
        passed = [a + b for a, b in zip(passed, account.passed)]
        for step, told in zip(steps, account.steps):
            step.dropped.update(told["dropped"])
            step.counts.update(told["counts"])
            step.details = told["details"] or step.details
            for reason, texts in told["samples"].items():
                samples = step.samples.setdefault(reason, [])
                samples += texts[: SAMPLES - len(samples)]
    return incoming, passed


def documents_of(job: "PrepareDocuments", parts: Sequence[Part], folder: Path) -> Iterator[Document]:
    """Those of all parts, in order, with their keys."""
    comparing = keyed(job.steps)
    for part in parts:
        with ExitStack() as stack:
            paths = [folder / f"{part.name}.{place}.keys" for place in range(len(comparing))]
            files = [stack.enter_context(open(path, "rb")) for path in paths]
            yield from with_keys_read(read_documents(folder / f"{part.name}.jsonl.zst"), comparing, files)


def clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
