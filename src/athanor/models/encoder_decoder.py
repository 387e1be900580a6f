"""Encoder and decoder, as T5 (Raffel et al. 2020, arXiv:1910.10683): the decoder's own blocks, each with a look at the
encoder's states between its attention and its feed-forward layer, beside an encoder of the same settings.

Departures from T5 are settings: its positions are `Relative`, its scores are not scaled (`Attention.scale` 1), its
layers have no gate, or geglu_tanh. Both halves share the token embedding. Where a part exchanges, it does in both; what
looks at the encoder knows neither positions nor patterns.

Shapes: B rows, S source tokens, T target tokens, H query heads, K key-value heads, C channels of a head, D width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from athanor.errors import require
from athanor.models.attention import Attention, KeyValueCache, SelfAttention
from athanor.models.dropout import Dropout
from athanor.models.encoder import Encoder, same_document
from athanor.models.feedforward import FeedForward
from athanor.models.initialisation import Initialisation
from athanor.models.moe import MixtureOfExperts
from athanor.models.norms import Norm
from athanor.models.parts import Sizes
from athanor.models.positions import Positions
from athanor.models.transformer import Block, Transformer


class Source(NamedTuple):
    """What the decoder reads of the encoder: its states, or the keys and values that each layer made of them."""

    states_BSD: Tensor | None
    mask: Tensor | None = None  # bool, broadcastable to [B, 1, T, S]; None allows all
    kept: Tensor | None = None  # [layers, 2, B, K, S, C]


class CrossAttention(SelfAttention):
    """Queries of the target, keys and values of the source."""

    def add_projections(self, width: int, bias: bool) -> None:
        self.query = nn.Linear(width, self.heads * self.channels, bias=bias)
        self.key_value = nn.Linear(width, 2 * self.kv_heads * self.channels, bias=bias)

    def keys_and_values(self, states_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Each [B, K, S, C]."""
        rows, length, _ = states_BSD.shape
        key_BSKC, value_BSKC = self.key_value(states_BSD).view(rows, length, 2, self.kv_heads, self.channels).unbind(2)
        if self.normed:
            key_BSKC = self.key_norm(key_BSKC)
        return key_BSKC.transpose(1, 2), value_BSKC.transpose(1, 2)

    def forward(self, x_BTD: Tensor, source: Source, layer: int) -> Tensor:  # type: ignore[override]
        rows, tokens, _ = x_BTD.shape
        query_BTHC = self.query(x_BTD).view(rows, tokens, self.heads, self.channels)
        if self.normed:
            query_BTHC = self.query_norm(query_BTHC)
        if source.kept is not None:
            key_BKSC, value_BKSC = source.kept[layer]
        else:
            assert source.states_BSD is not None
            key_BKSC, value_BKSC = self.keys_and_values(source.states_BSD)
        return self.attended(query_BTHC.transpose(1, 2), key_BKSC, value_BKSC, source.mask, causal=False)


class CrossBlock(Block):
    """A block with attention to the source between its two branches."""

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
        super().__init__(sizes, attention, feedforward, norm, dropout, scale, depth)
        self.cross_norm = norm.module(sizes.width, sizes.norm_eps)
        self.cross = CrossAttention(sizes, attention, norm, dropout.attention, scale)
        if norm.placement == "sandwich":
            self.cross_post_norm = norm.module(sizes.width, sizes.norm_eps)

    def between(self, x_BTD: Tensor, layer: int, source: Source) -> Tensor:
        branch = self.cross(self.cross_norm(x_BTD) if self.placement != "post" else x_BTD, source, layer)
        return self.join(x_BTD, branch, "cross")


class SourceCache(KeyValueCache):
    """A decoder's cache that also keeps each layer's keys and values of the source, made once."""

    source: Source

    def keep_rows(self, rows: Tensor) -> None:
        super().keep_rows(rows)
        mask, kept = self.source.mask, self.source.kept
        assert mask is not None
        assert kept is not None
        self.source = Source(None, mask[rows], kept[:, :, rows])


class EncoderDecoder(Transformer):
    """Answers a source. Arguments as `Transformer`, which is the decoder; both halves have them.

    Args:
        context: the most tokens of a source, and of a target.
        encoder_layers: default `layers`.
        start: the token that every target begins with, and no label is.
    """

    form = "encoder-decoder"
    block = CrossBlock

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
        encoder_layers: int | None = None,
        start: int = 1,
    ):
        require(
            encoder_layers is None or encoder_layers >= 1, f"model.encoder_layers={encoder_layers} must be at least 1"
        )
        require(
            0 <= start < vocabulary_size, f"model.start={start} must be below model.vocabulary_size={vocabulary_size}"
        )
        shared: dict[str, Any] = {
            "vocabulary_size": vocabulary_size, "width": width, "heads": heads, "context": context,
            "kv_heads": kv_heads, "hidden": hidden, "rope_theta": rope_theta, "norm_eps": norm_eps, "dropout": dropout,
            "head_width": head_width, "positions": positions, "attention": attention, "feedforward": feedforward,
            "norm": norm, "scale_embeddings": scale_embeddings, "initialisation": initialisation,
        }  # fmt: skip
        super().__init__(**shared, layers=layers, tie_embeddings=tie_embeddings, logit_softcap=logit_softcap)
        self.encoder = Encoder(**shared, layers=encoder_layers or layers)
        self.encoder.embedding = self.embedding
        self.start = start
        self.arguments |= {"encoder_layers": encoder_layers or layers, "start": start}

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "encoder"):
            self.encoder.reset_parameters()

    def encode(
        self, tokens_BS: Tensor, *, documents_BS: Tensor | None = None, positions_BS: Tensor | None = None
    ) -> Tensor:
        """The encoder's states [B, S, D]; see `Encoder.hidden_states`."""
        return self.encoder.hidden_states(tokens_BS, documents_BT=documents_BS, positions_BT=positions_BS)

    def begun(self, labels_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """The decoder's input: `start` at position 0, elsewhere the label before; of padding it may be anything."""
        before_BT = labels_BT.roll(1, dims=1).clamp(min=0)
        return before_BT.masked_fill(positions_BT == 0, self.start)

    def hidden_states(  # type: ignore[override]
        self,
        tokens_BT: Tensor,
        *,
        source: Tensor | None = None,
        source_documents_BS: Tensor | None = None,
        documents_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        mask: Tensor | None = None,
        cache: SourceCache | None = None,
        valid_BT: Tensor | None = None,
    ) -> Tensor:
        """Final normalised states of the decoder, [B, T, D]; as `Transformer.hidden_states`.

        Args:
            source: `encode`'s states, unless the cache has read them.
            source_documents_BS, documents_BT: a target sees the source of its own document. Negative numbers are
                padding.
        """
        if cache is not None:
            read = cache.source
        elif documents_BT is None or source_documents_BS is None:
            read = Source(source)
        else:  # padding sees everything: a query must see something
            seen = same_document(documents_BT, source_documents_BS) | (documents_BT < 0)[:, None, :, None]
            read = Source(source, seen)
            valid_BT = documents_BT >= 0 if valid_BT is None else valid_BT
        return super().hidden_states(
            tokens_BT, documents_BT=documents_BT, positions_BT=positions_BT, mask=mask, cache=cache, valid_BT=valid_BT,
            source=read,
        )  # fmt: skip

    def read(self, tokens_BS: Tensor, valid_BS: Tensor, capacity: int) -> SourceCache:
        """A cache for targets of `capacity` tokens, with all that they need of the sources.

        Args:
            valid_BS: bool; where the sources stand among padding.
        """
        positions_BS = (valid_BS.cumsum(1) - 1).clamp(min=0)
        states_BSD = self.encode(tokens_BS, documents_BS=valid_BS.long() - 1, positions_BS=positions_BS)
        kept = [torch.stack(block.cross.keys_and_values(states_BSD)) for block in self.blocks]  # type: ignore[union-attr, operator]
        sizes = self.sizes
        cache = SourceCache(
            sizes.layers, len(tokens_BS), sizes.kv_heads, capacity, sizes.channels, like=self.embedding.weight
        )
        cache.source = Source(None, valid_BS[:, None, None], torch.stack(kept))
        return cache

    # --- experts and size -----------------------------------------------------------------------------------------

    def auxiliary_loss(self) -> Tensor | None:
        """The decoder's and the encoder's, added up."""
        found = [loss for loss in (super().auxiliary_loss(), self.encoder.auxiliary_loss()) if loss is not None]
        return torch.stack(found).sum() if found else None

    def routing_counts(self) -> dict[int, Tensor]:
        """The encoder's layers are counted first."""
        before = self.encoder.sizes.layers
        return self.encoder.routing_counts() | {
            before + layer: counts for layer, counts in super().routing_counts().items()
        }

    def flops(self, source: int, target: int) -> float:
        """Training FLOPs of a pair of so many tokens (see `Transformer.flops_per_token`)."""
        sizes, table = self.sizes, self.embedding.weight.numel()
        blocks: Any = self.blocks
        read = sum(p.numel() for block in blocks for p in block.cross.key_value.parameters())
        encoder = self.encoder.flops_per_token(source) - 6.0 * table
        decoder = super().flops_per_token(target) - 6.0 * (self.encoder.active_parameters - table + read)
        across = 12.0 * sizes.layers * sizes.heads * sizes.channels * source
        return source * (encoder + 6.0 * read) + target * (decoder + across)

    def flops_per_token(self, tokens: int) -> float:
        """Of a source and a target of so many tokens each, the mean over both."""
        return self.flops(tokens, tokens) / (2 * tokens)
