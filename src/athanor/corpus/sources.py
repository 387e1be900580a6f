"""Where documents come from: a source is files, or a run, under a name, and it yields documents in order."""

import base64
import binascii
import gzip
import json
import tokenize
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

from athanor.corpus.docstrings import Docstring, docstrings
from athanor.corpus.documents import FILENAME, UNDETERMINED, Document, documents_of
from athanor.corpus.extract import decode_html
from athanor.corpus.files import LONGEST, Input, decode, naming, parsed, size_of
from athanor.corpus.normalize import rare
from athanor.errors import UserError


class Source:
    """The base: `documents` is what a subclass defines.

    files: read in this order.
    name: of the source, in reports and in the `only` of steps.
    language: of all its documents; None leaves it to the step DetectLanguage.
    licence: stated in the report.
    max_bytes: stop before the document that would exceed it (UTF-8 bytes of text).
    broken: "stop" at what cannot be read, or "skip" it: the record where records can be told apart, or else the rest of
        the file. What was skipped is counted, and the first of each kind is said in full in `cleaning.json`.
    skipped: what could not be read as a document, by reason.

    Files may be addresses of fsspec (s3://, gs://, hdfs://, https://), read in blocks. Given under `inputs` they would
    be hashed; given here, only their addresses are part of the experiment.
    """

    def __init__(
        self,
        files: list[str] | str,
        name: str,
        language: str | None = None,
        licence: str | None = None,
        max_bytes: int | None = None,
        broken: Literal["stop", "skip"] = "stop",
    ):
        if broken not in ("stop", "skip"):
            raise UserError(f"source {name}: broken {broken!r} must be stop or skip.")
        self.broken = broken
        self.files = [files] if isinstance(files, str) else list(files)
        self.name = name
        self.language = language or UNDETERMINED
        self.licence = licence
        self.max_bytes = max_bytes
        self.skipped: Counter[str] = Counter()
        self.faults: dict[str, str] = {}  # the first of each kind
        self.size: int | None = None
        self.done = 0  # bytes of the files that were read to their end, compressed
        self.current: Input | None = None
        if not self.files:
            raise UserError(f"source {name} has no files; check its glob in `inputs`.")

    @property
    def divisible(self) -> bool:
        """Whether some of its files give what they give among all, so that they can be read apart."""
        return self.max_bytes is None

    @property
    def bytes_read(self) -> int:
        return self.done + (self.current.position if self.current else 0)

    @property
    def bytes_total(self) -> int:
        if self.size is None:
            self.size = sum(map(size_of, self.files))
        return self.size

    def documents(self) -> Iterator[Document]:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Document]:
        size = 0
        for document in self.documents() if self.broken == "stop" else self.whole_documents():
            if self.max_bytes is not None:
                size += document.size
                if size > self.max_bytes:
                    return
            yield document

    def whole_documents(self) -> Iterator[Document]:
        """Those of every file up to where it is broken."""
        files = self.files
        for path in files:
            self.files = [path]
            try:
                yield from self.documents()
            except UserError as error:
                self.current = None
                self.fault("rest of a file", error)
        self.files = files

    def fault(self, what: str, error: UserError) -> None:
        """Something cannot be read: stops, or counts it."""
        if self.broken == "stop":
            raise error
        self.skipped[what] += 1
        self.faults.setdefault(what, str(error))

    def inputs(self) -> Iterator[Input]:
        """The files, opened one after another."""
        for path in self.files:
            with Input(path) as self.current:
                yield self.current
            self.done, self.current = self.done + size_of(path), None

    def document(self, identity: str, text: str, **meta: Any) -> Document:
        return Document(f"{self.name}/{identity}", text, self.name, self.language, meta)


class Text(Source):
    """Plain UTF-8 text files: a document each, or several parted by `separator`."""

    def __init__(
        self,
        files: list[str] | str,
        name: str,
        language: str | None = None,
        licence: str | None = None,
        max_bytes: int | None = None,
        separator: str | None = None,
        broken: Literal["stop", "skip"] = "stop",
    ):
        super().__init__(files, name, language, licence, max_bytes, broken)
        self.separator = separator

    def documents(self) -> Iterator[Document]:
        for file in self.inputs():
            text = decode(file.read(), file.path)
            if self.separator is None:
                yield self.document(Path(file.path).name, text)
                continue
            for number, part in enumerate(text.split(self.separator)):
                if part.strip():
                    yield self.document(f"{Path(file.path).name}:{number}", part)


class Records(Source):
    """Rows with named fields: what JSON lines and Parquet share.

    Args:
        text_key: field of the text, or several, whose texts are joined by a blank line.
        html_key: field of a page's markup, in place of text_key. A record may have `<html_key>_b64` instead, the
            bytes of the page in base64.
        id_key: field of the identity; otherwise the file and position.
        group_by: consecutive records that agree in these fields become one document, joined by `separator`; documents
            that agree in them fall in the same split, in whichever source they are.
        meta_keys: fields carried along in `meta`.
    """

    def __init__(
        self,
        files: list[str] | str,
        name: str,
        language: str | None = None,
        licence: str | None = None,
        max_bytes: int | None = None,
        text_key: str | list[str] = "text",
        html_key: str | None = None,
        id_key: str | None = None,
        group_by: list[str] | None = None,
        separator: str = "\n",
        meta_keys: list[str] | None = None,
        broken: Literal["stop", "skip"] = "stop",
    ):
        super().__init__(files, name, language, licence, max_bytes, broken)
        self.text_keys = [text_key] if isinstance(text_key, str) else list(text_key)
        self.html_key = html_key
        self.id_key = id_key
        self.group_by = group_by or []
        self.separator = separator
        self.meta_keys = meta_keys or []

    row = "row"

    def records(self, file: Input) -> Iterator[tuple[int, dict]]:
        """(number from 1, {field: value})"""
        raise NotImplementedError

    def documents(self) -> Iterator[Document]:
        for file in self.inputs():
            group: tuple[str, list[str], dict] | None = None
            for number, record in self.records(file):
                where = f"{file.path}, {self.row} {number}"
                try:
                    text, format_meta = self.content(record, where)
                    meta = {key: field(record, key, where) for key in self.meta_keys} | format_meta
                    identity = field(record, self.id_key, where) if self.id_key else f"{Path(file.path).name}:{number}"
                    label = "/".join(str(field(record, key, where)) for key in self.group_by)
                except UserError as error:
                    self.fault(f"{self.row} without what it should have", error)
                    continue
                if not self.group_by:
                    yield self.document(str(identity), text, **meta)
                    continue
                if group and group[0] == label:
                    group[1].append(text)
                    continue
                if group:
                    yield self.grouped(*group)
                group = (label, [text], meta)
            if group:
                yield self.grouped(*group)

    def grouped(self, label: str, texts: list[str], meta: dict) -> Document:
        return self.document(label, self.separator.join(texts), **meta, group=label)

    def content(self, record: dict, where: str) -> tuple[str, dict]:
        if self.html_key is None:
            texts = [field(record, key, where) for key in self.text_keys]
            for key, text in zip(self.text_keys, texts):
                if not isinstance(text, str):
                    raise UserError(f"{where}: field {key!r} is {type(text).__name__}, not text; set another text_key.")
            return "\n\n".join(texts), {}
        encoded = record.get(f"{self.html_key}_b64")
        if encoded is None:
            markup = field(record, self.html_key, where)
            if not isinstance(markup, str):
                kind = type(markup).__name__
                raise UserError(f"{where}: field {self.html_key!r} is {kind}, not markup; set another html_key.")
            return markup, {"format": "html"}
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise UserError(f"{where}: field '{self.html_key}_b64' is not base64; mend the record.") from None
        text, charset = decode_html(data)
        return text, {"format": "html", "charset": charset}


def field(record: dict, key: str, where: str) -> Any:
    if key not in record:
        raise UserError(
            f"{where}: no field {key!r}; it has {', '.join(map(repr, record)) or 'none'}. "
            "Name one of them in the source."
        )
    return record[key]


class JsonLines(Records):
    """One JSON object a line (.jsonl, .jsonl.gz, .jsonl.zst)."""

    row = "line"

    def records(self, file: Input) -> Iterator[tuple[int, dict]]:
        for number, offset, line in file.lines_below(LONGEST):
            try:
                record = self.record(file, number, offset, line)
            except UserError as error:
                self.fault("line that is no record", error)
                continue
            if record is not None:
                yield number, record

    def record(self, file: Input, number: int, offset: int, line: bytes | None) -> dict | None:
        if line is None:
            raise UserError(
                f"{file.path}, line {number}: longer than {LONGEST >> 20} MiB; part it, or set broken: skip."
            )
        if not line.strip():
            return None
        try:
            record = parsed(line, file.path, offset)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{file.path}, line {number}: not JSON ({error}); mend or remove the line.") from None
        if not isinstance(record, dict):
            raise UserError(
                f"{file.path}, line {number}: a JSON {type(record).__name__}, not an object; mend the line."
            )
        return record


class Parquet(Records):
    """Parquet files, one record a row."""

    def records(self, file: Input) -> Iterator[tuple[int, dict]]:
        import pyarrow
        import pyarrow.parquet

        required = [*self.group_by, *self.meta_keys, *([self.id_key] if self.id_key else [])]
        content = [self.html_key, f"{self.html_key}_b64"] if self.html_key else self.text_keys
        number = 0
        try:
            table = pyarrow.parquet.ParquetFile(file.raw)
            names = table.schema_arrow.names
            for key in required if self.html_key else [*required, *self.text_keys]:
                field(dict.fromkeys(names), key, str(file.path))
            columns = [name for name in names if name in required or name in content]
            for batch in table.iter_batches(1024, columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{file.path} is not a whole Parquet file ({reason}); fetch or make it again.") from None


class Place(NamedTuple):
    """Something that is no file, where one is expected."""

    path: str


class HuggingFace(Records):
    """A data set of the Hugging Face Hub, or a folder with one, read as a stream by the library datasets.

    Its name, and the revision if given, are all that the experiment knows of a data set on the Hub: give the hash of a
    commit. Its Parquet files can be read by `Parquet` too, from hf://datasets/OWNER/NAME/...

    Args:
        dataset: OWNER/NAME, or a folder.
        split, configuration, revision: as of `datasets.load_dataset`.
    """

    row = "row"
    divisible = False

    def __init__(
        self,
        dataset: str,
        name: str,
        split: str = "train",
        configuration: str | None = None,
        revision: str | None = None,
        language: str | None = None,
        licence: str | None = None,
        max_bytes: int | None = None,
        text_key: str | list[str] = "text",
        html_key: str | None = None,
        id_key: str | None = None,
        group_by: list[str] | None = None,
        separator: str = "\n",
        meta_keys: list[str] | None = None,
        broken: Literal["stop", "skip"] = "stop",
    ):
        super().__init__(
            [dataset], name, language, licence, max_bytes, text_key, html_key, id_key, group_by, separator, meta_keys,
            broken,
        )  # fmt: skip
        self.dataset, self.split = dataset, split
        self.configuration, self.revision = configuration, revision

    def inputs(self) -> Iterator[Any]:
        yield Place(self.dataset)

    def records(self, file: Any) -> Iterator[tuple[int, dict]]:
        datasets = rare("datasets", "datasets")
        try:
            rows = datasets.load_dataset(
                self.dataset, self.configuration, split=self.split, revision=self.revision, streaming=True
            )
            yield from enumerate(rows, 1)
        except UserError:
            raise
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"source {self.name}: the data set {self.dataset} cannot be read ({reason}); check its name, split and "
                "configuration, and whether the Hub can be reached."
            ) from None


class Html(Source):
    """Web pages saved as files, a document each, still markup: the step ExtractHtml makes text of them."""

    def documents(self) -> Iterator[Document]:
        for file in self.inputs():
            text, charset = decode_html(file.read())
            yield self.document(Path(file.path).name, text, format="html", charset=charset)


class Warc(Source):
    """Web archives (.warc, .warc.gz, .warc.zst): pages and plain text of responses, and the text of WET records.

    `skipped` counts the responses of other types and those that were errors.
    """

    def documents(self) -> Iterator[Document]:
        for file in self.inputs():
            with naming(file.path):
                yield from self.responses(file)

    def responses(self, file: Input) -> Iterator[Document]:
        from fastwarc.warc import ArchiveIterator, WarcRecordType

        # Python decompresses and the lengths are compared, because FastWARC takes a truncated file for a whole one.
        try:
            for record in ArchiveIterator(file.stream, parse_http=False):
                length = record.content_length
                data = record.reader.read()
                if len(data) < length:
                    raise EOFError(f"record {record.record_id} has {len(data)} of {length} bytes")
                if record.record_type not in (WarcRecordType.response, WarcRecordType.conversion):
                    continue
                record.set_bytes_content(data)
                record.parse_http(auto_decode="all")
                yield from self.response(record)
        except gzip.BadGzipFile:
            raise
        except OSError as error:
            raise UserError(f"{file.path} is not a sound WARC file ({error}); ARC files are not read.") from None

    def response(self, record) -> Iterator[Document]:
        kind = record.http_content_type if record.is_http else record.headers.get("Content-Type", "")
        kind = (kind or "unknown").split(";")[0].strip().lower()
        status = getattr(record.http_headers, "status_code", None) if record.is_http else 200
        if status != 200:
            self.skipped[f"HTTP status {status}"] += 1
        elif kind not in ("text/html", "application/xhtml+xml", "text/plain"):
            self.skipped[kind] += 1
        else:
            text, charset = decode_html(record.reader.read(), record.http_charset if record.is_http else "utf-8")
            meta = {"url": record.headers.get("WARC-Target-URI", ""), "charset": charset}
            yield self.document(record.record_id, text, **meta, **({} if kind == "text/plain" else {"format": "html"}))


class Documents(Source):
    """The documents of an earlier run, each keeping its language and meta.

    Args:
        run: directory of the run.
        name: replaces the source of the documents.
    """

    def __init__(self, run: str, name: str, licence: str | None = None, max_bytes: int | None = None):
        super().__init__([str(Path(run) / FILENAME)], name, None, licence, max_bytes)
        self.run = run

    divisible = False

    def documents(self) -> Iterator[Document]:
        for document in documents_of(self.run):
            yield document._replace(source=self.name)
        self.done = self.bytes_total


class PythonStandardLibrary(Source):
    """What Python's own library says of itself: its documentation and its source text.

    A module gives one document of its docstrings, each under the signature of its object, and one of its source text;
    both carry the module as `group`, so that no docstring is in training while its source is in validation. All
    documentation comes first. Modules come in the order of the hash of their names, so that `max_bytes` draws a sample.

    Args:
        files: the *.py files, for example of `{files: python-stdlib}`.
        include: what to take of a module.
    """

    def __init__(
        self,
        files: list[str] | str,
        name: str,
        language: str | None = "en",
        licence: str | None = "PSF-2.0",
        max_bytes: int | None = None,
        include: list[Literal["docstrings", "source"]] | None = None,
    ):
        super().__init__(files, name, language, licence, max_bytes)
        self.include = include or ["docstrings", "source"]
        if unknown := set(self.include) - {"docstrings", "source"}:
            raise UserError(f"source {name}: include has {', '.join(sorted(unknown))}; it takes docstrings and source.")

    divisible = False  # modules come in an order of their own

    def documents(self) -> Iterator[Document]:
        modules = {module_name(path): path for path in self.files}
        order = sorted(modules, key=lambda module: blake2b(module.encode(), digest_size=8).digest())
        broken = set()
        for part in self.include:
            for module in order:
                if module in broken:
                    continue
                with naming(modules[module]):
                    data = Path(modules[module]).read_bytes()
                try:
                    text, entries = parse(data, module)
                except (SyntaxError, ValueError, RecursionError):
                    broken.add(module)
                    self.skipped["does not parse"] += 1
                    continue
                self.done += len(data) // len(self.include)
                if part == "source" and text.strip():
                    yield self.document(f"{module}/source", text, group=module)
                elif part == "docstrings" and entries:
                    blocks = (f"{entry.kind} {entry.name}{entry.signature}\n\n{entry.text}" for entry in entries)
                    yield self.document(f"{module}/docstrings", "\n\n".join(blocks), group=module)


def parse(data: bytes, module: str) -> tuple[str, list[Docstring]]:
    """Text of a Python file, by its own coding line, and its docstrings.

    Raises:
        SyntaxError, ValueError: it does not parse.
    """
    encoding, _ = tokenize.detect_encoding(BytesIO(data).readline)
    text = data.decode(encoding).removeprefix("\ufeff")
    return text, list(docstrings(text, module))


def module_name(path: str | Path) -> str:
    """Dotted name of a module by its file: up through the directories that are packages."""
    path = Path(path)
    names = [] if path.stem == "__init__" else [path.stem]
    parent = path.parent
    while (parent / "__init__.py").exists():
        names.insert(0, parent.name)
        parent = parent.parent
    return ".".join(names) or path.parent.name
