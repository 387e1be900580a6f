"""Attention over rows whose tokens are shared by the processes of a ring: each passes its keys and values on to the
next one, and looks at those that come by, n times; what it found before and what it finds now are joined by the sums
of their exponentials (Liu et al. 2023, arXiv:2310.01889). No process ever holds more than two blocks of keys and
values. In the backward pass they go round again, and their gradients with them.

A process has one piece from a row's beginning and one from its end. Of another's block it therefore sees either the
first half with all of its queries, or all with the second half of its queries: the same work for all, at every turn.

torch's own ring (torch.distributed.tensor.experimental) knows neither masks, which rows of packed documents need, nor a
kernel of the CPU's. Its kernels within a block are used here.

Shapes: B rows, H query heads, K key-value heads, G = H / K queries a key, T tokens of a process, C channels of a head.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

HIDDEN = -1e30
"""Score of a key that is not seen: finite, so that a query that sees none of a block's has a sum of nearly zero."""
GRAIN = {"cpu": 1, "cuda": 32}
"""Tokens of which a piece has a multiple, by device: what its kernel aligns sums and masks to."""
aten = torch.ops.aten


class Ring:
    """
    Args:
        group: its processes, in their order.
    """

    def __init__(self, group: Any):
        self.group, self.size, self.rank = group, dist.get_world_size(group), dist.get_rank(group)
        ranks = dist.get_process_group_ranks(group)
        self.before, self.after = ranks[self.rank - 1], ranks[(self.rank + 1) % self.size]

    def sources(self) -> list[int]:
        """Whose block is here at each turn."""
        return [(self.rank - turn) % self.size for turn in range(self.size)]

    def seen(self, source: int, tokens: int) -> tuple[slice, slice]:
        """Of the queries here, those that see any of a source's keys, and these keys."""
        first, second, all_ = slice(0, tokens // 2), slice(tokens // 2, tokens), slice(0, tokens)
        if source == self.rank:
            return all_, all_
        return (all_, first) if source < self.rank else (second, all_)

    def pass_on(self, block: Tensor) -> tuple[Tensor, list[Any]]:
        """What comes for it, once all of the returned works are waited for."""
        coming = torch.empty_like(block)
        sent = dist.P2POp(dist.isend, block, self.after, self.group)
        return coming, dist.batch_isend_irecv([sent, dist.P2POp(dist.irecv, coming, self.before, self.group)])


def attend(
    query_BHTC: Tensor, key_BKTC: Tensor, value_BKTC: Tensor, documents_NBT: Tensor | None, ring: Ring, scale: float
) -> Tensor:
    """[B, H, T, C]: causal attention over the tokens of all processes. Collective, in the backward pass too.

    Args:
        documents_NBT: numbers of the documents of all processes' tokens, within which attention stays.
    """
    out_BHTC: Tensor = RingAttention.apply(query_BHTC, key_BKTC, value_BKTC, documents_NBT, ring, scale)
    return out_BHTC


class RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, documents: Tensor | None, ring: Ring, scale: float
    ) -> Tensor:
        ctx.ring, ctx.scale, ctx.documents = ring, scale, documents
        out = torch.zeros_like(query, dtype=torch.float32)
        sums = torch.full(query.shape[:3], 2 * HIDDEN, device=query.device)
        pair = torch.stack((key, value))
        for turn, source in enumerate(ring.sources()):
            coming, works = ring.pass_on(pair) if turn < ring.size - 1 else (pair, [])
            queries, keys = ring.seen(source, query.shape[2])
            bias, causal = bias_of(documents, ring.rank, source, queries, keys, query.dtype)
            mine, others = query[:, :, queries], heads(pair[:, :, :, keys], query)
            found, its_sums = looked_up(mine, others, bias, causal, scale)
            joined = torch.logaddexp(sums[:, :, queries], its_sums)
            out[:, :, queries] *= (sums[:, :, queries] - joined).exp()[..., None]
            out[:, :, queries] += found * (its_sums - joined).exp()[..., None]
            sums[:, :, queries] = joined
            for work in works:
                work.wait()
            pair = coming
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, sums = ctx.saved_tensors
        ring, size = ctx.ring, (key.shape[1], -1)
        dquery = torch.zeros_like(query, dtype=torch.float32)
        pair = torch.stack((key, value))
        dpair = torch.zeros_like(pair, dtype=torch.float32)
        late: list[Any] = []
        for turn, source in enumerate(ring.sources()):
            coming, works = ring.pass_on(pair) if turn < ring.size - 1 else (pair, [])
            queries, keys = ring.seen(source, query.shape[2])
            bias, causal = bias_of(ctx.documents, ring.rank, source, queries, keys, query.dtype)
            mine = [x[:, :, queries].contiguous() for x in (query, out, sums, grad)]
            its_dquery, *its_dpair = slopes(mine, heads(pair[:, :, :, keys], query), bias, causal, ctx.scale)
            dquery[:, :, queries] += its_dquery
            for work in (*works, *late):
                work.wait()
            dpair[:, :, :, keys] += torch.stack([x.float().unflatten(1, size).sum(2) for x in its_dpair])
            pair, sent = coming, dpair
            dpair, late = ring.pass_on(sent)  # on the way while the next block is at work; after the last they are home
        for work in late:
            work.wait()
        return dquery.to(query.dtype), *dpair.to(key.dtype), None, None, None


def heads(pair: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [2, B, K, S, C] for each of the query heads."""
    key, value = pair.repeat_interleave(query.shape[1] // pair.shape[2], 2)
    return key, value


def bias_of(
    documents_NBT: Tensor | None, rank: int, source: int, queries: slice, keys: slice, dtype: torch.dtype
) -> tuple[Tensor | None, bool]:
    """What is added to the scores of a block, [B, 1, T, S], and whether the kernel is to be causal."""
    own = source == rank  # tokens of both pieces are in their order, so that within a block causality is the usual one
    if documents_NBT is None:
        return None, own
    seen_BTS = documents_NBT[rank][:, queries, None] == documents_NBT[source][:, None, keys]
    seen_BTS = seen_BTS.tril() if own else seen_BTS
    bias_BTS = torch.zeros(seen_BTS.shape, dtype=dtype, device=seen_BTS.device).masked_fill_(~seen_BTS, HIDDEN)
    return bias_BTS[:, None], False


# --- a block ----------------------------------------------------------------------------------------------------------


def looked_up(
    query: Tensor, others: tuple[Tensor, Tensor], bias: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention to a block's keys and values, and the logarithms of the sums of its exponentials, float32 [B, H, T]."""
    if query.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(
            query, *others, 0.0, causal, attn_mask=bias, scale=scale
        )
    bias = None if bias is None else bias.expand(*query.shape[:3], -1)
    out, sums, *_ = aten._scaled_dot_product_efficient_attention(query, *others, bias, True, 0.0, causal, scale=scale)
    return out, sums


def slopes(
    mine: list[Tensor], others: tuple[Tensor, Tensor], bias: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a block's queries, keys and values.

    Args:
        mine: queries; their output and sums over all blocks; the gradient of that output.
    """
    query, out, sums, grad = mine
    if query.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, *others, out, sums, 0.0, causal, attn_mask=bias, scale=scale
        )
    bias = None if bias is None else bias.expand(*query.shape[:3], -1)
    none = torch.empty((), dtype=torch.int64, device=query.device)  # random numbers' state, for a dropout of 0
    dquery, dkey, dvalue, _ = aten._scaled_dot_product_efficient_attention_backward(
        grad, query, *others, bias, out, sums, none, none, 0.0, (True, True, True, False), causal, scale=scale
    )
    return dquery, dkey, dvalue
