"""Frequencies of rotary embedding for contexts longer than the one trained on.

Each scaling gives the angle per position of every pair of channels, float32 [channels / 2], and the factor on cos and
sin. Plain RoPE turns pair i by theta^(-2i/channels).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from athanor.errors import require


def plain(theta: float, channels: int, device: torch.device | None = None) -> Tensor:
    exponents = torch.arange(0, channels, 2, device=device, dtype=torch.float32) / channels
    return theta**-exponents


@dataclass(frozen=True)
class Scaling:
    """`factor`: how many times longer the context becomes."""

    factor: float

    def __post_init__(self) -> None:
        require(self.factor >= 1, f"model.positions.scaling.factor={self.factor} must be at least 1")

    @property
    def amplitude(self) -> float:
        return 1.0

    def frequencies(self, theta: float, channels: int, device: torch.device | None = None) -> Tensor:
        raise NotImplementedError

    def check(self, context: int) -> None:
        """Raises ValueError where the scaling cannot serve the model's context."""


@dataclass(frozen=True)
class Linear(Scaling):
    """Position interpolation (Chen et al. 2023, arXiv:2306.15595, eq. 4): positions are divided by the factor."""

    def frequencies(self, theta: float, channels: int, device: torch.device | None = None) -> Tensor:
        return plain(theta, channels, device) / self.factor


@dataclass(frozen=True)
class NTKAware(Scaling):
    """NTK-aware interpolation (bloc97 2023; Peng et al. 2023, arXiv:2309.00071, eq. 16): a larger theta, so that the
    slowest pair is interpolated fully and the fastest not at all.
    """

    def frequencies(self, theta: float, channels: int, device: torch.device | None = None) -> Tensor:
        require(channels > 2, f"NTKAware needs more than 2 rotated channels of a head, not {channels}")
        return plain(theta * self.factor ** (channels / (channels - 2)), channels, device)


@dataclass(frozen=True)
class YaRN(Scaling):
    """YaRN (Peng et al. 2023, arXiv:2309.00071, section 3.2-3.4): pairs that turn more than `beta_fast` times within
    the original context stay, those that turn less than `beta_slow` times are interpolated, between is a ramp.

    Args:
        original_context: tokens of the context before.
        attention_factor: on cos and sin; default 0.1 ln(factor) + 1 (eq. 22).
    """

    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.original_context >= 1,
            f"model.positions.scaling.original_context={self.original_context} must be at least 1",
        )
        require(
            0 < self.beta_slow < self.beta_fast,
            f"model.positions.scaling.beta_slow={self.beta_slow} must be below beta_fast={self.beta_fast}",
        )

    @property
    def amplitude(self) -> float:
        return 0.1 * math.log(self.factor) + 1.0 if self.attention_factor is None else self.attention_factor

    def frequencies(self, theta: float, channels: int, device: torch.device | None = None) -> Tensor:
        def pair(turns: float) -> float:
            """The pair, as a real number, that turns so many times within the original context."""
            return channels * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = max(math.floor(pair(self.beta_fast)), 0), min(math.ceil(pair(self.beta_slow)), channels - 1)
        pairs = torch.arange(channels // 2, device=device, dtype=torch.float32)
        ramp = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)
        whole = plain(theta, channels, device)
        return whole / self.factor * ramp + whole * (1 - ramp)

    def check(self, context: int) -> None:
        reach = int(self.original_context * self.factor)
        require(
            context <= reach,
            f"model.context={context} exceeds what model.positions.scaling reaches: original_context="
            f"{self.original_context} times factor={self.factor} is {reach}",
        )


@dataclass(frozen=True)
class Llama3(Scaling):
    """Scaling of Llama 3.1 (Grattafiori et al. 2024, arXiv:2407.21783, as in its published code): pairs whose wave is
    longer than original_context / low_frequency_factor are interpolated, shorter than original_context /
    high_frequency_factor stay, between is a blend.
    """

    original_context: int = 8192
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 < self.low_frequency_factor < self.high_frequency_factor,
            f"model.positions.scaling.low_frequency_factor={self.low_frequency_factor} must be below "
            f"high_frequency_factor={self.high_frequency_factor}",
        )

    def frequencies(self, theta: float, channels: int, device: torch.device | None = None) -> Tensor:
        whole = plain(theta, channels, device)
        waves = 2 * math.pi / whole
        spread = self.high_frequency_factor - self.low_frequency_factor
        stays = ((self.original_context / waves - self.low_frequency_factor) / spread).clamp(0, 1)
        return whole / self.factor * (1 - stays) + whole * stays
