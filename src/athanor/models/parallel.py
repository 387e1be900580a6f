"""A decoder whose layers are split over devices that work on the same tokens (Shoeybi et al. 2019, arXiv:1909.08053,
section 3): each device has some of the heads and some of the feed-forward channels, whole embeddings and whole norms.

Matrices that are stored joined (query-key-value, gate-up) would be cut in the wrong places. Their rows are therefore
stored in another order on the split model: for each device its part of the first matrix, then of the second, and so on.
"""

from collections.abc import Collection
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

from athanor.errors import UserError
from athanor.models.attention import SelfAttention
from athanor.models.feedforward import Gated, Plain


def check(model: nn.Module, ways: int) -> None:
    """Raises UserError if a decoder's layers cannot be split `ways` ways."""
    sizes = model.sizes
    for name, size in (("heads", sizes.heads), ("kv_heads", sizes.kv_heads)):  # type: ignore[union-attr]
        if size % ways:  # type: ignore[operator]
            raise UserError(
                f"strategy.tensor_parallel={ways} does not divide model.{name}={size}; choose a divisor of it."
            )
    for layer in model.blocks:  # type: ignore[union-attr]
        if hasattr(layer, "cross"):
            raise UserError(
                "strategy.tensor_parallel splits no encoder-decoder; choose another strategy for this model."
            )
        if not isinstance(layer.feedforward, Gated | Plain):
            raise UserError("strategy.tensor_parallel splits no experts; choose another strategy for this model.")
        if layer.feedforward.out.in_features % ways:
            raise UserError(
                f"strategy.tensor_parallel={ways} does not divide the {layer.feedforward.out.in_features} feed-forward "
                "channels; set model.hidden to a multiple of it."
            )
    if model.positions.biased:  # type: ignore[union-attr]
        positions = type(model.positions).__name__
        raise UserError(f"strategy.tensor_parallel does not split the biases of {positions}; choose another strategy.")


def joined_rows(parts: list[int], ways: int) -> Tensor:
    """For matrices of `parts` rows that are stored joined: which row of the joined one is stored at each place, so that
    `ways` equal pieces of it hold equal pieces of every matrix.
    """
    matrices = [torch.arange(end - size, end).chunk(ways) for end, size in zip(accumulate(parts), parts)]
    return torch.cat([matrix[way] for way in range(ways) for matrix in matrices])


def row_orders(model: nn.Module, ways: int) -> dict[str, Tensor]:
    """By parameter name, `joined_rows` of what is stored joined."""
    orders = {}
    for name, module in model.named_modules():
        if isinstance(module, SelfAttention):
            keys = module.kv_heads * module.channels
            orders[f"{name}.qkv"] = joined_rows([module.heads * module.channels, keys, keys], ways)
        elif isinstance(module, Gated):
            orders[f"{name}.gate_up"] = joined_rows([module.out.in_features] * 2, ways)
    return {
        f"{name}.{kind}": order
        for name, order in orders.items()
        for kind, _ in model.get_submodule(name).named_parameters()
    }


def parallelize(model: nn.Module, mesh: DeviceMesh, layers: Collection[int] | None = None) -> dict[str, Tensor]:
    """Splits the layers of a decoder, in place, over a mesh of one dimension; returns the `row_orders`, by which the
    rows of the split parameters are those of the whole ones.

    Args:
        layers: numbers of those that are split. Default all.
    """
    ways = mesh.size()
    check(model, ways)
    blocks = {f"blocks.{i}.": block for i, block in enumerate(model.blocks) if layers is None or i in layers}  # type: ignore[arg-type]
    orders = {name: order for name, order in row_orders(model, ways).items() if name.startswith(tuple(blocks))}
    with torch.no_grad():
        for name, order in orders.items():
            parameter = model.get_parameter(name)
            parameter.copy_(parameter[order.to(parameter.device)])
    for layer in blocks.values():
        attention = layer.attention
        plan = {"attention.qkv": ColwiseParallel(), "attention.out": RowwiseParallel()}
        if attention.normed:  # of each head: the gradient of the scale is the sum over the heads of all devices
            plan |= {f"attention.{name}_norm": SequenceParallel(sequence_dim=2, use_local_output=True)
                     for name in ("query", "key")}  # fmt: skip
        columns = "gate_up" if isinstance(layer.feedforward, Gated) else "up"
        plan |= {f"feedforward.{columns}": ColwiseParallel(), "feedforward.out": RowwiseParallel()}
        parallelize_module(layer, mesh, plan)
        attention.heads, attention.kv_heads = attention.heads // ways, attention.kv_heads // ways
    return orders
