"""Locality-sensitive hashing in little memory: which earlier signatures agree with this one in some table.

A signature has one key in each table; signatures with an equal key share a bucket. Buckets are chains in flat arrays:
beside its signature a document costs 4 bytes a table, and twice that for the buckets. The chains of all tables are
followed together, a step in one operation.
"""

from collections.abc import Callable

import numpy as np

SMALLEST = 1 << 10  # buckets of a table
GOLDEN = 0x9E3779B97F4A7C15  # odd, 2^64 / golden ratio: spreads keys over buckets (Knuth 6.4)
LAST = (1 << 32) - 1

Keys = Callable[[np.ndarray], np.ndarray]


class Buckets:
    """Args:
    width: numbers in a signature. dtype: of them.
    keys: signatures [N, width] -> uint64 [N, tables].
    better: keys to go on with where there is room for so many signatures, or None for those in use.
    """

    def __init__(self, width: int, dtype: str, keys: Keys, better: Callable[[int], Keys | None] = lambda room: None):
        self.better = better
        self.rows = np.empty((SMALLEST // 2, width), dtype)
        self.count = 0
        self.bits = SMALLEST.bit_length() - 1
        self.use(keys)

    def use(self, keys: Keys) -> None:
        """Empty tables for these keys."""
        self.keys = keys
        self.tables = np.arange(keys(self.rows[:1] * 0).shape[1])
        self.heads = np.full((len(self.tables), 1 << self.bits), -1, np.int32)  # newest signature of each bucket
        self.links = np.full((len(self.rows), len(self.tables)), -1, np.int32)  # of each, the one before in its bucket

    @property
    def signatures(self) -> np.ndarray:
        """[count, width]"""
        return self.rows[: self.count]

    def slots(self, signatures: np.ndarray) -> np.ndarray:
        """int64 [N, tables]"""
        spread = self.keys(signatures) * np.uint64(GOLDEN)
        return (spread >> np.uint64(64 - self.bits)).astype(np.int64)

    def candidates(self, signature: np.ndarray) -> list[int]:
        """Indices of the earlier signatures that share a bucket, in order. Some share it by accident."""
        found = set[int]()
        tables, chain = self.tables, self.heads[self.tables, self.slots(signature[None])[0]]
        while True:
            going = np.flatnonzero(chain >= 0)
            if not len(going):
                return sorted(found)
            tables, chain = tables[going], chain[going]
            found.update(chain.tolist())
            chain = self.links[chain, tables]

    def add(self, signature: np.ndarray) -> int:
        """Its index."""
        if self.count == len(self.rows):
            self.grow()
        self.rows[self.count] = signature
        places = self.tables, self.slots(signature[None])[0]
        self.links[self.count] = self.heads[places]
        self.heads[places] = self.count
        self.count += 1
        return self.count - 1

    def grow(self) -> None:
        """Twice the room, and twice the buckets, so that chains stay short."""
        self.rows = np.concatenate([self.rows, np.empty_like(self.rows)])
        self.bits += 1
        del self.heads, self.links  # before there are new ones
        self.use(self.better(len(self.rows)) or self.keys)
        numbers = np.arange(self.count, dtype=np.uint64)
        step = max(1, (1 << 22) // len(self.tables))
        columns = np.empty((len(self.tables), self.count), np.uint32)
        for start in range(0, self.count, step):
            columns[:, start : start + step] = self.slots(self.rows[start : min(start + step, self.count)]).T
        for table, column in enumerate(columns):
            placed = np.sort((column.astype(np.uint64) << np.uint64(32)) | numbers)
            slots, order = placed >> np.uint64(32), (placed & np.uint64(LAST)).astype(np.int64)
            same = slots[1:] == slots[:-1]
            self.links[order[1:][same], table] = order[:-1][same]
            last = np.append(~same, True)
            self.heads[table, slots[last].astype(np.int64)] = order[last]
