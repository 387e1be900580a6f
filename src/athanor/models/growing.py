"""A larger model from a trained one, which computes the same function on the day it is made.

Width: every channel of the residual stream, and with it every head and hidden neuron, is copied (Net2Net, Chen et al.
2016, arXiv:1511.05641; bert2BERT, Chen et al. 2022, arXiv:2110.07143). What writes copies is copied; what reads them
divides its weights among them, by shares that are drawn for each weight and add up to 1. Since all channels are copied
equally often, their mean and mean square are what they were, so RMSNorm and LayerNorm give the same, to rounding and
whatever their epsilon; zeros in place of copies would shrink both, and a part of the channels copied would weigh them
anew. That is why the width grows by whole factors only. The unequal shares are what lets copies part in training (as in
LEMON, Wang et al. 2024, arXiv:2310.07999): equal ones would have equal gradients for ever.

Depth: a new block is a copy of the one below it whose branches give nothing at first (LLaMA Pro, Wu et al. 2024,
arXiv:2401.02415): their last weights are zero, and have gradients. Or the whole stack is repeated (Gong et al. 2019),
which promises nothing.

Heads keep their channels, so that rotations and the scale of scores stay; a wider model has more heads.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from athanor import models
from athanor.errors import UserError
from athanor.models.encoder import Encoder
from athanor.models.feedforward import Gated
from athanor.models.moe import Experts
from athanor.models.positions import ALiBi, Sinusoidal
from athanor.models.transformer import Transformer


def grow(
    parent: str | nn.Module,
    width: int | None = None,
    layers: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    hidden: int | None = None,
    depth: Literal["identity", "stack"] = "identity",
    uneven: float = 0.5,
    noise: float = 0.0,
    dropout: float | None = None,
) -> Transformer:
    """A decoder or encoder that computes what its parent does, to rounding, unless `depth` or `noise` says otherwise.

    Args:
        parent: directory of its finished run, or the model.
        width, layers, heads, kv_heads, hidden: of the larger model. Default the parent's; a wider model's heads,
            key-value heads and hidden channels default to as many times the parent's as the width. Feed-forward parts
            that say their own `hidden` keep it.
        depth: new blocks that do nothing at first, each above the one it copies; or the parent's stack repeated.
        uneven: a copy's share of a weight lies within this of equal, relatively; in (0, 1).
        noise: standard deviation of what is added to each matrix, relative to its own. Above 0 the function is no
            longer the parent's.
        dropout: replaces the parent's.

    Raises:
        UserError: the parent is no decoder or encoder, or cannot be grown so.
    """
    model = models.load(parent) if isinstance(parent, str) else parent
    if type(model) not in (Transformer, Encoder):
        name = getattr(model, "source", type(model).__name__)
        raise UserError(f"{name} is {models.FORMS[models.form_of(model)]}; only decoders and encoders can be grown.")
    assert isinstance(model, Transformer)
    check(0 < uneven < 1, f"model.uneven={uneven} must lie between 0 and 1, or copies would stay alike")
    check(noise >= 0, f"model.noise={noise} must not be negative")
    check(depth in ("identity", "stack"), f"model.depth={depth} must be identity or stack")
    arguments, source_of = plan(model, width, layers, heads, kv_heads, hidden, depth)
    if dropout is not None:
        arguments["dropout"] = dropout
    with torch.no_grad():
        grown = type(model)(**arguments).to(model.embedding.weight.dtype)
        Growth(model, grown, uneven).fill(source_of, silent=depth == "identity")
        if noise:
            for parameter in grown.parameters():
                if parameter.ndim > 1:
                    parameter.add_(torch.randn_like(parameter) * parameter.std() * noise)
    return grown


def check(holds: bool, sentence: str) -> None:
    if not holds:
        raise UserError(f"{sentence}.")


def plan(
    model: Transformer,
    width: int | None,
    layers: int | None,
    heads: int | None,
    kv_heads: int | None,
    hidden: int | None,
    depth: str,
) -> tuple[dict[str, Any], list[int]]:
    """The larger model's arguments, and the parent's layer that each of its layers copies."""
    old, placement = model.sizes, model.norm_settings.placement
    width = width or old.width
    times = width // old.width
    heads = heads or old.heads * times
    wanted = {
        "width": width, "layers": layers or old.layers, "heads": heads,
        "kv_heads": kv_heads or old.kv_heads * (heads // old.heads), "hidden": hidden or old.hidden * times,
    }  # fmt: skip
    for name, value in wanted.items():
        own = getattr(old, name)
        check(value >= own, f"model.{name}={value} is smaller than the parent's {own}; a model can only grow")
        check(
            name in ("layers", "hidden") or value % own == 0,
            f"model.{name}={value} must be a multiple of the parent's {own}, so that each is copied equally often",
        )
    more, more_kv = wanted["heads"] // old.heads, wanted["kv_heads"] // old.kv_heads
    check(
        more % more_kv == 0,
        f"model.heads={wanted['heads']} is {more} times the parent's and model.kv_heads={wanted['kv_heads']} {more_kv} "
        "times; the first must be a multiple of the second, so that a copied head finds its keys",
    )
    kind = type(model.positions)
    check(
        more == 1 or kind is not ALiBi,
        "model.positions ALiBi gives heads other slopes when there are more; keep model.heads",
    )
    check(
        times == 1 or kind is not Sinusoidal,
        "model.positions Sinusoidal has no copies of channels; model.width cannot grow",
    )
    deeper = wanted["layers"] > old.layers
    check(
        not (deeper and depth == "identity" and placement == "post"),
        "a block with model.norm.placement=post does something even with silent branches; set model.depth=stack",
    )
    check(
        depth == "identity" or wanted["layers"] % old.layers == 0,
        f"model.layers={wanted['layers']} must be a multiple of the parent's {old.layers} for model.depth=stack",
    )
    if depth == "identity":
        source_of = [layer * old.layers // wanted["layers"] for layer in range(wanted["layers"])]
    else:
        source_of = [layer % old.layers for layer in range(wanted["layers"])]
    arguments = {**model.arguments, **wanted, "head_width": old.channels}
    if len(set(model.patterns)) > 1:
        patterns = [model.patterns[layer] for layer in source_of]
        arguments["attention"] = dataclasses.replace(model.attention, patterns=patterns)
    if len(set(model.feedforwards)) > 1:
        arguments["feedforward"] = [model.feedforwards[layer] for layer in source_of]
    return arguments, source_of


class Copies(NamedTuple):
    """Of one dimension: which old index each new one copies."""

    source: Tensor  # int64 [new]
    old: int

    @classmethod
    def of(cls, new: int, old: int) -> "Copies":
        return cls(torch.arange(new) % old, old)


class Growth:
    """Fills the larger model. What is written to a dimension is copied, what is read from one divided."""

    def __init__(self, parent: Transformer, grown: Transformer, uneven: float):
        self.parent, self.grown, self.uneven = parent, grown, uneven
        old, new = parent.sizes, grown.sizes
        self.width = Copies.of(new.width, old.width)
        self.kv_heads = Copies.of(new.kv_heads, old.kv_heads)
        # the heads of a key-value head stand together: each group holds the old group of its head, perhaps repeatedly
        group, old_group = new.heads // new.kv_heads, old.heads // old.kv_heads
        place = torch.arange(new.heads)
        heads = self.kv_heads.source[place // group] * old_group + place % group % old_group
        self.heads = Copies(heads, old.heads)

    def channels(self, heads: Copies) -> Copies:
        count = self.parent.sizes.channels
        return Copies((heads.source[:, None] * count + torch.arange(count)).flatten(), heads.old * count)

    def written(self, weight: Tensor, dimension: int, copies: Copies) -> Tensor:
        return weight.index_select(dimension, copies.source)

    def read(self, weight: Tensor, copies: Copies) -> Tensor:
        """The last dimension divided: each copy's share of a weight is (1 + u - mean u) / copies."""
        copied = weight.index_select(-1, copies.source)
        if len(copies.source) == copies.old:
            return copied
        u = (2 * torch.rand(copied.shape, dtype=torch.float64) - 1) * self.uneven / 2
        counts = torch.bincount(copies.source, minlength=copies.old)
        sums = torch.zeros(*copied.shape[:-1], copies.old, dtype=torch.float64).index_add(-1, copies.source, u)
        mean = (sums / counts).index_select(-1, copies.source)
        return (copied.double() * (1 + u - mean) / counts[copies.source]).to(weight.dtype)

    def fill(self, source_of: Sequence[int], silent: bool) -> None:
        """`silent`: of the layers that copy the same one, all but the first give nothing."""
        parent: Any = self.parent
        grown: Any = self.grown
        ratio = parent.embedding_scale / grown.embedding_scale
        grown.embedding.weight.copy_(self.written(parent.embedding.weight, 1, self.width) * ratio)
        if isinstance(parent.position_embedding, nn.Embedding):
            grown.position_embedding.weight.copy_(self.written(parent.position_embedding.weight, 1, self.width))
        if parent.position_bias is not None:
            grown.position_bias.weight.copy_(self.written(parent.position_bias.weight, 1, self.heads))
        for layer, own in enumerate(source_of):
            self.block(parent.blocks[own], grown.blocks[layer])
            if silent and layer and source_of[layer - 1] == own:
                silence(grown.blocks[layer])
        gain = parent.logit_scale / grown.logit_scale  # what the logits lack of their old size
        if parent.output is not None:
            grown.output.weight.copy_(self.read(parent.output.weight, self.width) * gain)
            gain = 1.0
        else:  # each copy of a state meets a copy of the embedding
            gain /= ratio * len(self.width.source) / self.width.old
        last = grown.norm
        if isinstance(last, nn.Identity):  # post-norm: the last norm of the last block gives the states
            last = grown.blocks[-1].feedforward_norm
        else:
            self.norm(parent.norm, last)
        for parameter in last.parameters():
            parameter.mul_(gain)

    def norm(self, old: nn.Module, new: nn.Module) -> None:
        for name, parameter in new.named_parameters():
            weight = old.get_parameter(name)
            parameter.copy_(weight if weight.shape == parameter.shape else self.written(weight, 0, self.width))

    def block(self, old: Any, new: Any) -> None:
        heads, kv_heads = self.channels(self.heads), self.channels(self.kv_heads)

        def projected(weight: Tensor) -> Tensor:
            parts = weight.split([heads.old, kv_heads.old, kv_heads.old])
            return torch.cat([self.written(p, 0, c) for p, c in zip(parts, (heads, kv_heads, kv_heads))])

        new.attention.qkv.weight.copy_(self.read(projected(old.attention.qkv.weight), self.width))
        if old.attention.qkv.bias is not None:
            new.attention.qkv.bias.copy_(projected(old.attention.qkv.bias))
        self.linear(old.attention.out, new.attention.out, heads)
        for name, module in old.named_modules():
            if name.endswith("norm"):
                self.norm(module, new.get_submodule(name))
        self.feedforward(old.feedforward, new.feedforward)

    def linear(self, old: nn.Linear, new: nn.Linear, read: Copies) -> None:
        """One that writes to the residual stream."""
        new.weight.copy_(self.read(self.written(old.weight, 0, self.width), read))
        if old.bias is not None:
            new.bias.copy_(self.written(old.bias, 0, self.width))

    def feedforward(self, old: Any, new: Any) -> None:
        if isinstance(old, Experts):
            hidden = Copies.of(new.out.shape[-1], old.out.shape[-1])
            new.router.weight.copy_(self.read(old.router.weight, self.width))
            new.up.copy_(self.read(self.joined(old.up, 1, hidden), self.width))
            new.out.copy_(self.read(self.written(old.out, 1, self.width), hidden))
            if old.shared is not None:
                self.feedforward(old.shared, new.shared)
            return
        hidden = Copies.of(new.out.in_features, old.out.in_features)
        first, wider = (old.gate_up, new.gate_up) if isinstance(old, Gated) else (old.up, new.up)
        wider.weight.copy_(self.read(self.joined(first.weight, 0, hidden), self.width))
        if first.bias is not None:
            wider.bias.copy_(self.joined(first.bias, 0, hidden))
        self.linear(old.out, new.out, hidden)

    def joined(self, weight: Tensor, dimension: int, hidden: Copies) -> Tensor:
        """Rows of a gate and of what it gates, or of the latter alone."""
        parts = weight.split(hidden.old, dim=dimension)
        return torch.cat([self.written(part, dimension, hidden) for part in parts], dim=dimension)


def silence(block: Any) -> None:
    """Both branches give zero: where a norm ends them its weights are zero (a zero branch would meet the norm's
    steepest point), else those of the last projections.
    """
    if block.placement == "sandwich":
        ends: list[nn.Module] = [block.attention_post_norm, block.feedforward_post_norm]
        parameters = [parameter for end in ends for parameter in end.parameters()]
    else:
        parameters = [p for name, p in block.named_parameters() if "out" in name.split(".")]
    for parameter in parameters:
        parameter.zero_()
