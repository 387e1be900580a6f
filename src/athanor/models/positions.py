"""How a model knows the order of its tokens: rotary, learned, sinusoidal, ALiBi, relative buckets, or not at all.

Each kind gives one of three things: a rotation of queries and keys, a module whose output is added to the embeddings,
or a bias on the attention scores, computed or learned. Rotation tables are computed from the positions at each call, so
no module owns a buffer that a meta-device or sharded initialisation could leave unset.

Shapes: B rows, T tokens, S keys, H heads, C channels of a head, D width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from athanor.errors import require
from athanor.models.parts import Sizes
from athanor.models.scaling import Scaling, plain


class Positions:
    """A kind of positions; alone it gives nothing."""

    def check(self, sizes: Sizes) -> None:
        """Raises ValueError where it does not fit the model."""

    def module(self, sizes: Sizes) -> nn.Module | None:
        """From positions_BT to what is added to the embeddings [B, T, D]."""
        return None

    def rotation(self, positions_BT: Tensor, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """cos and sin for `rotate`, each [B, T, 1, rotated channels]."""
        return None

    biased = False

    def bias_module(self, sizes: Sizes, both_ways: bool) -> nn.Module | None:
        """In place of `bias` where it is learned: from queries_BT and keys_BS, the positions, to [B, H, T, S]."""
        return None

    def bias(self, queries_BT: Tensor, keys_BS: Tensor, heads: int) -> Tensor:
        """What is added to the scores, float32 [B, H, T, S], where `biased`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Rotary(Positions):
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864, eq. 34) in the half-split layout of Llama
    checkpoints.

    Args:
        theta: default the model's `rope_theta`.
        share: of each head's channels that are rotated; the first ones are (GPT-NeoX).
        scaling: for a context longer than the one trained on.
    """

    theta: float | None = None
    share: float = 1.0
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        require(self.theta is None or self.theta > 1, f"model.positions.theta={self.theta} must be above 1")
        require(0 < self.share <= 1, f"model.positions.share={self.share} must lie in (0, 1]")

    def rotated(self, channels: int) -> int:
        return int(channels * self.share)

    def check(self, sizes: Sizes) -> None:
        turned = self.rotated(sizes.channels)
        require(
            turned >= 2 and turned % 2 == 0,
            f"model.positions.share={self.share} of {sizes.channels} channels of a head rotates {turned}, which must "
            "be an even number of at least 2",
        )
        if self.scaling is not None:
            self.scaling.check(sizes.context)
            self.scaling.frequencies(self.theta or 10_000.0, turned)

    def rotation(self, positions_BT: Tensor, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        assert self.theta is not None, "the model fills theta in"
        rotated, device = self.rotated(channels), positions_BT.device
        if self.scaling is None:
            turns, amplitude = plain(self.theta, rotated, device), 1.0
        else:
            turns, amplitude = self.scaling.frequencies(self.theta, rotated, device), self.scaling.amplitude
        angles = positions_BT[..., None].float() * turns
        angles = torch.cat((angles, angles), dim=-1)[:, :, None]
        cos, sin = angles.cos(), angles.sin()
        if amplitude != 1:
            cos, sin = cos * amplitude, sin * amplitude
        return cos.to(dtype), sin.to(dtype)


def rotate(x_BTHC: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates channel i together with channel i + R/2 by the angle of its position, of the first R channels."""
    cos, sin = rotation
    if (turned := cos.shape[-1]) < x_BTHC.shape[-1]:
        return torch.cat((rotate(x_BTHC[..., :turned], rotation), x_BTHC[..., turned:]), dim=-1)
    first, second = x_BTHC.chunk(2, dim=-1)
    return x_BTHC * cos + torch.cat((-second, first), dim=-1) * sin


@dataclass(frozen=True)
class Learned(Positions):
    """A learned vector for each position (Gehring et al. 2017, arXiv:1705.03122), as in GPT-2."""

    def module(self, sizes: Sizes) -> nn.Module:
        return nn.Embedding(sizes.context, sizes.width)


@dataclass(frozen=True)
class Sinusoidal(Positions):
    """Fixed sines and cosines (Vaswani et al. 2017, arXiv:1706.03762, section 3.5)."""

    def check(self, sizes: Sizes) -> None:
        require(sizes.width % 2 == 0, f"model.width={sizes.width} must be even for model.positions Sinusoidal")

    def module(self, sizes: Sizes) -> nn.Module:
        return Waves(sizes.width)


class Waves(nn.Module):
    """Channel 2i is sin(position / 10000^(2i/D)), channel 2i + 1 its cosine."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, positions_BT: Tensor) -> Tensor:
        angles = positions_BT[..., None].float() * plain(10_000.0, self.width, positions_BT.device)
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


@dataclass(frozen=True)
class ALiBi(Positions):
    """Attention with linear biases (Press et al. 2022, arXiv:2108.12409): -slope * distance is added to the scores."""

    biased = True

    def bias(self, queries_BT: Tensor, keys_BS: Tensor, heads: int) -> Tensor:
        slopes_H = torch.tensor(slopes(heads), device=keys_BS.device)
        distance_BTS = (queries_BT[:, :, None] - keys_BS[:, None, :]).abs().float()
        return -slopes_H[:, None, None] * distance_BTS[:, None]


def slopes(heads: int) -> list[float]:
    """2^(-8/heads), its square, its cube...; where heads is no power of two, those of the power below and then every
    second one of the power above (the paper's code).
    """
    below = 2 ** int(math.log2(heads))
    own = [2 ** (-8 * (i + 1) / below) for i in range(below)]
    return own + [2 ** (-4 * (i + 1) / below) for i in range(0, 2 * (heads - below), 2)]


@dataclass(frozen=True)
class Relative(Positions):
    """Relative position buckets of T5 (Raffel et al. 2020, arXiv:1910.10683, section 2.1): each head learns a number
    for each bucket of distances, which all layers add to their scores. Half of the buckets hold one distance each, the
    rest grow logarithmically; where a token sees later ones, half of all are for these.

    Args:
        farthest: all distances from here on share a bucket.
    """

    buckets: int = 32
    farthest: int = 128
    biased = True

    def __post_init__(self) -> None:
        require(
            self.buckets >= 4 and self.buckets % 4 == 0,
            f"model.positions.buckets={self.buckets} must be a multiple of 4",
        )
        require(
            self.farthest > self.buckets // 2,
            f"model.positions.farthest={self.farthest} must exceed half of model.positions.buckets={self.buckets}",
        )

    def bias_module(self, sizes: Sizes, both_ways: bool) -> nn.Module:
        return Buckets(self, sizes.heads, both_ways)


class Buckets(nn.Embedding):
    def __init__(self, settings: Relative, heads: int, both_ways: bool):
        super().__init__(settings.buckets, heads)
        self.settings, self.both_ways = settings, both_ways

    def forward(self, queries_BT: Tensor, keys_BS: Tensor) -> Tensor:  # type: ignore[override]
        after_BTS = keys_BS[:, None, :] - queries_BT[:, :, None]
        buckets_BTS = bucket_of(after_BTS, self.settings.buckets, self.settings.farthest, self.both_ways)
        return super().forward(buckets_BTS).permute(0, 3, 1, 2).float()


def bucket_of(after: Tensor, buckets: int, farthest: int, both_ways: bool) -> Tensor:
    """int64, of how far a key stands after its query (negative: before); later keys share bucket 0 unless
    `both_ways`.
    """
    first = torch.zeros_like(after)
    if both_ways:
        buckets //= 2
        first = (after > 0) * buckets
    distance = after.abs() if both_ways else (-after).clamp(min=0)
    exact = buckets // 2
    share = torch.log(distance.clamp(min=1).float() / exact) / math.log(farthest / exact)
    far = exact + (share * (buckets - exact)).long()
    return first + torch.where(distance < exact, distance, far.clamp(max=buckets - 1))


@dataclass(frozen=True)
class NoPositions(Positions):
    """None: order is known by causality alone (Kazemnejad et al. 2023, arXiv:2305.19466)."""
