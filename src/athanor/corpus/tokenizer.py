"""Text to token ids and back, exactly: SentencePiece without any normalization, every unknown character as its bytes.

For every string, decode(encode(text)) == text. The roles of a chat are control symbols: no text, whoever wrote it,
encodes to their ids; templates put them in by id.
"""

import io
import json
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cached_property
from hashlib import blake2b
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import sentencepiece

from athanor.corpus.documents import Document, documents_of
from athanor.corpus.units import units
from athanor.errors import UserError

if TYPE_CHECKING:
    from athanor.runs.context import RunContext

FILENAME = "tokenizer.model"
SPECIAL = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
META_SPACE = "▁"  # U+2581, in which SentencePiece writes spaces
# SentencePiece learns from lines. Newlines and tabs encode as bytes, and a text's own U+2581 must not teach spaces.
LINE_BREAK = re.compile(f"[\n\t{META_SPACE}]")
ASCII = "".join(map(chr, range(0x21, 0x7F)))  # pieces whatever the coverage: digits above all
SURROGATE = re.compile("[\ud800-\udfff]")
WORD = re.compile(r" *[^ \n\t]+| +|[\n\t]+")  # a text is its words, one after the other
ACROSS = re.compile(f"[^{META_SPACE}]{META_SPACE}|.[\n\t]|[\n\t].", re.DOTALL)  # a piece that reaches beyond a word
MANY = 20_000  # characters of a batch from which on its words are told apart
MOST_WORDS, LONGEST_WORD = 1 << 18, 40  # held, in characters
MEASURED = 2_000_000  # bytes of text in each language on which compression is measured


class Tokenizer:
    """A trained tokenizer.

    special: ids of the chat roles.
    bytes: ids of single bytes, newline and tab aside.
    model: the file it is read from.

    Args:
        path: a `tokenizer.model`, or the directory of a run that has one (its hash is then verified).
    """

    def __init__(self, path: str | Path):
        model = Path(path)
        if model.is_dir():
            from athanor.runs.store import open_run

            model = open_run(str(path)).path(FILENAME)
        if not model.is_file():
            raise UserError(f"{model} does not exist; train a tokenizer first.")
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model.read_bytes())
        except RuntimeError:
            raise UserError(f"{model} is not a SentencePiece model; train the tokenizer again.") from None
        ids = {piece: self.processor.piece_to_id(piece) for piece in (*SPECIAL, "<0x00>")}
        if missing := [piece for piece, index in ids.items() if index == self.processor.unk_id()]:
            raise UserError(
                f"{path} lacks {', '.join(missing)}; train the tokenizer with athanor.corpus.tokenizer.TrainTokenizer."
            )
        self.special = {piece: ids[piece] for piece in SPECIAL}
        self.vocabulary_size: int = self.processor.vocab_size()
        self.pad_id: int = self.processor.pad_id()
        self.bos_id: int = self.processor.bos_id()
        self.eos_id: int = self.processor.eos_id()
        self.unk_id: int = self.processor.unk_id()
        self.model = model
        self.bytes = {self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256) if byte not in b"\n\t"}
        self.meta_space = [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in META_SPACE.encode()]

    def encode(self, text: str) -> list[int]:
        """Neither beginning nor end of sequence is added."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str], threads: int = 1) -> list[list[int]]:
        parts = [text.split(META_SPACE) for text in texts]
        flat = [part for split in parts for part in split]
        words = self.words if sum(map(len, flat)) >= MANY else None
        try:
            if words is None:
                encoded = iter(self.processor.encode(flat, num_threads=threads))
            else:
                encoded = iter(words.encode(flat, threads))
        except (RuntimeError, TypeError):
            if any(map(SURROGATE.search, texts)):
                raise UserError("a text has half of a surrogate pair, which nothing can write; mend it.") from None
            raise
        batch = []
        for split in parts:
            ids = list(next(encoded))
            for _ in split[1:]:
                ids += self.meta_space
                ids += next(encoded)
            batch.append(ids)
        return batch

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Bytes that are not UTF-8 become U+FFFD; ids beyond the vocabulary, as a model may have, are left out.

        Args:
            special: write the chat roles out; otherwise they, like padding and the ends of sequences, are left out.
        """
        ids = [index for index in map(int, ids) if index < self.vocabulary_size]
        if not special:
            return self.processor.decode(ids)
        names = {index: piece for piece, index in self.special.items()}
        text, plain = "", list[int]()
        for index in ids:
            if index in names:
                text += self.processor.decode(plain) + names[index]
                plain = []
            else:
                plain.append(index)
        return text + self.processor.decode(plain)

    def spans(self, text: str) -> list[tuple[int, int, int]]:
        """(id, begin, end) of the characters that each token of `encode` stands for, of the bytes of one all the same.

        Up to the first token that is not spelt as the text is.
        """
        found: list[tuple[int, int, int]] = []
        position = written = 0  # written: bytes of the character at `position`
        for index in self.encode(text):
            if self.processor.is_byte(index) and position < len(text):
                found.append((index, position, position + 1))
                written += 1
                if written == len(text[position].encode("utf-8", "replace")):
                    position, written = position + 1, 0
                continue
            piece = self.piece(index).replace(META_SPACE, " ")
            if not text.startswith(piece, position):
                piece = piece.lstrip(" ")
            if written or not text.startswith(piece, position):
                break
            found.append((index, position, position + len(piece)))
            position += len(piece)
        return found

    @cached_property
    def words(self) -> "Words | None":
        """What encodes word by word, with the same ids; None where the model is not known to allow it."""
        proto = parsed(self.model.read_bytes())
        trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
        changed = normalizer.precompiled_charsmap or normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces
        if trainer.model_type != trainer.BPE or trainer.treat_whitespace_as_suffix or changed:
            return None
        across = any(piece.type == piece.USER_DEFINED or ACROSS.search(piece.piece) for piece in proto.pieces)
        return None if across else Words(self.processor)

    @cached_property
    def beginnings(self) -> dict[str, list[int]]:
        """Character -> ids of the pieces that begin with it."""
        found: dict[str, list[int]] = {}
        for index in range(self.vocabulary_size):
            found.setdefault(self.piece(index).lstrip(META_SPACE)[:1], []).append(index)
        return found

    def piece(self, index: int) -> str:
        """What the vocabulary shows for an id, spaces as U+2581."""
        return self.processor.id_to_piece(int(index))


class Words(dict[str, list[int]]):
    """The ids of words met before, for most words of a text have been: texts with spaces encode twice as fast.

    Merges of byte-pair encoding meet where a piece could be made of both sides. Where no piece of the vocabulary has
    a space after another character, none can be made across the beginning of a word, and each encodes alone as it
    does in the text. A unigram model adds up scores along the whole text, whose rounding decides between equals.
    """

    def __init__(self, processor: sentencepiece.SentencePieceProcessor):
        super().__init__()
        self.processor = processor

    def __missing__(self, word: str) -> list[int]:
        ids = self.processor.encode(word)
        if len(self) < MOST_WORDS and len(word) <= LONGEST_WORD:
            self[word] = ids
        return ids

    def encode(self, texts: list[str], threads: int = 1) -> list[list[int]]:
        """Those with few spaces, such as Chinese ones, as a whole."""
        spaced = [text.count(" ") * 16 > len(text) for text in texts]
        whole = [text for text, known in zip(texts, spaced) if not known]
        others = iter(self.processor.encode(whole, num_threads=threads))
        return [
            list(chain.from_iterable(map(self.__getitem__, WORD.findall(text)))) if known else next(others)
            for text, known in zip(texts, spaced)
        ]


def parsed(model: bytes) -> Any:
    """A SentencePiece model as its protocol buffer."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(model)
    return proto


def encode_in_processes(tokenizer: Tokenizer, batches: Iterable[list[str]], workers: int) -> Iterator[list[list[int]]]:
    """The ids of each batch, in order, whatever the number of processes; few batches are in flight at a time."""
    if workers < 2:
        yield from map(tokenizer.encode_batch, batches)
        return
    waiting: deque[Future] = deque()
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _load, (str(tokenizer.model),))
    try:
        for batch in batches:
            waiting.append(pool.submit(_encode, batch))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


_tokenizer: Tokenizer | None = None  # of a process of the pool


def _load(model: str) -> None:
    global _tokenizer
    _tokenizer = Tokenizer(model)


def _encode(batch: list[str]) -> list[list[int]]:
    assert _tokenizer is not None
    return _tokenizer.encode_batch(batch)


class TrainTokenizer:
    """Trains on prepared documents; writes tokenizer.model and tokenizer.json.

        {"model_type", "vocabulary_size", "bytes_per_token", "fertility", "as_bytes", "round_trip", "documents",
         "trained_on": {language: bytes}}

    as `measure` says them.

    Training is single-threaded, so that equal documents give equal bytes.

    Args:
        documents: directory of a run that prepared documents, or several.
        model_type: byte-pair encoding or unigram language model.
        vocabulary_size: of all pieces, with 256 bytes, 4 roles, padding, beginning, end, unknown. A multiple of
            64 suits matrices.
        character_coverage: share of the text's characters that get a piece of their own; the rest become bytes.
        split_digits: every digit is a token.
        max_bytes: train on about so many bytes, of documents drawn by the hash of their text. None is all.
    """

    def __init__(
        self,
        documents: str | list[str],
        vocabulary_size: int,
        model_type: Literal["bpe", "unigram"] = "bpe",
        character_coverage: float = 0.9995,
        split_digits: bool = True,
        max_bytes: int | None = None,
    ):
        self.documents = [documents] if isinstance(documents, str) else list(documents)
        self.vocabulary_size = vocabulary_size
        self.model_type = model_type
        self.character_coverage = character_coverage
        self.split_digits = split_digits
        self.max_bytes = max_bytes
        if not 0.98 <= character_coverage <= 1:
            raise UserError(f"character_coverage {character_coverage} must lie between 0.98 and 1.")
        if vocabulary_size > 2**31 - 1 or vocabulary_size < 1:
            raise UserError(f"vocabulary_size {vocabulary_size} must be a positive number below 2^31.")

    def run(self, run: "RunContext") -> dict[str, float]:
        run.progress.stage("reading")
        sizes: dict[str, int] = {}
        for document in self.read():
            sizes[document.language] = sizes.get(document.language, 0) + len(document.text.encode())
        total = sum(sizes.values())
        share = 1.0 if self.max_bytes is None else min(1.0, self.max_bytes / total)
        trained: dict[str, int] = {}

        def lines() -> Iterator[str]:
            done = 0
            for document in self.read():
                length = len(document.text.encode())
                done += length
                run.progress.update(done, total)
                if fraction(document.text) < share:
                    trained[document.language] = trained.get(document.language, 0) + length
                    yield from filter(None, LINE_BREAK.split(document.text))
            run.progress.stage("training")

        model = self.train(lines())
        with run.temporary(FILENAME) as path:
            path.write_bytes(model)
        tokenizer = Tokenizer(run.directory / FILENAME)

        run.progress.stage("measuring")

        def measured() -> Iterator[Document]:
            done = 0
            for document in self.read():
                done += len(document.text.encode())
                run.progress.update(done, total)
                if fraction(document.text) < MEASURED / max(1, sizes[document.language]):
                    yield document

        account = {
            "model_type": self.model_type,
            "vocabulary_size": tokenizer.vocabulary_size,
            **measure(tokenizer, measured()),
            "trained_on": dict(sorted(trained.items())),
        }
        with run.temporary("tokenizer.json") as path:
            path.write_text(json.dumps(account, indent=1) + "\n", encoding="utf-8")
        return {f"bytes_per_token/{language}": value for language, value in account["bytes_per_token"].items()}

    def read(self) -> Iterator[Document]:
        for run in self.documents:
            yield from documents_of(run)

    def train(self, lines: Iterator[str]) -> bytes:
        writer = io.BytesIO()
        failures: list[BaseException] = []  # SentencePiece turns them, interrupts too, into a RuntimeError

        def guarded() -> Iterator[str]:
            try:
                yield from lines
            except BaseException as failure:
                failures.append(failure)
                raise

        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=guarded(),
                model_writer=writer,
                model_type=self.model_type,
                vocab_size=self.vocabulary_size,
                character_coverage=self.character_coverage,
                required_chars=ASCII,
                split_digits=self.split_digits,
                byte_fallback=True,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                control_symbols=list(SPECIAL),
                pad_id=0,
                bos_id=1,
                eos_id=2,
                unk_id=3,
                max_sentence_length=2**30,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            if failures:
                raise failures[0] from None
            raise UserError(self.explain(str(error))) from None
        model = writer.getvalue()
        size = sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()
        if size < self.vocabulary_size:
            raise UserError(self.too_large(size))
        return model

    def explain(self, message: str) -> str:
        if found := re.search(r"set it to a value <= (\d+)", message):
            return self.too_large(int(found[1]))
        if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
            return (
                f"vocabulary_size {self.vocabulary_size} is too small: the characters that character_coverage asks for "
                f"need {found[1]}; enlarge it or lower character_coverage."
            )
        if "!sentences_.empty()" in message:
            return "there is no text to train a tokenizer on; enlarge max_bytes or add documents."
        return f"SentencePiece cannot train on these documents: {message}"

    def too_large(self, largest: int) -> str:
        return f"vocabulary_size {self.vocabulary_size} is too large for these documents; the largest is {largest}."


def measure(tokenizer: Tokenizer, documents: Iterable[Document]) -> dict[str, Any]:
    """What a tokenizer makes of texts, by language but for the last two.

    bytes_per_token: UTF-8 bytes.
    fertility: tokens a unit, which is a word, or a character of a script without spaces.
    as_bytes: share of the text's bytes that are tokens of their own since no piece has the character; newlines and tabs
        aside, which never have one.
    round_trip: share of the texts that decode to what they were. documents: how many were measured.
    """
    sizes, tokens, parts, alone = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    exact = count = 0
    for document in documents:
        language, ids = document.language, tokenizer.encode(document.text)
        sizes[language] += len(document.text.encode())
        tokens[language] += len(ids)
        parts[language] += len(units(document.text))
        alone[language] += sum(index in tokenizer.bytes for index in ids)
        exact += tokenizer.decode(ids) == document.text
        count += 1
    spoken = sorted(language for language in sizes if tokens[language])
    return {
        "bytes_per_token": {language: round(sizes[language] / tokens[language], 4) for language in spoken},
        "fertility": {language: round(tokens[language] / max(1, parts[language]), 4) for language in spoken},
        "as_bytes": {language: round(alone[language] / sizes[language], 6) for language in spoken},
        "round_trip": exact / max(count, 1),
        "documents": count,
    }


def fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, evenly spread over texts."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
