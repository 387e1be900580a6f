"""Encoder of the decoder's own blocks: every token sees the whole of its document (Devlin et al. 2019,
arXiv:1810.04805). Departures: the logits at a token come straight from its state, and there are no segment embeddings.

Shapes: B rows, T tokens, S keys, D width.
"""

import torch
from torch import Tensor

from athanor.models.attention import KeyValueCache
from athanor.models.patterns import Pattern
from athanor.models.transformer import Transformer


class Encoder(Transformer):
    """Fills in tokens. Arguments as `Transformer`; a sparse pattern holds in both directions: of two positions, each
    sees the other where the later one would see the earlier.
    """

    form = "encoder"
    both_ways = True

    def hidden_states(
        self,
        tokens_BT: Tensor,
        *,
        documents_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        valid_BT: Tensor | None = None,
        source: None = None,
        entering_BTD: Tensor | None = None,
        layers: range | None = None,
    ) -> Tensor:
        """Final normalised states, [B, T, D]. Without `documents_BT` and `mask` a row is one document.

        Args:
            documents_BT: document number of each token; attention stays within a document. Negative numbers are
                padding, which no document sees and no router counts.
            positions_BT: default 0..T-1.
            mask: bool [B, 1, T, T], true where attention is allowed; in place of documents.
            entering_BTD, layers: see `Transformer.hidden_states`.
        """
        assert cache is None, "an encoder reads a row at once"
        if documents_BT is not None:
            mask = same_document(documents_BT, documents_BT)
            valid_BT = documents_BT >= 0 if valid_BT is None else valid_BT
        elif mask is None:
            mask = torch.ones(tokens_BT.shape[1], tokens_BT.shape[1], dtype=torch.bool, device=tokens_BT.device)
        return super().hidden_states(
            tokens_BT, positions_BT=positions_BT, mask=mask, valid_BT=valid_BT, entering_BTD=entering_BTD, layers=layers
        )

    def narrowed(
        self, mask: Tensor | None, pattern: Pattern, queries_BT: Tensor, keys_BS: Tensor, reach: float
    ) -> Tensor | None:
        if not pattern.reaches(reach):
            queries_BT1, keys_B1S = queries_BT[:, :, None], keys_BS[:, None, :]
            assert mask is not None
            pairs_BTS = torch.maximum(queries_BT1, keys_B1S), torch.minimum(queries_BT1, keys_B1S)
            mask = mask & pattern.allows(*pairs_BTS)[:, None]
        return super().narrowed(mask, pattern, queries_BT, keys_BS, 0)

    def flops_per_token(self, tokens: int) -> float:
        """As `Transformer.flops_per_token`; what is seen is seen in both directions."""
        seen = sum(pattern.pairs(tokens) for pattern in self.patterns) / tokens
        return super().flops_per_token(tokens) + 12.0 * self.sizes.heads * self.sizes.channels * seen


def same_document(documents_BT: Tensor, others_BS: Tensor) -> Tensor:
    """bool [B, 1, T, S]: whether both tokens are of one document."""
    return (documents_BT[:, :, None] == others_BS[:, None, :])[:, None]
