"""What cleaning a corpus will need, from a sample of its own files: core-hours, disk, memory, documents, tokens.

A sample of each source is read and cleaned here, with the steps of the experiment, and everything is taken to grow with
the bytes of the files: v(size) = v(sample) * size / bytes of the sample. Two parts are told apart: the steps that ask
nothing but the document, which any number of cores share, and those that compare documents, which are one stream a
block. A block holds what the memory of a process allows; duplicates across blocks stay (see docs/scale-data.md).
"""

import json
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from athanor import config
from athanor.corpus import parts
from athanor.corpus.deduplicate import ExactDuplicates, NearDuplicates, SimilarDuplicates, bands, tables
from athanor.corpus.documents import FILENAME, Document, read_documents, write_documents
from athanor.corpus.prepare import PrepareDocuments
from athanor.corpus.steps import Step
from athanor.errors import UserError

if TYPE_CHECKING:
    from athanor.config import Experiment

GIB = 2**30
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)b?", re.I)
ENCODED = 6.6e6  # bytes of text that become shards in a CPU second, with all that WriteShards does; measured on 2 cores
BYTES_A_TOKEN = 3.5  # of English and Chinese at 16,384 to 32,768 pieces, docs/corpus.md
FILLED = 0.8  # of a process' memory that comparisons may take
SMALLEST = 200  # documents of a sample that says something


class Sample(NamedTuple):
    """What was measured. Bytes of files are compressed, of texts UTF-8; seconds are of one core.

    read: documents read. single: left by the steps that ask for no other document. kept: left by all.
    """

    files: float
    read: int
    single: int
    kept: int
    text: int
    single_disk: int
    kept_disk: int
    single_seconds: float
    compared_seconds: float


class CorpusPlan(NamedTuple):
    """held: bytes of memory that comparisons keep of a document; unknown: steps that keep something besides."""

    experiment: str
    size: float
    sample: Sample
    cores: int
    memory: float  # GiB of a process
    held: int
    unknown: list[str]

    @property
    def factor(self) -> float:
        return self.size / self.sample.files

    @property
    def single_hours(self) -> float:
        return self.sample.single_seconds * self.factor / 3600

    @property
    def compared_hours(self) -> float:
        return self.sample.compared_seconds * self.factor / 3600

    @property
    def encoding_hours(self) -> float:
        return self.sample.text * self.factor / ENCODED / 3600

    @property
    def core_hours(self) -> float:
        return self.single_hours + self.compared_hours + self.encoding_hours

    @property
    def blocks(self) -> int:
        """Streams into which the comparison must be cut for the memory there is."""
        return max(1, math.ceil(self.sample.single * self.factor * self.held / (FILLED * self.memory * GIB)))

    @property
    def hours(self) -> float:
        """By the clock: the first part and the encoding on all cores, the comparison on one a block."""
        shared = (self.single_hours + self.encoding_hours) / self.cores
        return shared + self.compared_hours / min(self.blocks, self.cores)

    @property
    def tokens(self) -> float:
        return self.sample.text * self.factor / BYTES_A_TOKEN

    def as_json(self) -> str:
        told = {name: getattr(self, name) for name in ("factor", "blocks", "hours", "tokens", "core_hours")}
        told |= {name: getattr(self, name) for name in ("single_hours", "compared_hours", "encoding_hours")}
        return json.dumps({**self._asdict(), "sample": self.sample._asdict(), **told}, indent=2)


def size_in_bytes(text: str) -> float:
    """100TB, 1.5 GB, 20GiB.

    Raises:
        UserError: it is no size.
    """
    found = SIZE.fullmatch(text.strip())
    if not found or not float(found[1]):
        raise UserError(f"size={text} is no size; write it as 500GB, 100TB or 20GiB.")
    unit = found[2].lower()
    return float(found[1]) * (1024 ** ("kmgtp".index(unit) + 1) if found[3] and unit else UNITS[unit])


def plan(experiment: "Experiment", size: float, sample: float, cores: int, memory: float) -> CorpusPlan:
    """
    Args:
        size: bytes of files, as they are stored.
        sample: bytes of files to measure on.
        cores: that there will be.
        memory: GiB of a process.

    Raises:
        UserError: the experiment does not prepare documents, or its files are too few to measure on.
    """
    if cores < 1 or memory <= 0:
        raise UserError(f"--cores {cores} must be at least 1, --memory {memory} positive.")
    job = config.build(experiment.config["job"])
    if not isinstance(job, PrepareDocuments):
        raise UserError(f"{experiment.name} prepares no documents; size= is for such experiments.")
    measured = measure(job, sample)
    compared = job.steps[len(parts.leading(job.steps)) :]
    known = {step: held_of(step) for step in compared}
    unknown = [step.name for step, held in known.items() if held is None and not step.alone]
    return CorpusPlan(
        experiment.name, size, measured, cores, memory, sum(held or 0 for held in known.values()), unknown
    )


def measure(job: PrepareDocuments, budget: float) -> Sample:
    """Cleans a sample, of each source in proportion to its size, in this process."""
    steps = parts.leading(job.steps)
    total = sum(source.bytes_total for source in job.sources)
    if not total:
        raise UserError("the files are empty, or on a server that does not say their size; measure on local ones.")
    files = 0.0

    def read() -> Iterator[Document]:
        nonlocal files
        for source in job.sources:
            share = 0
            for document in source:
                share = source.bytes_read
                yield document
                if share >= budget * source.bytes_total / total:
                    break
            else:
                share = source.bytes_total
            files += share

    before, after = [0] * (len(steps) + 1), [0] * (len(job.steps) - len(steps) + 1)
    text = 0
    with tempfile.TemporaryDirectory(prefix="athanor-") as folder, ExitStack() as stack:
        single, kept = Path(folder) / "single.jsonl.zst", Path(folder) / FILENAME
        start = time.process_time()
        keyed = parts.keyed(job.steps)
        keys = [stack.enter_context(tempfile.TemporaryFile()) for _ in keyed]
        write_documents(single, parts.with_keys_written(parts.flow(read(), steps, before), keyed, keys))
        middle = time.process_time()
        for file in keys:
            file.seek(0)
        documents = parts.with_keys_read(read_documents(single), keyed, keys)
        write_documents(kept, parts.flow(documents, job.steps[len(steps) :], after))
        end = time.process_time()
        if before[0] < SMALLEST:
            raise UserError(
                f"the sample has {before[0]} documents, too few to measure on; raise --sample, or take an experiment "
                f"whose files have {SMALLEST}."
            )
        text = sum(document.size for document in read_documents(kept))
        signatures = sum(os.fstat(file.fileno()).st_size for file in keys)
        sizes = single.stat().st_size + signatures, kept.stat().st_size
    return Sample(files, before[0], before[-1], after[-1], text, *sizes, middle - start, end - middle)


def held_of(step: Step) -> int | None:
    """Bytes of memory that a step keeps of each document; None where that is not known."""
    if isinstance(step, NearDuplicates):
        return 4 * step.permutations + 12 * bands(step.threshold, step.permutations)
    if isinstance(step, SimilarDuplicates):
        return 8 + 12 * len(tables(step.distance, 1 << 24))
    if isinstance(step, ExactDuplicates):
        return 180  # a key, a number and their place in a dict
    return None


def rows(plan: CorpusPlan) -> list[tuple[str, str, str]]:
    """(what, in the sample, in all) for people."""
    from athanor.planning.show import count

    sample, factor = plan.sample, plan.factor
    numbers = [
        ("bytes of files", sample.files), ("documents read", sample.read),
        ("  left by the steps that look at one", sample.single), ("  left by all", sample.kept),
        ("bytes of text", sample.text), ("disk: parts, while it runs", sample.single_disk),
        ("disk: documents", sample.kept_disk),
    ]  # fmt: skip
    shown = [(name, count(value), count(value * factor)) for name, value in numbers]
    token_bytes = 2 * sample.text / BYTES_A_TOKEN
    shown.append((f"disk: shards, at {BYTES_A_TOKEN} bytes a token", count(token_bytes), count(token_bytes * factor)))
    shown.append(("tokens", count(sample.text / BYTES_A_TOKEN), count(plan.tokens)))
    for name, seconds, hours in (
        ("core-hours: steps that look at one document", sample.single_seconds, plan.single_hours),
        ("core-hours: steps that compare documents", sample.compared_seconds, plan.compared_hours),
        (f"core-hours: encoding, at {ENCODED / 1e6} MB/s", sample.text / ENCODED, plan.encoding_hours),
    ):
        shown.append((name, f"{seconds:.1f} s", f"{hours:,.0f}"))
    shown.append(("core-hours", "", f"{plan.core_hours:,.0f}"))
    held = sample.single * plan.held
    shown.append((f"memory of comparisons, {plan.held} bytes a document", count(held), count(held * factor)))
    shown.append((f"blocks of {plan.memory:g} GiB", "", f"{plan.blocks:,}"))
    shown.append((f"days on {plan.cores:,} cores", "", f"{plan.hours / 24:,.1f}"))
    return shown
