"""Decoder-only Transformer in the Llama form: RoPE, pre-norm RMSNorm, SwiGLU, grouped-query attention, tied embeddings.

Shapes: B rows, T new tokens, S cached + new tokens, D width, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn

from athanor.models.attention import Attention, KeyValueCache, packed_mask
from athanor.models.feedforward import SwiGLU
from athanor.models.positions import rotation


class Block(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, hidden: int, norm_eps: float, dropout: float):
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=norm_eps)
        self.attention = Attention(width, heads, kv_heads, dropout)
        self.feedforward_norm = nn.RMSNorm(width, eps=norm_eps)
        self.feedforward = SwiGLU(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, rotation, mask: Tensor | None, cache: KeyValueCache | None, layer: int) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), rotation, mask, cache, layer))
        return x_BTD + self.dropout(self.feedforward(self.feedforward_norm(x_BTD)))


class Transformer(nn.Module):
    """Predicts the next token.

    Args:
        context: the most tokens a sequence may have; longer input raises ValueError.
        hidden: feed-forward channels; default 8/3 of the width, rounded up to a multiple of 32.
        kv_heads: key-value heads, a divisor of `heads`; default `heads`.
        dropout: on embeddings, attention weights and both residual branches.
    """

    def __init__(
        self,
        vocabulary_size: int,
        width: int,
        layers: int,
        heads: int,
        context: int,
        kv_heads: int | None = None,
        hidden: int | None = None,
        rope_theta: float = 10_000.0,
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        tie_embeddings: bool = True,
    ):
        super().__init__()
        kv_heads = kv_heads or heads
        if width % heads or (width // heads) % 2:
            raise ValueError(f"model.width={width} must be an even multiple of model.heads={heads}")
        if heads % kv_heads:
            raise ValueError(f"model.kv_heads={kv_heads} must divide model.heads={heads}")
        if not 0 <= dropout < 1:
            raise ValueError(f"model.dropout={dropout} must lie in [0, 1)")
        hidden = hidden or 32 * math.ceil(width * 8 / 3 / 32)
        self.arguments = {
            "vocabulary_size": vocabulary_size, "width": width, "layers": layers, "heads": heads, "context": context,
            "kv_heads": kv_heads, "hidden": hidden, "rope_theta": rope_theta, "norm_eps": norm_eps,
            "dropout": dropout, "tie_embeddings": tie_embeddings,
        }  # fmt: skip
        self.vocabulary_size, self.context, self.width = vocabulary_size, context, width
        self.heads, self.kv_heads, self.rope_theta = heads, kv_heads, rope_theta
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, kv_heads, hidden, norm_eps, dropout) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=norm_eps)
        self.output = None if tie_embeddings else nn.Linear(width, vocabulary_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal(0, 0.02); the projections that end a residual branch are scaled by 1/sqrt(2 layers) (GPT-2)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                nn.init.ones_(parameter)
            else:
                ends_branch = name.endswith(".out.weight")
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * len(self.blocks)) if ends_branch else 1))

    def hidden_states(
        self,
        tokens_BT: Tensor,
        *,
        documents_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Final normalised states, [B, T, D]. Without `documents_BT` and `mask`, attention is causal over the whole
        row.

        Args:
            documents_BT: document number of each token of a packed row; attention stays within a document.
            positions_BT: default 0..T-1, after what the cache holds.
            mask: bool [B, 1, T, S], true where attention is allowed; replaces causality.
            cache: keys and values of earlier tokens; extended in place.
        """
        start = cache.length if cache is not None else 0
        tokens = tokens_BT.shape[1]
        if positions_BT is None:
            if start + tokens > self.context:
                raise ValueError(f"a sequence of {start + tokens} tokens exceeds the model's context of {self.context}")
            positions_BT = torch.arange(start, start + tokens, device=tokens_BT.device)[None]
        if documents_BT is not None:
            mask = packed_mask(documents_BT)
        elif mask is None and start and tokens > 1:  # SDPA's is_causal counts from the first key, not from the last
            mask = torch.ones(tokens, start + tokens, dtype=torch.bool, device=tokens_BT.device).tril(start)
        x_BTD = self.dropout(self.embedding(tokens_BT))
        turn = rotation(positions_BT, self.width // self.heads, self.rope_theta, x_BTD.dtype)
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, turn, mask, cache, layer)
        if cache is not None:
            cache.advance(tokens)
        return self.norm(x_BTD)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        weight = self.embedding.weight if self.output is None else self.output.weight
        return nn.functional.linear(hidden, weight)

    def forward(self, tokens_BT: Tensor, **where) -> Tensor:
        """logits_BTV; takes the same keywords as `hidden_states`."""
        return self.logits(self.hidden_states(tokens_BT, **where))

    def new_cache(self, rows: int, capacity: int) -> KeyValueCache:
        weight = self.embedding.weight
        return KeyValueCache(len(self.blocks), rows, self.kv_heads, capacity, self.width // self.heads, like=weight)

    def flops_per_token(self, tokens: int) -> float:
        """Training FLOPs (forward and backward) of one token in a sequence of `tokens` (PaLM, appendix B)."""
        weights = sum(p.numel() for p in self.parameters()) - (self.output is not None) * self.embedding.weight.numel()
        return 6.0 * weights + 6.0 * len(self.blocks) * self.width * tokens  # causal: half of 12 L D T
