"""The order of samples: a function of the seed, not a state.

Sample n of the run lies in epoch n // size at place n % size; its index is a keyed permutation of [0, size). The
permutation is a Feistel network on the smallest even number of bits that holds `size`, with cycle walking (Black &
Rogaway 2002), so any place is found in constant time and memory, whatever the size.
"""

from typing import Any

import numpy as np

_ROUNDS = 6


def _mix(x: Any) -> Any:
    """The finaliser of SplitMix64 (Steele et al. 2014): a bijection of 64 bits that mixes well."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def order(seed: int, size: int, start: int, stop: int) -> np.ndarray:
    """int64 [stop - start]: the sample indices at places start..stop-1 of the run, each epoch a fresh permutation.

    Raises:
        ValueError: size < 1.
    """
    if size < 1:
        raise ValueError("there is nothing to order")
    places = np.arange(start, stop, dtype=np.uint64)
    epochs, x = places // np.uint64(size), places % np.uint64(size)
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    with np.errstate(over="ignore"):
        keys = _mix(
            _mix(np.uint64(seed % 2**64) + np.uint64(0x9E3779B97F4A7C15)) + epochs * np.uint64(0xD1342543DE82EF95)
        )

    def encrypt(x: np.ndarray, keys: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & low
        for r in range(_ROUNDS):
            with np.errstate(over="ignore"):
                mixed = _mix(right + keys + np.uint64(r) * np.uint64(0x9E3779B97F4A7C15))
            left, right = right, left ^ (mixed & low)
        return (left << half) | right

    x = encrypt(x, keys)
    outside = np.flatnonzero(x >= size)
    while len(outside):
        x[outside] = encrypt(x[outside], keys[outside])
        outside = outside[x[outside] >= size]
    return x.astype(np.int64)
