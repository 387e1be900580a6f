"""Which earlier positions a position attends to. Patterns see positions, not columns, so padding changes nothing.

A pattern narrows causality, and always lets a position see itself. The model's layers take the patterns of a list in
turn.
"""

from dataclasses import dataclass

from torch import Tensor

from athanor.errors import require


class Pattern:
    def reaches(self, tokens: float) -> bool:
        """Whether a sequence of so many tokens is seen whole, so that no mask is needed."""
        return True

    def allows(self, queries: Tensor, keys: Tensor) -> Tensor:
        """bool, of positions that broadcast; keys after the query may come out either way."""
        raise NotImplementedError

    def pairs(self, tokens: int) -> float:
        """(query, key) pairs that causal attention over so many tokens computes, up to terms linear in them."""
        return tokens * tokens / 2


@dataclass(frozen=True)
class Full(Pattern):
    """All earlier positions."""

    def allows(self, queries: Tensor, keys: Tensor) -> Tensor:
        return keys <= queries


@dataclass(frozen=True)
class Window(Pattern):
    """The last `size` positions, itself among them (Beltagy et al. 2020, arXiv:2004.05150; Mistral)."""

    size: int

    def __post_init__(self) -> None:
        require(self.size >= 1, f"model.attention.patterns: Window.size={self.size} must be at least 1")

    def reaches(self, tokens: float) -> bool:
        return tokens <= self.size

    def allows(self, queries: Tensor, keys: Tensor) -> Tensor:
        return queries - keys < self.size

    def pairs(self, tokens: int) -> float:
        seen = min(self.size, tokens)
        return seen * tokens - seen * seen / 2


@dataclass(frozen=True)
class Strided(Pattern):
    """The last `stride` positions, and every one a multiple of `stride` back (Child et al. 2019, arXiv:1904.10509, the
    strided pattern with both parts in each head).
    """

    stride: int

    def __post_init__(self) -> None:
        require(self.stride >= 1, f"model.attention.patterns: Strided.stride={self.stride} must be at least 1")

    def reaches(self, tokens: float) -> bool:
        return tokens <= self.stride + 1

    def allows(self, queries: Tensor, keys: Tensor) -> Tensor:
        distance = queries - keys
        return (distance < self.stride) | (distance % self.stride == 0)

    def pairs(self, tokens: int) -> float:
        seen = min(self.stride, tokens)
        return seen * tokens - seen * seen / 2 + (tokens - seen) ** 2 / (2 * self.stride)


@dataclass(frozen=True)
class Blocks(Pattern):
    """Its own block of `size` positions, and the last `summary` positions of every earlier block (Child et al. 2019,
    the fixed pattern with both parts in each head).
    """

    size: int
    summary: int = 1

    def __post_init__(self) -> None:
        require(
            1 <= self.summary <= self.size,
            f"model.attention.patterns: Blocks.summary={self.summary} must lie between 1 and size={self.size}",
        )

    def reaches(self, tokens: float) -> bool:
        return tokens <= self.size

    def allows(self, queries: Tensor, keys: Tensor) -> Tensor:
        return (queries // self.size == keys // self.size) | (keys % self.size >= self.size - self.summary)

    def pairs(self, tokens: int) -> float:
        size = min(self.size, tokens)
        return tokens * size / 2 + self.summary / size * (tokens * tokens - tokens * size) / 2
