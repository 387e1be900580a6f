"""Checkpoints in parts: each process writes what it holds into one folder, which any number of others can read.

A folder holds the files of torch.distributed.checkpoint, `rest.pt` with all that is not sharded, and `sums.json` with
size and SHA-256 of each. Tensors go by the names, shapes and rows that they have in an unsharded training, whoever held
which piece of them; so a reader asks for the pieces that it needs itself, or for whole ones.
"""

import itertools
import json
import logging
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from athanor.runs.files import sha256, write_atomic

log = logging.getLogger(__name__)

REST, SUMS = "rest.pt", "sums.json"
MARK = "__share__"  # the key by which the rest names a tensor that is elsewhere


class DamagedError(Exception):
    """A checkpoint turned out to be damaged when it was read; it is no longer taken for a sound one."""


class Share:
    """What a process holds of a tensor, for torch.distributed.checkpoint.

    Args:
        own: the numbers.
        shape: of the whole tensor.
        places: for each dimension the indices in the whole tensor of those of `own`, int64.
    """

    def __init__(self, own: Tensor, shape: torch.Size, places: list[Tensor]):
        self.own, self.shape, self.places = own, shape, places

    def of(self, own: Tensor) -> "Share":
        """The same share of other numbers."""
        return Share(own, self.shape, self.places)

    def size(self) -> torch.Size:
        return self.shape

    def pieces(self) -> Iterator[tuple[ChunkStorageMetadata, Tensor]]:
        """Rectangles of the whole tensor, and a view of the numbers of each."""
        for piece in itertools.product(*map(runs, self.places)):
            first, here, count = (torch.Size(numbers) for numbers in zip(*piece))
            view = self.own[tuple(slice(start, start + length) for start, length in zip(here, count))]
            yield ChunkStorageMetadata(first, count), view

    def piece(self, offset: torch.Size | None) -> Tensor:
        return next(view for chunk, view in self.pieces() if chunk.offsets == offset)

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [chunk for chunk, _ in self.pieces()]

    def __create_write_items__(self, name: str, _: Any) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self.own)
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.shape),
            )
            for chunk, _ in self.pieces()
        ]


class Flat(Share):
    """A share whose numbers follow one another in the whole tensor, flattened, from `start` on."""

    def __init__(self, own: Tensor, shape: torch.Size, start: int):
        super().__init__(own, shape, [])
        self.start = start

    def of(self, own: Tensor) -> "Flat":
        return Flat(own, self.shape, self.start)

    def pieces(self) -> Iterator[tuple[ChunkStorageMetadata, Tensor]]:
        taken = 0
        for first, count in rectangles(self.start, self.start + self.own.numel(), tuple(self.shape)):
            size = math.prod(count)
            yield ChunkStorageMetadata(torch.Size(first), torch.Size(count)), self.own[taken : taken + size].view(count)
            taken += size


class Stored(NamedTuple):
    """A tensor in a folder, to be read by those who need it."""

    folder: Path
    name: str
    shape: torch.Size
    dtype: torch.dtype


def runs(indices: Tensor) -> list[tuple[int, int, int]]:
    """Where indices follow one another: (the first of them, its place among them, how many)."""
    if not len(indices):
        return []
    starts = [0, *(torch.nonzero(indices.diff() != 1).flatten() + 1).tolist(), len(indices)]
    return [(int(indices[start]), start, end - start) for start, end in itertools.pairwise(starts)]


def rectangles(start: int, end: int, shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(first indices, sizes) of what lies from `start` to `end` in a flattened tensor, in its order: the rest of a row,
    whole rows, the beginning of a row; and so within these rows.
    """
    if start >= end:
        return
    if len(shape) == 1:
        yield (start,), (end - start,)
        return
    row = math.prod(shape[1:])
    number, begin = divmod(start, row)
    if begin or end - start < row:
        stop = min(end, (number + 1) * row)
        for inner, count in rectangles(begin, stop - number * row, shape[1:]):
            yield (number, *inner), (1, *count)
    else:
        rows = (end - start) // row
        stop = start + rows * row
        yield (number, *(0 for _ in shape[1:])), (rows, *shape[1:])
    yield from rectangles(stop, end, shape)


class Writing(DefaultSavePlanner):
    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].piece(index.offset)


class Reading(DefaultLoadPlanner):
    def set_up_planner(self, state_dict: Any, metadata: Any = None, is_coordinator: bool = False) -> None:
        self.original_state_dict = self.state_dict = state_dict
        self.metadata, self.is_coordinator = metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        found = self.state_dict[index.fqn]
        return found.piece(index.offset) if isinstance(found, Share) else super().lookup_tensor(index)


def parted(value: Any, shares: dict[str, Share], name: str = "") -> Any:
    """A nested value without its shares, which are put into `shares`."""
    if isinstance(value, Share):
        shares[name] = value
        return {MARK: name}
    if isinstance(value, dict):
        return {key: parted(entry, shares, f"{name}/{key}") for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(parted(entry, shares, f"{name}/{place}") for place, entry in enumerate(value))
    return value


def joined(rest: Any, found: Callable[[str], Any]) -> Any:
    """The nested value again, with what is found in the place of each share."""
    if isinstance(rest, dict):
        return found(rest[MARK]) if MARK in rest else {key: joined(entry, found) for key, entry in rest.items()}
    if type(rest) in (list, tuple):
        return type(rest)(joined(entry, found) for entry in rest)
    return rest


# --- writing ----------------------------------------------------------------------------------------------------------


def write(state: dict[str, Any], folder: Path, group: Any) -> str | None:
    """Writes a checkpoint, this process's shares and, on rank 0, the rest, all of it synced. Collective over `group`.

    Returns:
        On rank 0 the SHA-256 that stands for all of it.

    Raises:
        OSError: a process could not write; in all of them.
    """
    rank = dist.get_rank(group) if group is not None else 0
    shares: dict[str, Share] = {}
    rest = parted(state, shares)
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of one process, which is as it should be
            writer = dcp.FileSystemWriter(folder)
            # rank 0 plans who writes what, which takes long for many; it is planned again only where that has changed
            planner = Writing(flatten_state_dict=False, flatten_sharded_tensors=False, enable_plan_caching=True)
            dcp.save(shares, storage_writer=writer, planner=planner, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        number, (failure, _) = min(error.failures.items())
        if isinstance(failure, OSError):
            raise OSError(failure.errno, f"{failure.strerror}, says rank {number}") from error
        raise RuntimeError(f"rank {number} could not write its part of {folder.name}: {failure}") from error
    sums, failed = told(lambda: finish(folder, rank, rest), group)
    if failed is None and rank == 0:
        _, failed = told(lambda: write_atomic(folder / SUMS, json.dumps(dict(sorted(sums.items())))), None)
    failed = agreed(failed, group)
    if failed is not None:
        raise OSError(*failed)
    return sha256(folder / SUMS) if rank == 0 else None


def finish(folder: Path, rank: int, rest: Any) -> dict[str, list[Any]]:
    """{file: [bytes, SHA-256]} of what this rank has written."""
    names = [path.name for path in folder.glob(f"__{rank}_*.distcp")]
    if rank == 0:
        with (folder / REST).open("wb") as file:
            torch.save(rest, file)
            file.flush()
            os.fsync(file.fileno())
        names += [REST, ".metadata"]
    return {name: [(folder / name).stat().st_size, sha256(folder / name)] for name in names}


def told(act: Callable[[], Any], group: Any) -> tuple[dict[str, Any], tuple[int, str] | None]:
    """What an act gives on all ranks, joined, and the first error of a disk; on rank 0."""
    made, failed = None, None
    try:
        made = act()
    except OSError as error:
        failed = error.errno or 0, error.strerror or str(error)
    if group is None:
        return made or {}, failed
    known: list[Any] = [None] * dist.get_world_size(group)
    dist.gather_object((made, failed), known if dist.get_rank(group) == 0 else None, group=group, group_dst=0)
    if dist.get_rank(group) != 0:
        return {}, None
    whole = {name: entry for one, _ in known for name, entry in (one or {}).items()}
    return whole, next((failure for _, failure in known if failure), None)


def agreed(value: Any, group: Any) -> Any:
    """Rank 0's, on all."""
    if group is None:
        return value
    said = [value]
    dist.broadcast_object_list(said, group=group, group_src=0)
    return said[0]


# --- reading ----------------------------------------------------------------------------------------------------------


def is_whole(folder: Path, expected: str, contents: bool = True) -> bool:
    """Whether all files are there as they were written.

    Args:
        expected: what `write` returned.
        contents: read them all, and not only their sizes.
    """
    try:
        if sha256(folder / SUMS) != expected:
            return False
        sums: dict[str, list[Any]] = json.loads((folder / SUMS).read_bytes())
        if any((folder / name).stat().st_size != size for name, (size, _) in sums.items()):
            return False
    except (OSError, ValueError):
        return False
    return not contents or not damaged(folder, sums)


def damaged(folder: Path, sums: Mapping[str, list[Any]]) -> list[str]:
    return [name for name, (_, digest) in sums.items() if sha256(folder / name) != digest]


def verify(folder: Path, mark: Path) -> None:
    """Reads all files, each by one of the processes. Collective, where there are several.

    Args:
        mark: the file with the checksum, which is removed if it is wrong.

    Raises:
        DamagedError: in all of them.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return  # it was looked for in one process, which has read all of them
    rank, world = dist.get_rank(), dist.get_world_size()
    sums = json.loads((folder / SUMS).read_bytes())
    bad = damaged(folder, dict(list(sums.items())[rank::world]))
    known: list[Any] = [None] * world
    dist.all_gather_object(known, bad)
    if found := [name for one in known for name in one]:
        if rank == 0:
            mark.unlink(missing_ok=True)
        dist.barrier()
        raise DamagedError(f"{folder}: {', '.join(found)}")


def load(folder: Path, *, lazily: bool = False, only: str = "") -> dict[str, Any]:
    """A checkpoint as it would be in one file.

    Args:
        lazily: with a `Stored` for each tensor, for `read`.
        only: nothing else than this entry.
    """
    rest = torch.load(folder / REST, map_location="cpu", weights_only=True)
    rest = {only: rest[only]} if only else rest
    known = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    stored: dict[str, Any] = {}

    def found(name: str) -> Stored:
        kind: Any = known[name]
        return stored.setdefault(name, Stored(folder, name, kind.size, kind.properties.dtype))

    state = joined(rest, found)
    if lazily:
        return state
    tensors = {name: torch.empty(one.shape, dtype=one.dtype) for name, one in stored.items()}
    read(folder, tensors)
    return joined(rest, tensors.__getitem__)


def read(folder: Path, into: Mapping[str, Tensor | Share]) -> None:
    """Fills tensors, or shares of them, on this process alone."""
    planner = Reading(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(dict(into), storage_reader=dcp.FileSystemReader(folder), planner=planner, no_dist=True)
    except CheckpointException as error:
        ((failure, _),) = error.failures.values()
        raise RuntimeError(f"{folder} cannot be read: {failure}") from failure


class Reads:
    """What is to be read of folders, and where to; then all at once."""

    def __init__(self) -> None:
        self.of: dict[Path, dict[str, Tensor | Share]] = {}

    def add(self, stored: Stored, into: Tensor | Share) -> None:
        self.of.setdefault(stored.folder, {})[stored.name] = into

    def now(self) -> None:
        for folder, wanted in self.of.items():
            read(folder, wanted)
