"""Attention on a GPU where a query does not see all earlier tokens: packed documents, windows and other patterns; or
where scores are capped. One compiled kernel leaves out the blocks of keys that no query of a block sees, and neither a
mask [B, 1, T, T] nor the scores exist (Dong et al. 2024, arXiv:2412.05496, in torch's flex_attention).

Shapes: B rows, H query heads, K key-value heads, T tokens, C channels of a head.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from athanor.models.patterns import Pattern

NARROWEST = 16
"""Channels of a head, which the kernel multiplies as a matrix."""


def serves(x: Tensor, channels: int, dropout: float) -> bool:
    """Whether `attend` may take the place of torch's scaled_dot_product_attention."""
    return x.device.type == "cuda" and find_spec("triton") is not None and channels >= NARROWEST and dropout == 0


def block_mask(pattern: Pattern, rows: int, documents_BT: Tensor | None, positions_BT: Tensor) -> BlockMask:
    """Causal, within documents and by the pattern.

    Args:
        positions_BT: or [1, T], of all rows.
    """
    alike = documents_BT is None and len(positions_BT) == 1  # so that one row's mask is every row's
    tokens, device = positions_BT.shape[1], positions_BT.device
    positions_BT = positions_BT.expand(rows, tokens)

    def allows(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (query >= key) & pattern.allows(positions_BT[row, query], positions_BT[row, key])
        return seen if documents_BT is None else seen & (documents_BT[row, query] == documents_BT[row, key])

    return create_block_mask(
        allows, None if alike else rows, None, tokens, tokens, device, _compile=device.type == "cuda"
    )


def attend(
    query_BHTC: Tensor,
    key_BKTC: Tensor,
    value_BKTC: Tensor,
    mask: BlockMask,
    scale: float | None,
    softcap: float | None,
) -> Tensor:
    """[B, H, T, C], as torch's scaled_dot_product_attention; scores beyond `softcap` approach it."""

    def capped(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert softcap is not None
        return softcap * torch.tanh(score / softcap)

    kernel: Any = flex_attention if torch.compiler.is_compiling() else compiled()
    out = kernel(
        query_BHTC, key_BKTC, value_BKTC, score_mod=None if softcap is None else capped, block_mask=mask, scale=scale,
        enable_gqa=query_BHTC.shape[1] != key_BKTC.shape[1],
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out


@cache
def compiled() -> Callable[..., Any]:
    """For blocks that are not compiled themselves; made when first used, as it imports the compiler."""
    return torch.compile(flex_attention, dynamic=False)
