"""How weights begin. Norms begin at 1, biases at 0, everywhere.

Matrices that are stored joined (query-key-value, gate-up, the experts of a layer) are initialised as the separate
matrices that they are.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from athanor.errors import require
from athanor.models.parts import Sizes


class Initialisation:
    def check(self, sizes: Sizes) -> None:
        """Raises ValueError where it does not fit the model."""

    def fill(self, weight: Tensor, role: str, sizes: Sizes) -> None:
        """Fills one matrix, [rows out, columns in]. `role`: embedding, output, end (of a residual branch), router or
        hidden.
        """
        raise NotImplementedError

    def attention_scale(self, sizes: Sizes) -> float | None:
        """Of the scores; None is 1/sqrt(C)."""
        return None

    def logit_scale(self, sizes: Sizes) -> float:
        return 1.0

    def learning_rate_factor(self, role: str, sizes: Sizes) -> float:
        """On the learning rate of a parameter of that role (`role` of `fill`, or vector), for Adam and its kin."""
        return 1.0

    def initialise(self, model: nn.Module, sizes: Sizes) -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim < 2:
                    nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
                    continue
                for matrix in matrices(name, parameter.data, sizes):
                    self.fill(matrix, role_of(name, parameter), sizes)


def role_of(name: str, parameter: Tensor) -> str:
    """embedding, output, end (of a residual branch), router, hidden, or vector."""
    if parameter.ndim < 2:
        return "vector"
    parts = name.removeprefix("encoder.").removesuffix(".weight").split(".")
    if len(parts) == 1:
        return "output" if parts[0] == "output" else "embedding"
    return {"out": "end", "router": "router"}.get(parts[-1], "hidden")


def matrices(name: str, weight: Tensor, sizes: Sizes) -> Iterator[Tensor]:
    """Views of the separate matrices in a joined one."""
    for whole in weight if weight.ndim == 3 else [weight]:
        if name.endswith("qkv.weight"):
            keys = sizes.kv_heads * sizes.channels
            yield from whole.split([sizes.heads * sizes.channels, keys, keys])
        elif name.endswith(("gate_up.weight", "key_value.weight")):
            yield from whole.chunk(2)
        else:
            yield whole


@dataclass(frozen=True)
class ScaledNormal(Initialisation):
    """Normal(0, std); what ends a residual branch is scaled by 1/sqrt(2 layers) (GPT-2, Radford et al. 2019)."""

    std: float = 0.02

    def __post_init__(self) -> None:
        require(self.std > 0, f"model.initialisation.std={self.std} must be positive")

    def branch(self, role: str, sizes: Sizes) -> float:
        return 1 / math.sqrt(2 * sizes.layers) if role == "end" else 1.0

    def fill(self, weight: Tensor, role: str, sizes: Sizes) -> None:
        # as std / sqrt, to the bit
        nn.init.normal_(weight, std=self.std / (math.sqrt(2 * sizes.layers) if role == "end" else 1))


@dataclass(frozen=True)
class TruncatedNormal(ScaledNormal):
    """As ScaledNormal, drawn again beyond `bound` standard deviations."""

    bound: float = 3.0

    def fill(self, weight: Tensor, role: str, sizes: Sizes) -> None:
        std = self.std * self.branch(role, sizes)
        nn.init.trunc_normal_(weight, std=std, a=-self.bound * std, b=self.bound * std)


@dataclass(frozen=True)
class Xavier(Initialisation):
    """Normal with variance 2 / (in + out) (Glorot and Bengio 2010, eq. 12); embeddings Normal(0, embedding_std)."""

    embedding_std: float = 0.02

    def fill(self, weight: Tensor, role: str, sizes: Sizes) -> None:
        rows, columns = weight.shape
        nn.init.normal_(weight, std=self.embedding_std if role == "embedding" else math.sqrt(2 / (rows + columns)))


@dataclass(frozen=True)
class He(Initialisation):
    """Normal with variance 2 / in (He et al. 2015, arXiv:1502.01852, eq. 10); embeddings Normal(0, embedding_std)."""

    embedding_std: float = 0.02

    def fill(self, weight: Tensor, role: str, sizes: Sizes) -> None:
        nn.init.normal_(weight, std=self.embedding_std if role == "embedding" else math.sqrt(2 / weight.shape[1]))


@dataclass(frozen=True)
class MuP(ScaledNormal):
    """Maximal update parametrisation (Yang et al. 2022, arXiv:2203.03466, table 8), so that the learning rate found at
    `base_width` is the right one at any width. With m = width / base_width:

        hidden matrices    variance std^2 / m, learning rate / m
        router             variance (std / m)^2, learning rate / m
        embeddings, output std^2; logits / m
        attention          scores / C, times sqrt(base_head_width), so that nothing changes at the base

    At the base width it is ScaledNormal. The factors on learning rates are for Adam and its kin, and are the caller's
    to apply (`Transformer.learning_rate_factors`).

    Args:
        base_head_width: channels of a head at the base width; default those of this model (wider means more heads).
    """

    base_width: int = 256
    base_head_width: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.base_width >= 1, f"model.initialisation.base_width={self.base_width} must be at least 1")

    def wider(self, sizes: Sizes) -> float:
        return sizes.width / self.base_width

    def fill(self, weight: Tensor, role: str, sizes: Sizes) -> None:
        power = {"hidden": 0.5, "end": 0.5, "router": 1.0}.get(role, 0.0)
        nn.init.normal_(weight, std=self.std * self.branch(role, sizes) * self.wider(sizes) ** -power)

    def attention_scale(self, sizes: Sizes) -> float | None:
        base = self.base_head_width or sizes.channels
        return None if base == sizes.channels else math.sqrt(base) / sizes.channels

    def logit_scale(self, sizes: Sizes) -> float:
        return 1 / self.wider(sizes)

    def learning_rate_factor(self, role: str, sizes: Sizes) -> float:
        return 1 / self.wider(sizes) if role in ("hidden", "end", "router") else 1.0
