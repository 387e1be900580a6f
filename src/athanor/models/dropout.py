"""Where dropout acts (Srivastava et al. 2014), and stochastic depth (Huang et al. 2016, arXiv:1603.09382)."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from athanor.errors import require


@dataclass(frozen=True)
class Dropout:
    """Probabilities, each in [0, 1).

    Args:
        embedding: on the sum of embeddings.
        attention: on attention weights.
        residual: on the output of both branches of a block.
        hidden: on the hidden channels of feed-forward layers.
        depth: that the last block's branches are left out for a row; less linearly in the blocks before it.
    """

    embedding: float = 0.0
    attention: float = 0.0
    residual: float = 0.0
    hidden: float = 0.0
    depth: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            require(0 <= value < 1, f"model.dropout.{field.name}={value} must lie in [0, 1)")

    @classmethod
    def of(cls, dropout: "float | Dropout") -> "Dropout":
        """A single number is the dropout of embeddings, attention weights and residual branches."""
        if isinstance(dropout, Dropout):
            return dropout
        require(0 <= dropout < 1, f"model.dropout={dropout} must lie in [0, 1)")
        return cls(dropout, dropout, dropout)


def drop_rows(x_BTD: Tensor, probability: float) -> Tensor:
    """Zeroes whole rows and scales the others by 1 / (1 - probability)."""
    kept_B11 = torch.rand(len(x_BTD), 1, 1, device=x_BTD.device) >= probability
    return x_BTD * kept_B11 / (1 - probability)
