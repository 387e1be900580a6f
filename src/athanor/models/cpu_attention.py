"""Attention in bfloat16 on a CPU without matrix tiles, where torch's own kernel multiplies at a fifth of the rate of a
batched product: for each block of queries two products with a softmax between, made again in the backward pass, so that
weights exist for one block at a time. Scores are rounded to bfloat16 and normalised in float32.

Shapes: B rows, H query heads, K key-value heads, G = H / K queries a key, T queries, S keys, C channels of a head.
"""

from typing import Any

import torch
from torch import Tensor

BLOCK = 256
"""Queries of a block."""
TILES = torch.cpu._is_amx_tile_supported()


def serves(query_BHTC: Tensor, dropout: float) -> bool:
    """Whether `attend` is the faster way: in training, without dropout, of more than one token."""
    return (
        query_BHTC.device.type == "cpu"
        and query_BHTC.dtype == torch.bfloat16
        and query_BHTC.shape[2] > 1
        and dropout == 0
        and torch.is_grad_enabled()
        and not TILES
    )


def attend(query_BHTC: Tensor, key_BKSC: Tensor, value_BKSC: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """[B, H, T, C], as torch's scaled_dot_product_attention.

    Args:
        mask: broadcastable to [B, H, T, S]; bool, true where attention is allowed, or added to the scores. None is
            causal, and then S == T.
    """
    return BlockAttention.apply(query_BHTC, key_BKSC, value_BKSC, None if mask is None else additive(mask), scale)


def additive(mask: Tensor) -> Tensor:
    """What to add to the scores for a mask of allowed places; made once for all layers it saves each of them that."""
    if mask.dtype != torch.bool:
        return mask
    least = torch.finfo(torch.bfloat16).min
    return torch.zeros(mask.shape, dtype=torch.bfloat16, device=mask.device).masked_fill_(~mask, least)


class BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_BHTC: Tensor, key_BKSC: Tensor, value_BKSC: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(query_BHTC, key_BKSC, value_BKSC, mask)
        with torch.autocast("cpu", enabled=False):
            query, key, value = folded(query_BHTC, key_BKSC, value_BKSC)
            out = torch.empty_like(query)
            for start in range(0, query.shape[2], BLOCK):
                block, keys, weights = weighed(query, key, start, mask, scale, key_BKSC.shape)
                out[:, :, start : start + BLOCK] = (weights @ value[:, :keys]).view(block.shape)
        return out.view(query_BHTC.shape)

    @staticmethod
    def backward(ctx: Any, grad_BHTC: Tensor) -> tuple[Tensor | None, ...]:
        query_BHTC, key_BKSC, value_BKSC, mask = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            query, key, value = folded(query_BHTC, key_BKSC, value_BKSC)
            grad = grad_BHTC.reshape(query.shape)
            dquery = torch.empty_like(query)
            dkey, dvalue = torch.zeros_like(key, dtype=torch.float32), torch.zeros_like(value, dtype=torch.float32)
            for start in range(0, query.shape[2], BLOCK):
                block, keys, weights = weighed(query, key, start, mask, ctx.scale, key_BKSC.shape)
                own = grad[:, :, start : start + BLOCK].flatten(1, 2)
                dvalue[:, :keys] += weights.mT @ own
                dscores = torch._softmax_backward_data(own @ value[:, :keys].mT, weights, -1, weights.dtype)
                dscores *= ctx.scale
                dquery[:, :, start : start + BLOCK] = (dscores @ key[:, :keys]).view(block.shape)
                dkey[:, :keys] += dscores.mT @ block.flatten(1, 2)
        dkey, dvalue = dkey.to(key.dtype).view(key_BKSC.shape), dvalue.to(value.dtype).view(value_BKSC.shape)
        return dquery.view(query_BHTC.shape), dkey, dvalue, None, None


def folded(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [B K, G, T, C], keys and values [B K, S, C]."""
    key, value = key.flatten(0, 1), value.flatten(0, 1)
    return query.reshape(len(key), -1, *query.shape[2:]), key, value


def weighed(
    query: Tensor, key: Tensor, start: int, mask: Tensor | None, scale: float, shape: torch.Size
) -> tuple[Tensor, int, Tensor]:
    """Of the block of queries that begins at `start`: itself [B K, G, t, C], the number of keys that it may see, and
    its weights on them [B K, G t, S].
    """
    block = query[:, :, start : start + BLOCK]
    stop = start + block.shape[2]
    keys = stop if mask is None else key.shape[1]
    scores = block.flatten(1, 2) @ key[:, :keys].mT
    if mask is None:
        least = torch.finfo(scores.dtype).min
        bias = torch.full((stop - start, keys), least, dtype=scores.dtype).triu_(start + 1)
    else:
        bias = mask[:, :, start:stop].unflatten(1, (shape[1] if mask.shape[1] > 1 else 1, -1)).to(scores.dtype)
    spread = scores.view(*shape[:2], -1, stop - start, keys)
    return block, keys, torch.softmax(torch.add(bias, spread, alpha=scale), -1).view(scores.shape)
