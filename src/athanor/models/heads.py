"""A Transformer with one number at each token: a reward model (read at the last token) or a critic (read at all).

Shapes: B rows, T tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn

from athanor.batches import IGNORED
from athanor.functional import labelled_logps
from athanor.models import require_language_model
from athanor.models.transformer import Transformer


class ScalarModel(nn.Module):
    """Linear head on the final states; it starts at zero, so a fresh critic values everything 0.

    As a reward model, the score of a response y to a prompt x is

        r(x, y) = head(state at the last token) + scale * sum over t of log p(y_t | x, y_<t)

    The second term, present with `likelihood`, is the implicit reward of Rafailov et al. 2024 (arXiv:2404.12358,
    section 4.1) without the reference, with p the trunk's own language-model head and a learnt scale: what the model
    knows of right answers counts from the first step. Without it this is the reward model of Ouyang et al. 2022. Small
    models, which have no layers to spare for checking an answer they have read, need it.
    """

    def __init__(self, trunk: Transformer, likelihood: bool = False):
        super().__init__()
        require_language_model(trunk, "model.trunk")
        self.trunk = trunk
        self.likelihood = likelihood
        if not likelihood:
            trunk.output = None  # an untied output matrix would be a parameter without a gradient
        self.head = nn.Linear(trunk.width, 1, bias=False)
        nn.init.zeros_(self.head.weight)
        if likelihood:
            self.scale = nn.Parameter(torch.ones(1))  # one dimension, for what shards parameters along it

    @property
    def arguments(self) -> dict[str, Any]:
        trunk = {"_target_": "athanor.models.transformer.Transformer", **self.trunk.arguments}
        return {"trunk": trunk, "likelihood": self.likelihood}

    @property
    def context(self) -> int:
        return self.trunk.context

    @property
    def vocabulary_size(self) -> int:
        return self.trunk.vocabulary_size

    @property
    def learning_rate_factors(self) -> dict[str, float]:
        return {f"trunk.{name}": factor for name, factor in self.trunk.learning_rate_factors.items()}

    def auxiliary_loss(self) -> Tensor | None:
        return self.trunk.auxiliary_loss()

    def routing_counts(self) -> dict[int, Tensor]:
        return self.trunk.routing_counts()

    def flops_per_token(self, tokens: int) -> float:
        output = 0 if self.likelihood else self.trunk.embedding.weight.numel()
        return self.trunk.flops_per_token(tokens) - 6.0 * output

    def as_critic(self) -> "ScalarModel":
        """Itself, without what only the likelihood needs: every parameter of a critic has a gradient."""
        if self.likelihood:
            self.likelihood, self.trunk.output = False, None
            nn.init.zeros_(self.head.weight)  # with the likelihood gone the head's own part is no estimate of the score
            del self.scale
        return self

    def forward(self, tokens_BT: Tensor, **where) -> Tensor:
        """float32 [B, T]; takes the keywords of `Transformer.hidden_states`."""
        return self.head(self.trunk.hidden_states(tokens_BT, **where)).squeeze(-1).float()

    def reward(self, tokens_BT: Tensor, lengths_B: Tensor, starts_B: Tensor | None = None) -> Tensor:
        """Score of each right-padded sequence; float32 [B].

        Args:
            lengths_B: the head is read at index lengths - 1.
            starts_B: index of the first token of the response; needed with `likelihood`.
        """
        return self.reward_and_logps(tokens_BT, lengths_B, starts_B)[0]

    def reward_and_logps(
        self, tokens_BT: Tensor, lengths_B: Tensor, starts_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As `reward`, and with `likelihood` also log p(response | prompt) under the trunk, float32 [B], nats."""
        rows, columns = (torch.arange(n, device=lengths_B.device) for n in tokens_BT.shape)
        hidden_BTD = self.trunk.hidden_states(tokens_BT, valid_BT=columns < lengths_B[:, None])
        score_B = self.head(hidden_BTD[rows, lengths_B - 1]).squeeze(-1).float()
        if not self.likelihood:
            return score_B, None
        assert starts_B is not None, "a likelihood needs to know where the response starts"
        labels_BT = response_labels(tokens_BT, starts_B, lengths_B)
        logps_B = labelled_logps(hidden_BTD, labels_BT, self.trunk.logits).sum(-1)
        return score_B + self.scale * logps_B, logps_B


def response_labels(tokens_BT: Tensor, starts_B: Tensor, lengths_B: Tensor) -> Tensor:
    """labels[t] = tokens[t + 1] where token t + 1 lies in [starts, lengths), else IGNORED."""
    columns = torch.arange(1, tokens_BT.shape[1] + 1, device=tokens_BT.device)[None]
    answered_BT = (columns >= starts_B[:, None]) & (columns < lengths_B[:, None])
    return torch.where(answered_BT, tokens_BT.roll(-1, dims=1), IGNORED)
