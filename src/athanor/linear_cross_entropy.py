"""Cross-entropy of a linear layer whose logits never exist whole: neither in the forward pass nor in the backward one,
for the gradients are made beside the loss, a block of rows at a time.

torch's own linear_cross_entropy does the same, but on a CPU multiplies in float32. Z-loss: Chowdhery et al. 2022
(arXiv:2204.02311, section 5); label smoothing: Szegedy et al. 2016 (arXiv:1512.00567, section 7).

Shapes: N rows, D channels, V vocabulary.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from athanor.batches import IGNORED
from athanor.functional import computing_dtype

LOGITS = {"cpu": 2**22, "cuda": 2**27}
"""Logits of a block, by device: on a CPU they stay in its cache."""


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sum over the labelled rows of

        -(1 - s) log p(label) - s mean over V of log p + z (log sum exp logits)^2,   logits = hidden weight^T

    Args:
        labels_N: int64; rows whose label is IGNORED add nothing.
        label_smoothing: s, in [0, 1).
        z_loss: z, at least 0.
        softcap: logits become softcap * tanh(logits / softcap) first.
        compiled: what is between the matrix products is one compiled pass.

    Returns:
        that sum, float32 scalar, nats, once differentiable; and the sum of -log p(label) alone, without a gradient.

    Raises:
        ValueError: s or z out of its range.
    """
    if not (0 <= label_smoothing < 1 and z_loss >= 0):
        raise ValueError(f"label_smoothing={label_smoothing} must lie in [0, 1), and z_loss={z_loss} not below 0")
    # A row of zeros adds nothing to the weight's gradient, and what flows back to it is dropped: no pass over V.
    valid_N = labels_N != IGNORED
    hidden_ND = hidden_ND.to(computing_dtype(hidden_ND)).masked_fill(~valid_N[:, None], 0)
    settings, differentiable = (label_smoothing, z_loss, softcap), torch.is_grad_enabled()
    steps = weighed, added
    if compiled and differentiable:
        steps = compiled_once(weighed), compiled_once(added)
    return LinearCrossEntropy.apply(hidden_ND, weight_VD, labels_N, valid_N, steps, settings, differentiable)


def weighed(
    logits_NV: Tensor,
    labels_N1: Tensor,
    valid_N: Tensor,
    smoothing: float,
    z: float,
    softcap: float | None,
    differentiable: bool,
) -> tuple[Tensor, Tensor]:
    """Both sums of a block of rows, float32. The logits become the gradient of the first, if it is `differentiable`."""
    capped = logits_NV if softcap is None else softcap * torch.tanh(logits_NV.float() / softcap)
    logps = capped.log_softmax(-1, dtype=torch.float32)
    picked = logps.gather(1, labels_N1)[:, 0]
    lse = capped.gather(1, labels_N1)[:, 0].float() - picked
    penalty = z * lse.square() - (1 - smoothing) * picked
    if smoothing:
        penalty -= smoothing * logps.mean(-1)
    sums = torch.where(valid_N, penalty, 0).sum(), torch.where(valid_N, -picked, 0).sum()
    if not differentiable:
        return sums
    gradient = logps.exp_()
    if z:
        gradient *= (1 + 2 * z * lse)[:, None]
    if smoothing:
        gradient -= smoothing / logps.shape[1]
    if torch.compiler.is_compiling():  # a comparison joins the pass, a scatter is one of its own
        gradient -= (1 - smoothing) * (torch.arange(logps.shape[1], device=logps.device) == labels_N1)
    else:
        gradient.scatter_add_(1, labels_N1, gradient.new_full(labels_N1.shape, smoothing - 1))
    if softcap is not None:
        gradient *= 1 - (capped / softcap).square()
    logits_NV.copy_(gradient)
    return sums


def added(total: Tensor, part: Tensor) -> Tensor:
    return total.add_(part)


@cache
def compiled_once(function: Any) -> Any:
    return torch.compile(function, fullgraph=True)


class LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        labels_N: Tensor,
        valid_N: Tensor,
        steps: tuple[Any, Any],
        settings: tuple[float, float, float | None],
        differentiable: bool,
    ) -> tuple[Tensor, Tensor]:
        weight, (weigh, add) = weight_VD.to(hidden_ND.dtype), steps
        block = max(1, LOGITS.get(hidden_ND.device.type, 2**27) // len(weight))
        total, nll = hidden_ND.new_zeros(2, dtype=torch.float32)
        dhidden = torch.empty_like(hidden_ND) if differentiable else hidden_ND
        dweight = torch.zeros_like(weight_VD, dtype=torch.float32) if differentiable else weight_VD
        rows = [x.split(block) for x in (hidden_ND, labels_N.masked_fill(~valid_N, 0)[:, None], valid_N, dhidden)]
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for hidden, labels, valid, out in zip(*rows):
                logits = F.linear(hidden, weight)
                loss, own_nll = weigh(logits, labels, valid, *settings, differentiable)
                total += loss
                nll += own_nll
                if not differentiable:
                    continue
                torch.mm(logits, weight, out=out)  # the logits are their gradient now
                add(dweight, logits.mT @ hidden)
        ctx.gradients = (dhidden, dweight.to(weight_VD.dtype)) if differentiable else None
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("linear_cross_entropy can be differentiated once only")
        (dhidden, dweight), ctx.gradients = ctx.gradients, None
        return dhidden.mul_(grad), dweight.mul_(grad), None, None, None, None, None
