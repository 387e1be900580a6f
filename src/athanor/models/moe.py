"""Mixture of experts: every token goes to the `top_k` experts that its router scores highest, and none is dropped.

Sources: Shazeer et al. 2017 (arXiv:1701.06538); balance loss, Fedus et al. 2021 (arXiv:2101.03961, eq. 4-6), by
sequence as DeepSeek-V3 (arXiv:2412.19437, eq. 17-20); z-loss, Zoph et al. 2022 (arXiv:2202.08906, eq. 5); shared
experts, Dai et al. 2024 (arXiv:2401.06066); dropless computation, Gale et al. 2022 (arXiv:2211.15841).

Shapes: B rows, T tokens, N = B T tokens, D width, E experts, J = top_k, H hidden channels of an expert.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athanor.errors import require
from athanor.functional import computing_dtype
from athanor.models.feedforward import CURVES, Activation, FeedForward, check_activation, gated, linear_by_group
from athanor.models.parts import Sizes


class Routing(NamedTuple):
    """What a routed layer reports of a pass."""

    loss: Tensor  # both auxiliary losses with their weights; the mean over rows, float32 scalar
    balance: Tensor  # the balance loss without its weight, 1 where all experts are used alike
    z: Tensor  # the z-loss without its weight
    load_E: Tensor  # (token, choice) pairs that each expert got


@dataclass(frozen=True)
class MixtureOfExperts:
    """
    Args:
        experts, top_k: how many there are, and how many of them a token goes to.
        hidden: channels of each expert; default the model's `hidden`.
        gate: scores by a softmax over the experts, or each by a sigmoid.
        normalize: the chosen scores are divided by their sum.
        scale: factor on the weights of the chosen.
        shared: experts that every token goes to besides, made as one of so many times the channels.
        balance: weight of the load-balancing loss.
        balance_over: each row, so that the loss is independent of how a batch is split, or the micro-batch.
        z: weight of the mean squared logarithm of the router's normalizer.
    """

    experts: int
    top_k: int
    hidden: int | None = None
    activation: Activation = "swiglu"
    gate: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = True
    scale: float = 1.0
    shared: int = 0
    balance: float = 0.01
    balance_over: Literal["row", "batch"] = "row"
    z: float = 0.0

    def __post_init__(self) -> None:
        check_activation(self.activation)
        for name, least in (("experts", 1), ("top_k", 1), ("shared", 0), ("balance", 0), ("z", 0)):
            value = getattr(self, name)
            require(value >= least, f"model.feedforward.{name}={value} must be at least {least}")
        require(
            self.top_k <= self.experts,
            f"model.feedforward.top_k={self.top_k} exceeds model.feedforward.experts={self.experts}",
        )
        require(
            self.hidden is None or self.hidden >= 1,
            f"model.feedforward.hidden={self.hidden} must be at least 1 or null",
        )
        require(self.scale > 0, f"model.feedforward.scale={self.scale} must be positive")
        require(self.gate in ("softmax", "sigmoid"), f"model.feedforward.gate={self.gate} must be softmax or sigmoid")
        require(
            self.balance_over in ("row", "batch"),
            f"model.feedforward.balance_over={self.balance_over} must be row or batch",
        )

    def module(self, sizes: Sizes, dropout: float) -> nn.Module:
        return Experts(sizes.width, self.hidden or sizes.hidden, self, dropout)


class Experts(nn.Module):
    def __init__(self, width: int, hidden: int, settings: MixtureOfExperts, dropout: float = 0.0):
        super().__init__()
        self.settings, self.curve, self.dropout = settings, CURVES[settings.activation], dropout
        self.gated = gated(settings.activation)
        self.router = nn.Linear(width, settings.experts, bias=False)
        self.up = nn.Parameter(torch.empty(settings.experts, (1 + self.gated) * hidden, width))  # gates, then ups
        self.out = nn.Parameter(torch.empty(settings.experts, width, hidden))
        self.shared = None
        if settings.shared:
            self.shared = FeedForward(settings.activation, hidden=settings.shared * hidden).module(
                Sizes(width, 0, 0, 0, 0, hidden, 0, 0.0), dropout
            )

    def extra_repr(self) -> str:
        return f"up={tuple(self.up.shape)}, out={tuple(self.out.shape)}"

    def scores(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """The router's logits and scores, float32 [N, E], whatever the precision around."""
        with torch.autocast(x_ND.device.type, enabled=False):
            logits_NE = F.linear(x_ND.float(), self.router.weight.float())
        return logits_NE, logits_NE.softmax(-1) if self.settings.gate == "softmax" else logits_NE.sigmoid()

    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None = None) -> tuple[Tensor, Routing | None]:
        """The layer's output, and in training what the routing was.

        Args:
            valid_BT: bool; tokens that count in the auxiliary losses and in the load. Default all.
        """
        x_ND = x_BTD.flatten(0, 1)
        logits_NE, scores_NE = self.scores(x_ND)
        weights_NJ, chosen_NJ = scores_NE.topk(self.settings.top_k, dim=-1)
        if self.settings.normalize:
            weights_NJ = weights_NJ / weights_NJ.sum(-1, keepdim=True)
        out_ND = self.mix(x_ND, chosen_NJ, weights_NJ * self.settings.scale)
        if self.shared is not None:
            out_ND = out_ND + self.shared(x_ND)
        routing = self.account(logits_NE, scores_NE, chosen_NJ, x_BTD.shape[:2], valid_BT) if self.training else None
        return out_ND.view_as(x_BTD), routing

    def mix(self, x_ND: Tensor, chosen_NJ: Tensor, weights_NJ: Tensor) -> Tensor:
        """Sum over the chosen experts of weight times output, computed expert by expert on sorted copies of the
        tokens.
        """
        x_ND = x_ND.to(computing_dtype(x_ND))
        order = chosen_NJ.flatten().argsort(stable=True)
        counts_E = torch.bincount(chosen_NJ.flatten(), minlength=self.settings.experts)
        hidden = linear_by_group(x_ND[order // self.settings.top_k], self.up, counts_E)
        if self.gated:
            gate, up = hidden.chunk(2, dim=-1)
            hidden = self.curve(gate) * up
        else:
            hidden = self.curve(hidden)
        if self.dropout:
            hidden = F.dropout(hidden, self.dropout, self.training)
        sorted_MD = linear_by_group(hidden, self.out, counts_E)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        out_NJD = sorted_MD[back].view(*chosen_NJ.shape, -1)
        return (out_NJD * weights_NJ[..., None].to(out_NJD.dtype)).sum(1)

    def account(
        self, logits_NE: Tensor, scores_NE: Tensor, chosen_NJ: Tensor, shape: torch.Size, valid_BT: Tensor | None
    ) -> Routing:
        """balance = E sum_e f_e P_e, f_e the share of choices that fell on expert e and P_e its mean share of the
        scores; z = mean log^2 sum_e exp(logit_e).
        """
        settings = self.settings
        valid_BT = torch.ones(shape, device=logits_NE.device) if valid_BT is None else valid_BT.float()
        chosen_BTE = F.one_hot(chosen_NJ, settings.experts).sum(1).view(*shape, -1) * valid_BT[..., None]
        share_BTE = (scores_NE / scores_NE.sum(-1, keepdim=True)).view(*shape, -1) * valid_BT[..., None]
        z_BT = logits_NE.logsumexp(-1).square().view(shape) * valid_BT
        over = (1,) if settings.balance_over == "row" else (0, 1)
        count = valid_BT.sum(over).clamp(min=1)
        used = chosen_BTE.sum(over) / (count[..., None] * settings.top_k)
        balance = settings.experts * (used * share_BTE.sum(over) / count[..., None]).sum(-1).mean()
        z = (z_BT.sum(1) / valid_BT.sum(1).clamp(min=1)).mean()
        loss = settings.balance * balance + settings.z * z
        return Routing(loss, balance.detach(), z.detach(), chosen_BTE.sum((0, 1)).detach())
