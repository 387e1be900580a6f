"""Feed-forward layers: gated (Shazeer 2020, arXiv:2002.05202) or plain, with or without biases."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athanor.errors import require
from athanor.models.parts import Sizes

Activation = Literal["swiglu", "geglu", "geglu_tanh", "reglu", "relu", "relu2", "gelu", "gelu_tanh", "silu"]


def squared_relu(x: Tensor) -> Tensor:
    """So et al. 2021, arXiv:2109.08668, section 3."""
    return F.relu(x).square()


CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "geglu": F.gelu,
    "geglu_tanh": partial(F.gelu, approximate="tanh"),
    "reglu": F.relu,
    "relu": F.relu,
    "relu2": squared_relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


def gated(activation: Activation) -> bool:
    return activation.startswith(("swiglu", "geglu", "reglu"))


def default_hidden(width: int, activation: Activation) -> int:
    """4 widths; two thirds of that where there is a gate, rounded up to a multiple of 32."""
    return 32 * math.ceil(width * 8 / 3 / 32) if gated(activation) else 4 * width


def check_activation(activation: Activation) -> None:
    known = ", ".join(get_args(Activation))
    require(activation in CURVES, f"model.feedforward.activation={activation} must be one of {known}")


@dataclass(frozen=True)
class FeedForward:
    """
    Args:
        activation: those that end in "glu" are gated.
        bias: of both projections.
        hidden: channels; default the model's `hidden`.
    """

    activation: Activation = "swiglu"
    bias: bool = False
    hidden: int | None = None

    def __post_init__(self) -> None:
        check_activation(self.activation)
        require(
            self.hidden is None or self.hidden >= 1,
            f"model.feedforward.hidden={self.hidden} must be at least 1 or null",
        )

    def module(self, sizes: Sizes, dropout: float) -> nn.Module:
        kind = Gated if gated(self.activation) else Plain
        return kind(sizes.width, self.hidden or sizes.hidden, self.activation, self.bias, dropout)


class Gated(nn.Module):
    """out(curve(gate(x)) * up(x)); gate and up are one matrix product."""

    def __init__(
        self, width: int, hidden: int, activation: Activation = "swiglu", bias: bool = False, dropout: float = 0.0
    ):
        super().__init__()
        self.curve, self.dropout = CURVES[activation], dropout
        self.gate_up = nn.Linear(width, 2 * hidden, bias=bias)
        self.out = nn.Linear(hidden, width, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate, up = self.gate_up(x_BTD).chunk(2, dim=-1)
        hidden = self.curve(gate) * up
        if self.dropout:
            hidden = F.dropout(hidden, self.dropout, self.training)
        return self.out(hidden)


class Plain(nn.Module):
    """out(curve(up(x)))."""

    def __init__(self, width: int, hidden: int, activation: Activation, bias: bool = False, dropout: float = 0.0):
        super().__init__()
        self.curve, self.dropout = CURVES[activation], dropout
        self.up = nn.Linear(width, hidden, bias=bias)
        self.out = nn.Linear(hidden, width, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden = self.curve(self.up(x_BTD))
        if self.dropout:
            hidden = F.dropout(hidden, self.dropout, self.training)
        return self.out(hidden)


def linear_by_group(x_ND: Tensor, weight_EHD: Tensor, counts_E: Tensor) -> Tensor:
    """x times the transpose of the matrix of its group, [N, H]; rows come sorted by group, `counts_E` to each.

    One grouped product where the sizes are aligned, which costs no synchronisation of the device; else one product a
    group.
    """
    aligned = all(size * x_ND.element_size() % 16 == 0 for size in weight_EHD.shape[1:])
    if aligned and len(x_ND) and x_ND.dtype != torch.float64:
        ends_E = counts_E.cumsum(0).to(torch.int32)
        return F.grouped_mm(x_ND.contiguous(), weight_EHD.to(x_ND.dtype).mT, offs=ends_E)
    parts = x_ND.split(counts_E.tolist())
    return torch.cat([F.linear(part, weight) for part, weight in zip(parts, weight_EHD.to(x_ND.dtype))])
