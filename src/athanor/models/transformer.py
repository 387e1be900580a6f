"""Decoder-only Transformer of exchangeable parts. By default it has the Llama form: RoPE, pre-norm RMSNorm, SwiGLU,
grouped-query attention, tied embeddings.

Shapes: B rows, T new tokens, S cached + new tokens, H heads, D width, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint

from athanor.errors import require
from athanor.functional import computing_dtype
from athanor.linear_cross_entropy import linear_cross_entropy
from athanor.models import gpu_attention
from athanor.models.attention import Attention, KeyValueCache, SelfAttention, in_turn, packed_mask
from athanor.models.cpu_attention import Bias, additive
from athanor.models.dropout import Dropout, drop_rows
from athanor.models.feedforward import FeedForward, default_hidden
from athanor.models.initialisation import Initialisation, ScaledNormal, role_of
from athanor.models.moe import Experts, MixtureOfExperts, Routing
from athanor.models.norms import Norm
from athanor.models.parts import Sizes
from athanor.models.patterns import Pattern
from athanor.models.positions import Positions, Rotary

UNREAD = 64
"""Passes whose auxiliary losses may wait to be read."""


class Block(nn.Module):
    """Attention and a feed-forward layer, each a residual branch.

    Args:
        depth: probability of stochastic depth.
    """

    def __init__(
        self,
        sizes: Sizes,
        attention: Attention,
        feedforward: FeedForward | MixtureOfExperts,
        norm: Norm,
        dropout: Dropout,
        scale: float | None,
        depth: float,
    ):
        super().__init__()
        self.placement, self.depth = norm.placement, depth
        self.routed = isinstance(feedforward, MixtureOfExperts)
        self.attention_norm = norm.module(sizes.width, sizes.norm_eps)
        self.attention = SelfAttention(sizes, attention, norm, dropout.attention, scale)
        self.feedforward_norm = norm.module(sizes.width, sizes.norm_eps)
        self.feedforward = feedforward.module(sizes, dropout.hidden)
        self.dropout = nn.Dropout(dropout.residual)
        if norm.placement == "sandwich":
            self.attention_post_norm = norm.module(sizes.width, sizes.norm_eps)
            self.feedforward_post_norm = norm.module(sizes.width, sizes.norm_eps)

    def forward(
        self,
        x_BTD: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        mask: Tensor | Bias | BlockMask | None,
        cache: KeyValueCache | None,
        layer: int,
        valid_BT: Tensor | None = None,
        source: Any = None,
    ) -> tuple[Tensor, Routing | None]:
        """The next states, and of a routed layer in training what its routing was."""
        before = self.placement != "post"
        branch = self.attention(self.attention_norm(x_BTD) if before else x_BTD, rotation, mask, cache, layer)
        x_BTD = self.join(x_BTD, branch, "attention")
        if source is not None:
            x_BTD = self.between(x_BTD, layer, source)
        branch, routing = self.feedforward_norm(x_BTD) if before else x_BTD, None
        if self.routed:
            branch, routing = self.feedforward(branch, valid_BT)
        else:
            branch = self.feedforward(branch)
        return self.join(x_BTD, branch, "feedforward"), routing

    def between(self, x_BTD: Tensor, layer: int, source: Any) -> Tensor:
        """What a block does with a source between its two branches."""
        raise NotImplementedError

    def join(self, x_BTD: Tensor, branch_BTD: Tensor, name: str) -> Tensor:
        if self.placement == "sandwich":
            branch_BTD = getattr(self, f"{name}_post_norm")(branch_BTD)
        branch_BTD = self.dropout(branch_BTD)
        if self.depth and self.training:
            branch_BTD = drop_rows(branch_BTD, self.depth)
        x_BTD = x_BTD + branch_BTD
        return getattr(self, f"{name}_norm")(x_BTD) if self.placement == "post" else x_BTD


class Transformer(nn.Module):
    """Predicts the next token.

    `form` is what `athanor.models.require_form` asks for; `block` what the layers are made of; `both_ways` whether a
    token sees later ones.

    Args:
        context: the most tokens a sequence may have; longer input raises ValueError.
        hidden: feed-forward channels; default 4 widths, where there is a gate 8/3 rounded up to a multiple of 32.
        kv_heads: key-value heads, a divisor of `heads`; default `heads`.
        rope_theta: of rotary positions that do not say their own.
        dropout: on embeddings, attention weights and both residual branches, or each by itself.
        head_width: channels of a head; default width / heads.
        positions: default rotary.
        feedforward: one kind for all layers, or a list that the layers take in turn.
        scale_embeddings: multiply token embeddings by sqrt(width) (Vaswani et al. 2017, section 3.4).
        logit_softcap: logits become softcap * tanh(logits / softcap).
        initialisation: default that of GPT-2.
    """

    form = "decoder"
    block: type[Block] = Block
    both_ways = False

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
        dropout: float | Dropout = 0.0,
        tie_embeddings: bool = True,
        head_width: int | None = None,
        positions: Positions | None = None,
        attention: Attention | None = None,
        feedforward: FeedForward | MixtureOfExperts | Sequence[FeedForward | MixtureOfExperts] | None = None,
        norm: Norm | None = None,
        scale_embeddings: bool = False,
        logit_softcap: float | None = None,
        initialisation: Initialisation | None = None,
    ):
        super().__init__()
        for name, value in (
            ("vocabulary_size", vocabulary_size), ("width", width), ("layers", layers), ("heads", heads),
            ("context", context), ("kv_heads", kv_heads), ("hidden", hidden), ("head_width", head_width),
        ):  # fmt: skip
            require(value is None or value >= 1, f"model.{name}={value} must be at least 1")
        chosen = {
            "head_width": head_width, "positions": positions, "attention": attention, "feedforward": feedforward,
            "norm": norm, "scale_embeddings": scale_embeddings, "logit_softcap": logit_softcap,
            "initialisation": initialisation,
        }  # fmt: skip
        kv_heads = kv_heads or heads
        positions, rotary = positions or Rotary(), positions is None or isinstance(positions, Rotary)
        if head_width is None:
            even = rotary and (positions.share == 1 if isinstance(positions, Rotary) else False)
            if width % heads or (even and width // heads % 2):
                need = "an even multiple" if even else "a multiple"
                raise ValueError(
                    f"model.width={width} must be {need} of model.heads={heads}, or model.head_width must be set"
                )
        require(heads % kv_heads == 0, f"model.kv_heads={kv_heads} must divide model.heads={heads}")
        require(rope_theta > 1, f"model.rope_theta={rope_theta} must be above 1")
        require(logit_softcap is None or logit_softcap > 0, f"model.logit_softcap={logit_softcap} must be positive")
        if isinstance(positions, Rotary):
            require(
                positions.theta is None or rope_theta in (10_000.0, positions.theta),
                f"model.rope_theta={rope_theta} and model.positions.theta={positions.theta} differ; set one of them",
            )
            positions = dataclasses.replace(positions, theta=positions.theta or rope_theta)
        else:
            require(
                rope_theta == 10_000.0,
                f"model.rope_theta={rope_theta} is of no use with model.positions {type(positions).__name__}",
            )
        drop = Dropout.of(dropout)
        attention, norm, initialisation = attention or Attention(), norm or Norm(), initialisation or ScaledNormal()
        kinds = list(feedforward) if isinstance(feedforward, Sequence) else [feedforward or FeedForward()]
        hidden = hidden or default_hidden(width, kinds[0].activation if kinds else "swiglu")
        sizes = Sizes(width, layers, heads, kv_heads, head_width or width // heads, hidden, context, norm_eps)
        positions.check(sizes)
        initialisation.check(sizes)
        patterns = attention.pattern_of_each(layers)
        feedforwards = in_turn(kinds, layers, "model.feedforward")

        self.arguments: dict[str, Any] = {
            "vocabulary_size": vocabulary_size, "width": width, "layers": layers, "heads": heads, "context": context,
            "kv_heads": kv_heads, "hidden": hidden, "rope_theta": rope_theta, "norm_eps": norm_eps,
            "dropout": dropout, "tie_embeddings": tie_embeddings,
        } | {name: part for name, part in chosen.items() if part not in (None, False)}  # fmt: skip
        self.vocabulary_size, self.context, self.width = vocabulary_size, context, width
        self.sizes, self.positions, self.patterns, self.initialisation = sizes, positions, patterns, initialisation
        self.attention, self.norm_settings, self.feedforwards = attention, norm, feedforwards
        self.distinct = list(dict.fromkeys(patterns))
        self.pattern_of = [self.distinct.index(pattern) for pattern in patterns]
        self.logit_softcap, self.logit_scale = logit_softcap, initialisation.logit_scale(sizes)
        self.embedding_scale = math.sqrt(width) if scale_embeddings else 1.0
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.position_embedding = positions.module(sizes)
        self.position_bias = positions.bias_module(sizes, self.both_ways)
        self.dropout, self.attention_dropout = nn.Dropout(drop.embedding), drop.attention
        scale = initialisation.attention_scale(sizes)
        self.blocks = nn.ModuleList(
            self.block(sizes, attention, kind, norm, drop, scale, drop.depth * (layer + 1) / layers)
            for layer, kind in enumerate(feedforwards)
        )
        self.norm = nn.Identity() if norm.placement == "post" else norm.module(width, norm_eps)
        self.output = None if tie_embeddings else nn.Linear(width, vocabulary_size, bias=False)
        self.recompute: dict[str, Any] | None = None
        self.compile_loss = False
        self._losses: list[Tensor] = []
        self._routings: dict[int, list[Tensor]] = {}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.initialisation.initialise(self, self.sizes)

    @property
    def architecture(self) -> dict[str, Any]:
        """What the model computes, without its weights and without what only training sees; equal for models that
        compute the same by the same weights.
        """
        feedforwards = []
        for part in self.feedforwards:
            part = dataclasses.replace(part, hidden=part.hidden or self.sizes.hidden)
            if isinstance(part, MixtureOfExperts):
                part = dataclasses.replace(part, balance=0.0, z=0.0, balance_over="row")
            feedforwards.append(part)
        return {
            **self.sizes._replace(hidden=0)._asdict(), "vocabulary_size": self.vocabulary_size,
            "tie_embeddings": self.output is None, "positions": self.positions, "patterns": self.patterns,
            "attention": dataclasses.replace(self.attention, patterns=()), "norm": self.norm_settings,
            "feedforward": feedforwards, "scale_embeddings": self.embedding_scale, "logit_softcap": self.logit_softcap,
            "logit_scale": self.logit_scale, "attention_scale": self.initialisation.attention_scale(self.sizes),
        }  # fmt: skip

    @property
    def learning_rate_factors(self) -> dict[str, float]:
        """By parameter name, those factors on the learning rate that are not 1."""
        factors = {
            name: self.initialisation.learning_rate_factor(role_of(name, parameter), self.sizes)
            for name, parameter in self.named_parameters()
        }
        return {name: factor for name, factor in factors.items() if factor != 1}

    def hidden_states(
        self,
        tokens_BT: Tensor,
        *,
        documents_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        valid_BT: Tensor | None = None,
        source: Any = None,
        entering_BTD: Tensor | None = None,
        layers: range | None = None,
    ) -> Tensor:
        """Final normalised states, [B, T, D]. Without `documents_BT` and `mask`, attention is causal over the whole
        row.

        Args:
            documents_BT: document number of each token of a packed row; attention stays within a document.
            positions_BT: default 0..T-1, after what the cache holds.
            mask: bool [B, 1, T, S], true where attention is allowed; replaces causality.
            cache: keys and values of earlier tokens; extended in place.
            valid_BT: bool; tokens that count in the routers' losses and load. Default all.
            source: what blocks that read more than their own row are given (`athanor.models.encoder_decoder`).
            layers: only these, and the states that leave the last of them. Default all.
            entering_BTD: the states that enter the first of `layers`, which is not the first of all.
        """
        layers = range(len(self.blocks)) if layers is None else layers
        start = cache.length if cache is not None else 0
        tokens = tokens_BT.shape[1]
        reach = start + tokens if positions_BT is None else math.inf
        if positions_BT is None:
            if start + tokens > self.context:
                raise ValueError(f"a sequence of {start + tokens} tokens exceeds the model's context of {self.context}")
            positions_BT = torch.arange(start, start + tokens, device=tokens_BT.device)[None]
        ordered = mask is None and cache is None and not self.both_ways
        x_BTD = self.embedded(tokens_BT, positions_BT) if entering_BTD is None else entering_BTD
        masks: list[Any]
        if ordered and self.flexible(x_BTD):
            masks = [
                gpu_attention.block_mask(pattern, len(tokens_BT), documents_BT, positions_BT)
                if documents_BT is not None or self.attention.softcap or not pattern.reaches(reach)
                else None
                for pattern in self.distinct
            ]
        else:
            if documents_BT is not None:
                mask = packed_mask(documents_BT)
            elif mask is None and start and tokens > 1:  # SDPA's is_causal counts from the first key, not from the last
                mask = torch.ones(tokens, start + tokens, dtype=torch.bool, device=tokens_BT.device).tril(start)
            keys_BS = cache.place(positions_BT) if cache is not None else positions_BT
            masks = [self.narrowed(mask, pattern, positions_BT, keys_BS, reach) for pattern in self.distinct]
            if x_BTD.device.type == "cpu" and computing_dtype(x_BTD) == torch.bfloat16:
                masks = [None if mask is None else Bias(additive(mask), ordered) for mask in masks]

        turn = self.positions.rotation(positions_BT, self.sizes.channels, computing_dtype(x_BTD))
        routings: dict[int, Routing] = {}
        besides = () if source is None else (source,)
        for layer in layers:
            block = self.blocks[layer]
            # Only training has the one shape that compiling pays for.
            step = block if self.training and cache is None else block._call_impl
            if self.recompute and self.training and torch.is_grad_enabled():
                step = partial(checkpoint, step, **self.recompute)
            counted_BT = valid_BT if block.routed else None
            x_BTD, routing = step(x_BTD, turn, masks[self.pattern_of[layer]], cache, layer, counted_BT, *besides)
            if routing is not None:
                routings[layer] = routing
        if cache is not None:
            cache.advance(tokens)
        if routings and torch.is_grad_enabled():
            self.remember(routings)
        return self.norm(x_BTD) if layers.stop == len(self.blocks) else x_BTD

    def embedded(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        x_BTD = self.embedding(tokens_BT)
        if self.embedding_scale != 1:
            x_BTD = x_BTD * self.embedding_scale
        if self.position_embedding is not None:
            x_BTD = x_BTD + self.position_embedding(positions_BT).to(x_BTD.dtype)
        return self.dropout(x_BTD)

    def flexible(self, x_BTD: Tensor) -> bool:
        """Whether masks may be those of `gpu_attention`."""
        dropout = self.attention_dropout if self.training else 0.0
        return not self.positions.biased and gpu_attention.serves(x_BTD, self.sizes.channels, dropout)

    def narrowed(
        self, mask: Tensor | None, pattern: Pattern, queries_BT: Tensor, keys_BS: Tensor, reach: float
    ) -> Tensor | None:
        """The mask [B, H, T, S] of one pattern, with the bias of the positions: bool, or added to the scores, or None.

        Args:
            reach: positions are below it.
        """
        if not pattern.reaches(reach):
            allowed_BTS = pattern.allows(queries_BT[:, :, None], keys_BS[:, None, :])
            if mask is None:
                allowed_BTS = allowed_BTS.tril(keys_BS.shape[1] - queries_BT.shape[1])
            mask = allowed_BTS[:, None] if mask is None else mask & allowed_BTS[:, None]
        if not self.positions.biased:
            return mask
        if mask is None:
            mask = torch.ones(queries_BT.shape[1], keys_BS.shape[1], dtype=torch.bool, device=keys_BS.device).tril(
                keys_BS.shape[1] - queries_BT.shape[1]
            )
        if self.position_bias is not None:
            return self.position_bias(queries_BT, keys_BS).masked_fill(~mask, -torch.inf)
        return self.positions.bias(queries_BT, keys_BS, self.sizes.heads).masked_fill(~mask, -torch.inf)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        weight = self.embedding.weight if self.output is None else self.output.weight
        logits = nn.functional.linear(hidden, weight)
        if self.logit_scale != 1:
            logits = logits * self.logit_scale
        if self.logit_softcap is not None:
            logits = self.logit_softcap * torch.tanh(logits / self.logit_softcap)
        return logits

    def cross_entropy(self, hidden: Tensor, labels: Tensor, **settings: Any) -> tuple[Tensor, Tensor]:
        """Of states [..., D] and labels [...], as `linear_cross_entropy` with its `label_smoothing` and `z_loss`."""
        weight = self.embedding.weight if self.output is None else self.output.weight
        if self.logit_scale != 1:
            hidden = hidden * self.logit_scale
        return linear_cross_entropy(
            hidden.flatten(0, -2), weight, labels.flatten(), softcap=self.logit_softcap,
            compiled=self.compile_loss, **settings,
        )  # fmt: skip

    def forward(self, tokens_BT: Tensor, **where) -> Tensor:
        """logits_BTV; takes the same keywords as `hidden_states`."""
        return self.logits(self.hidden_states(tokens_BT, **where))

    def new_cache(self, rows: int, capacity: int) -> KeyValueCache:
        sizes = self.sizes
        return KeyValueCache(sizes.layers, rows, sizes.kv_heads, capacity, sizes.channels, like=self.embedding.weight)

    def parallelize(self, mesh: DeviceMesh, layers: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Splits the layers over devices that work on the same tokens; see `athanor.models.parallel`."""
        from athanor.models import parallel

        return parallel.parallelize(self, mesh, layers)

    # --- experts --------------------------------------------------------------------------------------------------

    def remember(self, routings: dict[int, Routing]) -> None:
        if len(self._losses) == UNREAD:
            raise RuntimeError(
                f"{UNREAD} training passes of a mixture of experts, and no one has asked for their auxiliary_loss()"
            )
        self._losses.append(torch.stack([routing.loss for routing in routings.values()]).sum())
        for layer, routing in routings.items():
            found = torch.cat((torch.stack((routing.balance, routing.z, torch.ones_like(routing.z))), routing.load_E))
            kept = self._routings.setdefault(layer, [])
            kept[:] = [sum(kept, found)]

    def auxiliary_loss(self) -> Tensor | None:
        """Both auxiliary losses with their weights, summed over layers, of the training passes since the last call:
        their mean, a mean over rows each; float32 scalar. None without experts or passes.
        """
        losses, self._losses = self._losses, []
        return torch.stack(losses).mean() if losses else None

    def routing_counts(self) -> dict[int, Tensor]:
        """What `routing_metrics` reads, by layer, of the training passes since the last call; counts and sums over
        passes, to be added up over ranks. float32 [3 + experts].
        """
        counts, self._routings = {layer: kept[0] for layer, kept in self._routings.items()}, {}
        return counts

    # --- size -----------------------------------------------------------------------------------------------------

    @property
    def active_parameters(self) -> int:
        """Parameters that one token uses."""
        idle = 0
        for module in self.modules():
            if isinstance(module, Experts):
                own = module.up.numel() + module.out.numel()
                idle += own - own // module.settings.experts * module.settings.top_k
        return sum(p.numel() for p in self.parameters()) - idle

    def flops_per_token(self, tokens: int) -> float:
        """Training FLOPs (forward and backward) of one token in a sequence of `tokens` (PaLM, appendix B), of the
        experts that it goes to and of the positions that it sees.
        """
        tables = (self.output is not None) * self.embedding.weight.numel()
        for module in (self.position_embedding, self.position_bias):
            tables += sum(p.numel() for p in module.parameters()) if module is not None else 0
        seen = sum(pattern.pairs(tokens) for pattern in self.patterns) / tokens
        return 6.0 * (self.active_parameters - tables) + 12.0 * self.sizes.heads * self.sizes.channels * seen


def routing_metrics(counts: dict[int, Tensor]) -> dict[str, float]:
    """What to log of `Transformer.routing_counts`, added up over ranks.

    Returns:
        moe/balance and moe/z, means over layers of the two losses without their weights; moe/fullest, the most loaded
        expert's load over the mean, at its worst layer; and moe/load/<layer>/<expert>, that expert's share of the load.
    """
    metrics: dict[str, float] = {}
    rows = {layer: row.tolist() for layer, row in counts.items()}
    if not rows:
        return metrics
    for place, name in enumerate(("moe/balance", "moe/z")):
        metrics[name] = sum(row[place] / row[2] for row in rows.values()) / len(rows)
    shares = {layer: [load / max(sum(row[3:]), 1) for load in row[3:]] for layer, row in rows.items()}
    metrics["moe/fullest"] = max(max(share) * len(share) for share in shares.values())
    for layer, share in shares.items():
        metrics |= {f"moe/load/{layer}/{expert}": value for expert, value in enumerate(share)}
    return metrics
