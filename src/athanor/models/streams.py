"""Safetensors files read and written tensor by tensor, so that a checkpoint larger than memory can be converted.

The format: 8 bytes with the length of a JSON header, the header {name: {dtype, shape, data_offsets}}, the bytes.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from athanor.errors import UserError

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class Entry(NamedTuple):
    """A tensor to be written: its chunks, one after another, are its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Iterable[Tensor]

    @property
    def bytes(self) -> int:
        return int(torch.Size(self.shape).numel()) * BYTES[self.dtype]


class Reader:
    """The tensors of one or several files, by name; nothing is read before it is asked for.

    Raises:
        UserError: a file that is not safetensors, a name in two files, or numbers that are not floating-point.
    """

    def __init__(self, paths: Sequence[Path]):
        self.files: dict[str, Any] = {}
        for path in paths:
            try:
                file = safe_open(str(path), framework="pt")
            except Exception as error:
                raise UserError(f"{path} is not a whole safetensors file: {error}.") from None
            for name in file.keys():  # noqa: SIM118
                if name in self.files:
                    raise UserError(f"{name} stands in two files, {path.name} among them; give one checkpoint only.")
                self.files[name] = file

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.files[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        dtype = self.files[name].get_slice(name).get_dtype()
        if dtype not in BYTES:
            raise UserError(f"{name} is of type {dtype}; only {', '.join(BYTES)} can be converted.")
        return dtype

    def read(self, name: str, *where: slice | int) -> Tensor:
        return self.files[name].get_slice(name)[where] if where else self.files[name].get_tensor(name)


def write(path: Path, entries: Sequence[Entry]) -> None:
    """One file, holding one chunk in memory at a time."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.bytes
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            before = file.tell()
            for chunk in entry.chunks:
                file.write(chunk.contiguous().view(-1).view(torch.uint8).numpy().data)
            assert file.tell() - before == entry.bytes, f"{entry.name} has other bytes than its shape says"


def shards(entries: Iterable[Entry], most: int) -> Iterator[list[Entry]]:
    """Consecutive entries in groups of at most so many bytes, a larger one alone."""
    group: list[Entry] = []
    size = 0
    for entry in entries:
        if group and size + entry.bytes > most:
            yield group
            group, size = [], 0
        group.append(entry)
        size += entry.bytes
    if group:
        yield group


def replace(path: Path, make: Callable[[Path], object]) -> None:
    """Makes a file under a temporary name, then renames it."""
    temporary = path.with_name(f".{path.name}.tmp")
    make(temporary)
    temporary.replace(path)
