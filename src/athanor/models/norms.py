"""Normalisation: which, and where it stands in a block.

Sources: RMSNorm, Zhang and Sennrich 2019 (arXiv:1910.07467); LayerNorm, Ba et al. 2016 (arXiv:1607.06450); pre- and
post-norm, Xiong et al. 2020 (arXiv:2002.04745); sandwich, Ding et al. 2021 (arXiv:2105.13290); normalised queries and
keys, Henry et al. 2020 (arXiv:2010.04245).
"""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from athanor.errors import require


@dataclass(frozen=True)
class Norm:
    """
    Args:
        kind: root mean square, or mean and variance.
        bias: of a LayerNorm.
        placement: of the branch's input (pre), of the sum (post, no norm after the last block), or of the branch's
            input and of its output (sandwich).
        queries_and_keys: also over the channels of each head's queries and keys, before rotation.
    """

    kind: Literal["rms", "layer"] = "rms"
    bias: bool = False
    placement: Literal["pre", "post", "sandwich"] = "pre"
    queries_and_keys: bool = False

    def __post_init__(self) -> None:
        require(self.kind in ("rms", "layer"), f"model.norm.kind={self.kind} must be rms or layer")
        require(
            self.placement in ("pre", "post", "sandwich"),
            f"model.norm.placement={self.placement} must be pre, post or sandwich",
        )
        require(
            not (self.bias and self.kind == "rms"),
            "model.norm.bias=true needs model.norm.kind=layer: an RMSNorm has no bias",
        )

    def module(self, width: int, eps: float) -> nn.Module:
        return nn.RMSNorm(width, eps=eps) if self.kind == "rms" else nn.LayerNorm(width, eps=eps, bias=self.bias)
