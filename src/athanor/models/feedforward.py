"""SwiGLU feed-forward layer (Shazeer 2020, arXiv:2002.05202, eq. 6), without biases."""

import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """out(silu(gate(x)) * up(x)); gate and up are one matrix product."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate, up = self.gate_up(x_BTD).chunk(2, dim=-1)
        return self.out(F.silu(gate) * up)
