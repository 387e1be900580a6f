"""Grouped-query self-attention (Ainslie et al. 2023, arXiv:2305.13245) with an optional key-value cache.

Shapes: B rows, T new tokens, S cached + new tokens, H query heads, K key-value heads, C channels of a head, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athanor.models.positions import rotate


class KeyValueCache:
    """Keys and values of all layers for `capacity` positions, float [layers, 2, B, K, capacity, C].

    `length` positions are filled; every layer appends the same number, then `advance` moves the mark.
    """

    def __init__(self, layers: int, rows: int, kv_heads: int, capacity: int, channels: int, *, like: Tensor):
        self.store = like.new_zeros(layers, 2, rows, kv_heads, capacity, channels)
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.store.shape[4]

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


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, dropout: float):
        super().__init__()
        self.heads, self.kv_heads, self.channels = heads, kv_heads, width // heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.channels, bias=False)
        self.out = nn.Linear(heads * self.channels, width, bias=False)

    def forward(
        self,
        x_BTD: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KeyValueCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """`mask`: bool broadcastable to [B, H, T, S], true where attention is allowed; None means causal."""
        rows, tokens, _ = x_BTD.shape
        qkv_BTHC = self.qkv(x_BTD).view(rows, tokens, self.heads + 2 * self.kv_heads, self.channels)
        query_BTHC, key_BTKC, value_BTKC = qkv_BTHC.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        query_BHTC = rotate(query_BTHC, rotation).transpose(1, 2)
        key_BKSC = rotate(key_BTKC, rotation).transpose(1, 2)
        value_BKSC = value_BTKC.transpose(1, 2)
        if cache is not None:
            key_BKSC, value_BKSC = cache.append(layer, key_BKSC, value_BKSC)
        out_BHTC = F.scaled_dot_product_attention(
            query_BHTC,
            key_BKSC,
            value_BKSC,
            attn_mask=mask,
            is_causal=mask is None and tokens > 1,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=self.heads != self.kv_heads,
        )
        return self.out(out_BHTC.transpose(1, 2).reshape(rows, tokens, -1))


def packed_mask(documents_BT: Tensor) -> Tensor:
    """bool [B, 1, T, T]: position t sees s where s <= t and both belong to the same document."""
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    return torch.tril(same_BTT)[:, None]
