"""Reading compressed files with errors that name the file, and writing them whole or not at all."""

import errno
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import zstandard

from athanor.errors import UserError

SURROGATE = re.compile("[\ud800-\udfff]")


class ZstandardReader(io.RawIOBase):
    """Decompressed bytes of a zstd file. Unlike `zstandard.open` it raises EOFError where the file was cut off."""

    def __init__(self, raw: BinaryIO):
        self.raw = raw
        self.frame: zstandard.ZstdDecompressionObj | None = None
        self.compressed = b""
        self.pending = memoryview(b"")
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True  # to where it is: FastWARC asks for the position by seeking

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if (offset, whence) in ((0, io.SEEK_CUR), (self.position, io.SEEK_SET)):
            return self.position
        raise io.UnsupportedOperation("zstd files are read from beginning to end")

    def readinto(self, buffer) -> int:
        while not self.pending:
            compressed = self.compressed or self.raw.read(1 << 18)
            if not compressed:
                if self.frame:
                    raise EOFError("the last frame has no end")
                return 0
            self.frame = self.frame or zstandard.ZstdDecompressor().decompressobj()
            self.pending, self.compressed = memoryview(self.frame.decompress(compressed)), b""
            if self.frame.eof:
                self.compressed, self.frame = self.frame.unused_data, None
        size = min(len(buffer), len(self.pending))
        buffer[:size], self.pending = self.pending[:size], self.pending[size:]
        self.position += size
        return size


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Turns what a missing, truncated or corrupted file raises into a UserError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path in `inputs` of the experiment.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a directory; name the files in it, for example with a glob.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise UserError(f"{path} is truncated or corrupted ({error}); fetch or make it again.") from None
    except PermissionError:
        raise UserError(f"{path} may not be read; change its permissions.") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path} is a symbolic link that leads back to itself; remove it.") from None
        raise


URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
BUFFER = 1 << 20  # bytes read at a time: web pages are long lines
LONGEST = 1 << 28  # bytes of a line that are held in memory


def remote(path: str | Path) -> bool:
    """Whether it is an address of fsspec, such as s3://bucket/key, rather than a path."""
    return URL.match(str(path)) is not None


def open_remote(url: str) -> BinaryIO:
    """Read in blocks as it is needed. Which schemes there are is up to the packages installed (s3fs, gcsfs, ...)."""
    import fsspec

    try:
        return fsspec.open(url, "rb").open()
    except (ImportError, ValueError) as error:
        raise UserError(f"{url} cannot be read ({error}); install the package that fsspec names for it.") from None


def size_of(path: str | Path) -> int:
    """Bytes of a file, 0 where it cannot be told."""
    if not remote(path):
        return Path(path).stat().st_size if Path(path).is_file() else 0
    import fsspec

    try:
        filesystem, place = fsspec.core.url_to_fs(str(path))
        return int(filesystem.size(place) or 0)
    except (OSError, ImportError, ValueError):
        return 0


class Input:
    """A file opened for reading, decompressed if its name ends in .gz or .zst. `position` counts compressed bytes."""

    def __init__(self, path: str | Path):
        self.path = path
        with naming(path):
            self.raw: BinaryIO = open_remote(str(path)) if remote(path) else open(path, "rb", BUFFER)  # noqa: SIM115
        self.stream: BinaryIO | gzip.GzipFile = self.raw
        if str(path).endswith(".gz"):
            self.stream = gzip.GzipFile(fileobj=self.raw)
        elif str(path).endswith(".zst"):
            self.stream = io.BufferedReader(ZstandardReader(self.raw), BUFFER)

    @property
    def position(self) -> int:
        return self.raw.tell()

    def read(self) -> bytes:
        with naming(self.path):
            return self.stream.read()

    def lines(self) -> Iterator[tuple[int, int, bytes]]:
        """(line number from 1, byte offset in the decompressed text, line with its newline)."""
        offset = 0
        with naming(self.path):
            for number, line in enumerate(self.stream, 1):
                yield number, offset, line
                offset += len(line)

    def lines_below(self, longest: int) -> Iterator[tuple[int, int, bytes | None]]:
        """The same, but None for a line of more bytes than `longest`, which is read past and never held."""
        offset = number = 0
        with naming(self.path):
            while line := self.stream.readline(longest + 1):
                number += 1
                size = len(line)
                if size <= longest:
                    yield number, offset, line
                else:
                    while not line.endswith(b"\n") and (line := self.stream.readline(1 << 20)):
                        size += len(line)
                    yield number, offset, None
                offset += size

    def __enter__(self) -> "Input":
        return self

    def __exit__(self, *_) -> None:
        self.stream.close()
        self.raw.close()


def decode(data: bytes, path: str | Path, offset: int = 0) -> str:
    """Strict UTF-8, a byte order mark removed. `offset`: where data begins in the file, for the error's text."""
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at byte offset {offset + error.start}; "
            "convert it first, for example with `iconv -f GB18030 -t UTF-8`."
        ) from None


def parsed(line: bytes, path: str | Path, offset: int = 0) -> Any:
    """The JSON value of a line, with U+FFFD for the halves of surrogate pairs that JSON can spell: orjson's where it
    reads the same as the standard library, which is slower and takes more (NaN, larger numbers, a byte order mark).

    Raises:
        json.JSONDecodeError: the line is not JSON.
        UserError: it is not UTF-8.
    """
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return _mended(json.loads(decode(line, path, offset)))
    return json.loads(line) if _rounded(value) else value


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {SURROGATE.sub("\ufffd", key): _mended(item) for key, item in value.items()}
    return [_mended(item) for item in value] if isinstance(value, list) else value


def _rounded(value: Any) -> bool:
    """Whether it may hold an integer of more than 64 bits, of which orjson makes a float."""
    if isinstance(value, float):
        return abs(value) >= 2**63
    if isinstance(value, dict):
        return any(map(_rounded, value.values()))
    return isinstance(value, list) and any(map(_rounded, value))


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it on success and removed on failure."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk is full: {path} could not be written; make room and run again.") from None
        raise
    finally:
        temporary.unlink(missing_ok=True)
