"""A Transformer with one number at each token: a reward model (read at the last token) or a critic (read at all)."""

from typing import Any

from torch import Tensor, nn

from athanor.models.transformer import Transformer


class ScalarModel(nn.Module):
    """Linear head on the final states. The head starts at zero, so a fresh model scores everything 0."""

    def __init__(self, trunk: Transformer):
        super().__init__()
        self.trunk = trunk
        trunk.output = None  # an untied output matrix would be a parameter without a gradient
        self.head = nn.Linear(trunk.width, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    @property
    def arguments(self) -> dict[str, Any]:
        return {"trunk": {"_target_": "athanor.models.transformer.Transformer", **self.trunk.arguments}}

    @property
    def context(self) -> int:
        return self.trunk.context

    @property
    def vocabulary_size(self) -> int:
        return self.trunk.vocabulary_size

    def flops_per_token(self, tokens: int) -> float:
        return self.trunk.flops_per_token(tokens) - 6.0 * self.trunk.embedding.weight.numel()

    def forward(self, tokens_BT: Tensor, **where) -> Tensor:
        """float32 [B, T]; takes the keywords of `Transformer.hidden_states`."""
        return self.head(self.trunk.hidden_states(tokens_BT, **where)).squeeze(-1).float()

    def reward(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Score of each right-padded sequence, read at its last token (index lengths - 1); float32 [B]."""
        return self(tokens_BT).gather(1, (lengths_B - 1)[:, None]).squeeze(1)
