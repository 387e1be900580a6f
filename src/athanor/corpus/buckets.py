"""Locality-sensitive hashing in little memory: which earlier signatures agree with this one in some table.

A signature has one key in each table; signatures with an equal key share a bucket. Buckets are chains in flat arrays:
beside its signature a document costs 4 bytes a table, and twice that for the buckets.
"""

from array import array
from collections.abc import Callable

import numpy as np

SMALLEST = 1 << 10  # buckets of a table
GOLDEN = 0x9E3779B97F4A7C15  # odd, 2^64 / golden ratio: spreads keys over buckets (Knuth 6.4)
WORD = (1 << 64) - 1


class Buckets:
    """Args:
    width: numbers in a signature. dtype: of them.
    keys: signatures [N, width] -> uint64 [N, tables].
    """

    def __init__(self, width: int, dtype: str, keys: Callable[[np.ndarray], np.ndarray]):
        self.keys = keys
        self.rows = np.empty((SMALLEST // 2, width), dtype)
        self.count = 0
        self.bits = SMALLEST.bit_length() - 1
        self.tables = keys(self.rows[:1] * 0).shape[1]
        self.heads = [array("i", [-1]) * SMALLEST for _ in range(self.tables)]  # newest signature of each bucket
        self.links = [array("i") for _ in range(self.tables)]  # of each signature, the one before in its bucket

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
        found = set()
        for slot, heads, links in zip(self.slots(signature[None])[0].tolist(), self.heads, self.links):
            index = heads[slot]
            while index >= 0:
                found.add(index)
                index = links[index]
        return sorted(found)

    def add(self, signature: np.ndarray) -> int:
        """Its index."""
        if self.count == len(self.rows):
            self.grow()
        self.rows[self.count] = signature
        for slot, heads, links in zip(self.slots(signature[None])[0].tolist(), self.heads, self.links):
            links.append(heads[slot])
            heads[slot] = self.count
        self.count += 1
        return self.count - 1

    def grow(self) -> None:
        """Twice the room, and twice the buckets, so that chains stay short."""
        self.rows = np.concatenate([self.rows, np.empty_like(self.rows)])
        self.bits += 1
        for table, column in enumerate(self.slots(self.signatures).T):
            order = np.argsort(column, kind="stable").astype(np.int32)
            same = column[order[1:]] == column[order[:-1]]
            links = np.full(self.count, -1, np.int32)
            links[order[1:][same]] = order[:-1][same]
            heads = np.full(1 << self.bits, -1, np.int32)
            last = np.append(~same, True)
            heads[column[order[last]]] = order[last]
            self.links[table], self.heads[table] = array("i", links.tobytes()), array("i", heads.tobytes())
