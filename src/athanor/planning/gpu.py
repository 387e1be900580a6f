"""What differs on a GPU from the CPU whose kernels are traced: RMSNorm is one kernel that saves its input and a number
a row (on the CPU it is composed of products, which are saved too), attention is torch's own and keeps no weights, and
the loss takes larger blocks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from athanor import linear_cross_entropy
from athanor.models import cpu_attention
from athanor.models.attention import SelfAttention


class FusedNorm(torch.autograd.Function):
    """Shapes of aten::_fused_rms_norm and of its derivative, without their values."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(x, weight, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = context.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def fused_norm(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    result: Tensor = FusedNorm.apply(x, norm.weight)  # whichever it has by then: sharding puts others in its place
    return result


@contextmanager
def as_on_gpu(module: nn.Module) -> Iterator[None]:
    """While it is entered, the module computes with what stands for a GPU's kernels."""
    for part in module.modules():
        if isinstance(part, nn.RMSNorm):
            part.forward = partial(fused_norm, part)  # type: ignore[method-assign]
        elif isinstance(part, SelfAttention):
            part.dropout = 0.0
    blocks = linear_cross_entropy.LOGITS
    with patch.dict(blocks, cpu=blocks["cuda"]), patch.object(cpu_attention, "serves", lambda *_: False):
        yield
