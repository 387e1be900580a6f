"""Self-attention: multi-head, multi-query (Shazeer 2019, arXiv:1911.02150) and grouped-query (Ainslie et al. 2023,
arXiv:2305.13245), whole or by a sparse pattern, with an optional key-value cache.

Shapes: B rows, T new tokens, S cached + new tokens, H query heads, K key-value heads, C channels of a head, D width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from athanor.errors import require
from athanor.models import cpu_attention, gpu_attention
from athanor.models.cpu_attention import Bias
from athanor.models.norms import Norm
from athanor.models.parts import Sizes
from athanor.models.patterns import Full, Pattern
from athanor.models.positions import rotate


@dataclass(frozen=True)
class Attention:
    """
    Args:
        patterns: what the layers see, taken in turn: a list as long as the layers, or one that repeats. Default all
            earlier positions.
        bias: of the projections to queries, keys and values.
        out_bias: of the projection back to the width.
        softcap: scores become softcap * tanh(scores / softcap) (Gemma 2, arXiv:2408.00118, section 2).
        scale: factor on the scores; default 1/sqrt(C), unless the initialisation says otherwise. T5 has 1.
    """

    patterns: Sequence[Pattern] = ()
    bias: bool = False
    out_bias: bool = False
    softcap: float | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        require(self.scale is None or self.scale > 0, f"model.attention.scale={self.scale} must be positive or null")
        require(
            self.softcap is None or self.softcap > 0, f"model.attention.softcap={self.softcap} must be positive or null"
        )

    def pattern_of_each(self, layers: int) -> list[Pattern]:
        return in_turn(self.patterns or [Full()], layers, "model.attention.patterns")


def in_turn(parts: Sequence, layers: int, key: str) -> list:
    """The part of each layer, of parts that repeat down the layers."""
    require(
        0 < len(parts) <= layers and layers % len(parts) == 0,
        f"{key} has {len(parts)} entries, which must divide model.layers={layers}",
    )
    return [parts[layer % len(parts)] for layer in range(layers)]


class KeyValueCache:
    """Keys and values of all layers for `capacity` positions, float [layers, 2, B, K, capacity, C].

    `length` positions are filled; every layer appends the same number, then `advance` moves the mark.
    """

    def __init__(self, layers: int, rows: int, kv_heads: int, capacity: int, channels: int, *, like: Tensor):
        self.store = like.new_zeros(layers, 2, rows, kv_heads, capacity, channels)
        self.positions_BS = torch.zeros(rows, capacity, dtype=torch.long, device=like.device)
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.store.shape[4]

    def place(self, positions_BT: Tensor) -> Tensor:
        """Positions of the cached keys and of the new ones, [B, S]."""
        end = self.length + positions_BT.shape[1]
        self.positions_BS[:, self.length : end] = positions_BT
        return self.positions_BS[:, :end]

    def append(self, layer: int, key_BKTC: Tensor, value_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        end = self.length + key_BKTC.shape[2]
        self.store[layer, 0, :, :, self.length : end] = key_BKTC
        self.store[layer, 1, :, :, self.length : end] = value_BKTC
        return self.store[layer, 0, :, :, :end], self.store[layer, 1, :, :, :end]

    def advance(self, tokens: int) -> None:
        self.length += tokens

    def keep_rows(self, rows: Tensor) -> None:
        """Drops the rows of finished sequences; `rows` holds the indices of those that go on."""
        self.store = self.store[:, :, rows]
        self.positions_BS = self.positions_BS[rows]


class SelfAttention(nn.Module):
    """
    Args:
        scale: of the scores, where the settings have none; default 1/sqrt(C).
    """

    def __init__(self, sizes: Sizes, settings: Attention, norm: Norm, dropout: float, scale: float | None = None):
        super().__init__()
        self.heads, self.kv_heads, self.channels = sizes.heads, sizes.kv_heads, sizes.channels
        self.dropout, self.softcap = dropout, settings.softcap
        self.scale = scale if settings.scale is None else settings.scale
        self.add_projections(sizes.width, settings.bias)
        self.out = nn.Linear(self.heads * self.channels, sizes.width, bias=settings.out_bias)
        if norm.queries_and_keys:
            self.query_norm = norm.module(self.channels, sizes.norm_eps)
            self.key_norm = norm.module(self.channels, sizes.norm_eps)
        self.normed = norm.queries_and_keys

    def add_projections(self, width: int, bias: bool) -> None:
        self.qkv = nn.Linear(width, (self.heads + 2 * self.kv_heads) * self.channels, bias=bias)

    def forward(
        self,
        x_BTD: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        mask: Tensor | Bias | BlockMask | None,
        cache: KeyValueCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """`mask`: broadcastable to [B, H, T, S]; bool, true where attention is allowed, or added to the scores; or of
        `gpu_attention`; None means causal.
        """
        rows, tokens, _ = x_BTD.shape
        qkv_BTHC = self.qkv(x_BTD).view(rows, tokens, self.heads + 2 * self.kv_heads, self.channels)
        query_BTHC, key_BTKC, value_BTKC = qkv_BTHC.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        if self.normed:
            query_BTHC, key_BTKC = self.query_norm(query_BTHC), self.key_norm(key_BTKC)
        if rotation is not None:
            query_BTHC, key_BTKC = rotate(query_BTHC, rotation), rotate(key_BTKC, rotation)
        query_BHTC, key_BKSC, value_BKSC = (x.transpose(1, 2) for x in (query_BTHC, key_BTKC, value_BTKC))
        if cache is not None:
            key_BKSC, value_BKSC = cache.append(layer, key_BKSC, value_BKSC)
        return self.attended(query_BHTC, key_BKSC, value_BKSC, mask, causal=mask is None and tokens > 1)

    def attended(
        self,
        query_BHTC: Tensor,
        key_BKSC: Tensor,
        value_BKSC: Tensor,
        mask: Tensor | Bias | BlockMask | None,
        causal: bool,
    ) -> Tensor:
        """[B, T, D]."""
        if isinstance(mask, BlockMask):
            out_BHTC = gpu_attention.attend(query_BHTC, key_BKSC, value_BKSC, mask, self.scale, self.softcap)
            return self.out(out_BHTC.transpose(1, 2).flatten(2))
        ordered = False
        if isinstance(mask, Bias):
            mask, ordered = mask
        attend = F.scaled_dot_product_attention if self.softcap is None else self.capped
        if mask is not None and mask.is_floating_point():
            mask = mask.to(query_BHTC.dtype)
        dropout = self.dropout if self.training else 0.0
        plain = causal if mask is None else not mask.requires_grad  # else a learned bias would get no gradient
        if plain and self.softcap is None and cpu_attention.serves(query_BHTC, dropout):
            scale = 1 / math.sqrt(self.channels) if self.scale is None else self.scale
            out_BHTC = cpu_attention.attend(query_BHTC, key_BKSC, value_BKSC, mask, scale, ordered)
            return self.out(out_BHTC.transpose(1, 2).flatten(2))
        out_BHTC = attend(
            query_BHTC,
            key_BKSC,
            value_BKSC,
            attn_mask=mask,
            is_causal=causal,
            dropout_p=dropout,
            scale=self.scale,
            enable_gqa=self.heads != self.kv_heads,
        )
        return self.out(out_BHTC.transpose(1, 2).flatten(2))

    def capped(
        self,
        query_BHTC: Tensor,
        key_BKSC: Tensor,
        value_BKSC: Tensor,
        attn_mask: Tensor | None,
        is_causal: bool,
        dropout_p: float,
        scale: float | None,
        enable_gqa: bool,
    ) -> Tensor:
        """As torch's function of these arguments, with capped scores; the scores [B, H, T, S] exist whole."""
        if enable_gqa:
            key_BKSC, value_BKSC = (
                x.repeat_interleave(self.heads // self.kv_heads, dim=1) for x in (key_BKSC, value_BKSC)
            )
        assert self.softcap is not None
        scale = 1 / math.sqrt(self.channels) if scale is None else scale
        scores_BHTS = (query_BHTC @ key_BKSC.to(query_BHTC.dtype).mT).float() * scale
        scores_BHTS = self.softcap * torch.tanh(scores_BHTS / self.softcap)
        if is_causal:
            attn_mask = torch.ones(scores_BHTS.shape[-2:], dtype=torch.bool, device=scores_BHTS.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores_BHTS = scores_BHTS.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores_BHTS = scores_BHTS + attn_mask
        weights_BHTS = F.dropout(scores_BHTS.softmax(-1), dropout_p, training=dropout_p > 0)
        return weights_BHTS.to(query_BHTC.dtype) @ value_BKSC.to(query_BHTC.dtype)


def packed_mask(documents_BT: Tensor) -> Tensor:
    """bool [B, 1, T, T]: position t sees s where s <= t and both belong to the same document."""
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    return torch.tril(same_BTT)[:, None]
