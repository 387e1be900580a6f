"""Which vocabulary to take, and how to enlarge one: a sweep over sizes and methods, and pieces added to a tokenizer."""

import json
import re
from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Literal

from athanor.corpus.documents import Document, documents_of
from athanor.corpus.tokenizer import (
    FILENAME,
    LINE_BREAK,
    MEASURED,
    Tokenizer,
    TrainTokenizer,
    fraction,
    measure,
    parsed,
)
from athanor.errors import UserError

if TYPE_CHECKING:
    from athanor.runs.context import RunContext

Method = Literal["bpe", "unigram"]


class SweepVocabularies:
    """Trains a tokenizer of each size by each method, and measures them all on documents that none has seen.

    Writes {method}-{size}.model for each, and sweep.json:

        {"held_out": {"documents", "bytes"}, "tokenizers": [{"model_type", "vocabulary_size", "file", ...}]}

    with what `athanor.corpus.tokenizer.measure` says of each, and "seconds" of its training. The data card shows them.

    Args:
        documents: directory of a run that prepared documents, or several.
        vocabulary_sizes: of all pieces.
        model_types: bpe, unigram or both.
        held_out: share of the documents, by the hash of their text, for measuring.
        character_coverage, split_digits, max_bytes: as of TrainTokenizer.
    """

    def __init__(
        self,
        documents: str | list[str],
        vocabulary_sizes: list[int],
        model_types: list[Method] = ["bpe"],  # noqa: B006
        held_out: float = 0.05,
        character_coverage: float = 0.9995,
        split_digits: bool = True,
        max_bytes: int | None = 20_000_000,
    ):
        if not vocabulary_sizes or not model_types:
            raise UserError("SweepVocabularies: name at least one of vocabulary_sizes and of model_types.")
        if not 0 < held_out < 1:
            raise UserError(f"SweepVocabularies: held_out {held_out} must lie between 0 and 1.")
        self.documents = [documents] if isinstance(documents, str) else list(documents)
        self.held_out = held_out
        self.max_bytes = max_bytes
        self.jobs = [
            TrainTokenizer(self.documents, size, method, character_coverage, split_digits)
            for method, size in product(dict.fromkeys(model_types), sorted({*vocabulary_sizes}))
        ]

    def run(self, run: "RunContext") -> dict[str, float]:
        held = [document for document in self.read() if fraction(document.text) < self.held_out]
        total = sum(len(document.text.encode()) for document in self.read())
        if not held or len(held) == sum(1 for _ in self.read()):
            raise UserError(f"held_out {self.held_out} leaves no document on one side; change it or add documents.")
        size = sum(len(document.text.encode()) for document in held)
        held = [
            document for document in held if fraction(document.text) < self.held_out * MEASURED / max(size, MEASURED)
        ]
        most = 1.0 if self.max_bytes is None else min(1.0, self.max_bytes / max(1, total))
        found = []
        for number, job in enumerate(self.jobs):
            run.progress.stage(f"{job.model_type} {job.vocabulary_size:,}")
            run.progress.update(number, len(self.jobs))
            name = f"{job.model_type}-{job.vocabulary_size}.model"
            model = job.train(self.lines(most))
            with run.temporary(name) as path:
                path.write_bytes(model)
            tokenizer = Tokenizer(run.directory / name)
            known = {"model_type": job.model_type, "vocabulary_size": job.vocabulary_size, "file": name}
            found.append(known | measure(tokenizer, held))
        run.progress.update(len(self.jobs), len(self.jobs))
        told = {"documents": len(held), "bytes": sum(len(document.text.encode()) for document in held)}
        with run.temporary("sweep.json") as path:
            path.write_text(json.dumps({"held_out": told, "tokenizers": found}, indent=1) + "\n", encoding="utf-8")
        return {
            f"bytes_per_token/{one['model_type']}-{one['vocabulary_size']}/{language}": rate
            for one in found
            for language, rate in one["bytes_per_token"].items()
        }

    def lines(self, share: float) -> Iterator[str]:
        """Of the documents that are not held out, of as many as `share` says."""
        for document in self.read():
            place = (fraction(document.text) - self.held_out) / (1 - self.held_out)
            if 0 <= place < share:
                yield from filter(None, LINE_BREAK.split(document.text))

    def read(self) -> Iterator[Document]:
        for run in self.documents:
            yield from documents_of(run)


class ExtendTokenizer:
    """Adds the pieces that other documents want most to a tokenizer; every old piece keeps its id.

    As Cui et al. (2023, arXiv:2304.08177) gave LLaMA Chinese: a tokenizer of the same method is trained on the new
    documents, and its pieces that the old one lacks follow the old ones, in their order; byte-pair merges come after
    all old merges. Writes tokenizer.model and tokenizer.json, with "before" and "after" of what `measure` says.

    Args:
        tokenizer: directory of a run that trained one, or a model file.
        documents: directory of a run that prepared documents, or several.
        added: pieces.
        character_coverage: of the new documents.
        max_bytes: train on about so many, of documents drawn by the hash of their text. None is all.
    """

    def __init__(
        self,
        tokenizer: str,
        documents: str | list[str],
        added: int,
        character_coverage: float = 0.9995,
        max_bytes: int | None = None,
    ):
        if added < 1:
            raise UserError(f"ExtendTokenizer: added {added} must be at least 1.")
        self.tokenizer = tokenizer
        self.documents = [documents] if isinstance(documents, str) else list(documents)
        self.added = added
        self.character_coverage = character_coverage
        self.max_bytes = max_bytes

    def run(self, run: "RunContext") -> dict[str, float]:
        old = Tokenizer(self.tokenizer)
        proto = parsed(old.model.read_bytes())
        method: Method = "unigram" if proto.trainer_spec.model_type == proto.trainer_spec.UNIGRAM else "bpe"
        sizes: dict[str, int] = {}
        for document in self.read():
            sizes[document.language] = sizes.get(document.language, 0) + len(document.text.encode())
        share = 1.0 if self.max_bytes is None else min(1.0, self.max_bytes / max(1, sum(sizes.values())))

        def lines() -> Iterator[str]:
            for document in self.read():
                if fraction(document.text) < share:
                    yield from filter(None, LINE_BREAK.split(document.text))

        run.progress.stage("training")
        # It has as many pieces as the old one and those to add, so that at least these are new.
        wanted = old.vocabulary_size + self.added
        job = TrainTokenizer(self.documents, wanted, method, self.character_coverage, proto.trainer_spec.split_digits)
        try:
            new = parsed(job.train(lines()))
        except UserError as error:
            if not (largest := re.search(r"the largest is (\d+)", str(error))):
                raise
            most = max(0, int(largest[1]) - old.vocabulary_size)
            raise UserError(f"added {self.added} is too many for these documents; the most is {most}.") from None
        known = {piece.piece for piece in proto.pieces}
        fresh = [piece for piece in new.pieces if piece.type == piece.NORMAL and piece.piece not in known]
        lowest = min(piece.score for piece in proto.pieces)
        for rank, piece in enumerate(fresh[: self.added], 1):
            score = piece.score if method == "unigram" else lowest - rank
            proto.pieces.add(piece=piece.piece, score=score)
        proto.trainer_spec.vocab_size = len(proto.pieces)
        with run.temporary(FILENAME) as path:
            path.write_bytes(proto.SerializeToString())
        tokenizer = Tokenizer(run.directory / FILENAME)
        run.progress.stage("measuring")
        sample = [d for d in self.read() if fraction(d.text) < MEASURED / max(1, sizes[d.language])]
        before, after = measure(old, sample), measure(tokenizer, sample)
        account = {"model_type": method, "vocabulary_size": tokenizer.vocabulary_size, **after, "trained_on": sizes}
        account |= {"extended_from": old.vocabulary_size, "before": before}
        with run.temporary("tokenizer.json") as path:
            path.write_text(json.dumps(account, indent=1) + "\n", encoding="utf-8")
        return {
            f"bytes_per_token/{language}{moment}": rate
            for moment, found in (("", after), ("/before", before))
            for language, rate in found["bytes_per_token"].items()
        }

    def read(self) -> Iterator[Document]:
        for run in self.documents:
            yield from documents_of(run)
