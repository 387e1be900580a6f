"""Documents as token ids on disk, ready to be mapped into memory.

Of each split there are, all little-endian:
    {split}.bin       the tokens of all documents, each as bos + text + eos, uint16 or uint32
    {split}.idx       int64 [documents + 1], where each document begins, in tokens
    {split}.info.npy  for each document the UTF-8 bytes of its text and the index of its language
and `shards.json` says the rest.
"""

import json
import os
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np

from athanor.corpus.documents import Document, documents_of
from athanor.corpus.tokenizer import Tokenizer, encode_in_processes
from athanor.errors import UserError

if TYPE_CHECKING:
    from athanor.runs.context import RunContext

SPLITS = ("train", "validation")
INFO = np.dtype([("bytes", "<i4"), ("language", "u1")])
BATCH = 256  # documents encoded at a time
WORTH_PROCESSES = 16_000_000  # bytes of text from which on each core encodes in a process of its own


class WriteShards:
    """Splits and encodes prepared documents.

    The split of a document is a function of its text (or of its `meta["group"]`) and of `split_salt` alone, so it stays
    what it is when documents are added or their order changes.

    Args:
        documents: directory of a run that prepared documents, or several.
        tokenizer: directory of a run that trained a tokenizer, or a model file.
        validation_fraction: expected share of the documents held out, in [0, 1).
        split_salt: another salt is another split.
    """

    def __init__(
        self,
        documents: str | list[str],
        tokenizer: str,
        validation_fraction: float,
        split_salt: str = "athanor",
    ):
        if not 0 <= validation_fraction < 1:
            raise UserError(f"validation_fraction {validation_fraction} must lie in [0, 1).")
        self.documents = [documents] if isinstance(documents, str) else list(documents)
        self.tokenizer = tokenizer
        self.validation_fraction = validation_fraction
        self.split_salt = split_salt

    def split_of(self, document: Document) -> str:
        key = f"{self.split_salt}\0{document.meta.get('group') or document.text}"
        position = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
        return "validation" if position < self.validation_fraction else "train"

    def run(self, run: "RunContext") -> dict[str, float]:
        run.progress.stage("encoding")
        tokenizer = Tokenizer(self.tokenizer)
        dtype = np.dtype("<u2" if tokenizer.vocabulary_size <= 2**16 else "<u4")
        spoken = set[str]()
        total = count_documents = 0
        for document in self.read():
            spoken.add(document.language)
            total += document.size
        languages = sorted(spoken)
        if len(languages) > 255:
            raise UserError(
                f"the documents are in {len(languages)} languages, at most 255 fit; keep fewer in DetectLanguage."
            )
        offsets: dict[str, list[int]] = {split: [0] for split in SPLITS}
        info: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}

        done = 0
        with ExitStack() as stack:
            files = {split: stack.enter_context(run.temporary(f"{split}.bin")) for split in SPLITS}
            streams = {split: stack.enter_context(open(files[split], "wb")) for split in SPLITS}
            pending: deque[list[Document]] = deque()

            def batches() -> Iterator[list[str]]:
                documents = self.read()
                while batch := list(islice(documents, BATCH)):
                    pending.append(batch)
                    yield [document.text for document in batch]

            for encoded in encode_in_processes(tokenizer, batches(), cores() if total >= WORTH_PROCESSES else 1):
                batch = pending.popleft()
                for document, ids in zip(batch, encoded):
                    tokens = np.array([tokenizer.bos_id, *ids, tokenizer.eos_id])
                    if tokens.max() > np.iinfo(dtype).max or tokens.min() < 0:
                        raise AssertionError(f"token ids of {document.id} do not fit {dtype}")
                    split, length = self.split_of(document), document.size
                    streams[split].write(tokens.astype(dtype).tobytes())
                    offsets[split].append(offsets[split][-1] + len(tokens))
                    info[split].append((length, languages.index(document.language)))
                    done += length
                count_documents += len(batch)
                run.progress.update(done, total, documents=count_documents)
            self.check(len(info["train"]), len(info["validation"]))

        splits = {}
        for split in SPLITS:
            table = np.array(info[split], dtype=INFO)
            with run.temporary(f"{split}.idx") as path:
                path.write_bytes(np.array(offsets[split], dtype="<i8").tobytes())
            with run.temporary(f"{split}.info.npy") as path, open(path, "wb") as file:
                np.save(file, table)
            splits[split] = {
                "documents": len(table),
                "tokens": offsets[split][-1],
                "bytes": int(table["bytes"].sum(dtype=np.int64)),
            }
        account = {
            "dtype": dtype.name,
            "vocabulary_size": tokenizer.vocabulary_size,
            "languages": languages,
            "splits": splits,
        }
        with run.temporary("shards.json") as path:
            path.write_text(json.dumps(account, indent=1) + "\n", encoding="utf-8")
        return {f"{split}/{what}": splits[split][what] for split in SPLITS for what in ("documents", "tokens")}

    def read(self) -> Iterator[Document]:
        for run in self.documents:
            yield from documents_of(run)

    def check(self, train: int, validation: int) -> None:
        if not train:
            raise UserError(f"no document is left for training; lower validation_fraction {self.validation_fraction}.")
        if self.validation_fraction and not validation:
            raise UserError(
                f"none of {train} documents falls in the validation split; raise validation_fraction "
                f"{self.validation_fraction}, add documents or change split_salt."
            )


class Shards:
    """One split of the shards that a run wrote, mapped into memory, its hashes verified.

    tokens: ids, uint16 or uint32, [T]. offsets: int64 [D + 1]; document d is tokens[offsets[d]:offsets[d + 1]].
    info: structured [D], fields "bytes" and "language", an index into `languages`.
    """

    def __init__(self, run: str | os.PathLike, split: Literal["train", "validation"]):
        from athanor.runs.store import open_run

        source = open_run(str(run))
        account = json.loads(source.path("shards.json").read_text(encoding="utf-8"))
        path = source.path(f"{split}.bin")
        count = account["splits"][split]["tokens"]
        dtype = np.dtype(account["dtype"]).newbyteorder("<")
        # An empty file cannot be mapped.
        self.tokens = np.memmap(path, dtype=dtype, mode="r") if count else np.empty(0, dtype)
        self.offsets = np.fromfile(source.path(f"{split}.idx"), dtype="<i8")
        self.info = np.load(source.path(f"{split}.info.npy"))
        self.languages: list[str] = account["languages"]
        self.vocabulary_size: int = account["vocabulary_size"]
        if not len(self.tokens) == count == self.offsets[-1] or len(self.offsets) != len(self.info) + 1:
            raise UserError(f"{path} does not agree with its index; write the shards again with --force.")

    def __len__(self) -> int:
        return len(self.offsets) - 1


def cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
