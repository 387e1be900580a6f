"""Sharding by torch's `fully_shard`, with tensor parallelism and hybrid sharding."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Shard
from torch.optim import Optimizer

from athanor.algorithms.base import Algorithm
from athanor.errors import UserError
from athanor.models import parallel
from athanor.models.transformer import Block, Transformer
from athanor.shares import Reads, Share, Stored
from athanor.strategies.sharded import Sharded


class FSDP2(Sharded):
    """Parameters, gradients and optimizer states sharded by torch's `fully_shard`, tensor by tensor.

    Args:
        tensor_parallel: processes that share each layer's matrices and work on the same tokens; neighbours.
        replicas: groups of processes that each hold all the shards (hybrid sharding); 1 shards over all.
    """

    keeps_matrices, compiles, cuts_alike, shares = True, True, True, True

    def __init__(self, tensor_parallel: int = 1, replicas: int = 1):
        if tensor_parallel < 1 or replicas < 1:
            raise UserError("strategy.tensor_parallel and strategy.replicas must be at least 1.")
        if tensor_parallel > 1 and replicas > 1:
            raise UserError("Of strategy.tensor_parallel and strategy.replicas, one must be 1.")
        super().__init__()
        self.tensor_parallel, self.groups = tensor_parallel, replicas
        self.mesh: DeviceMesh | None = None
        self.orders: dict[str, Tensor] = {}

    @property
    def replicas(self) -> int:
        return self.world_size // self.tensor_parallel

    @property
    def replica(self) -> int:
        return self.global_rank // self.tensor_parallel

    def check(self, world_size: int, algorithm: Algorithm) -> None:
        for name, size in (("tensor_parallel", self.tensor_parallel), ("replicas", self.groups)):
            if world_size % size:
                raise UserError(
                    f"strategy.{name}={size} does not divide the {world_size} processes; choose a divisor, or another "
                    "number of devices."
                )
        if self.tensor_parallel > 1:
            for network in algorithm.modules():
                if isinstance(network, Transformer):
                    parallel.check(network, self.tensor_parallel)

    @property
    def data_group(self) -> Any:
        return None if self.tensor_parallel == 1 or self.mesh is None else self.mesh["data"].get_group()

    # --- sharding -------------------------------------------------------------------------------------------------

    def shard(self, algorithm: Algorithm) -> None:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        device, world = self.root_device.type, self.world_size
        if self.tensor_parallel > 1:
            shape, names = (world // self.tensor_parallel, self.tensor_parallel), ("data", "tensor")
        else:
            shape, names = (self.groups, world // self.groups), ("copies", "data")
        self.mesh = init_device_mesh(device, shape, mesh_dim_names=names)
        if self.tensor_parallel > 1:
            algorithm.to(self.root_device)
            for name, network in algorithm.named_modules():
                if isinstance(network, Transformer):
                    orders = network.parallelize(self.mesh["tensor"])
                    self.orders |= {f"{name}.{key}": order for key, order in orders.items()}
        mesh = self.mesh if self.groups > 1 else self.mesh["data"]
        for network in algorithm.children():
            for layer in network.modules():
                if isinstance(layer, Block):
                    fully_shard(layer, mesh=mesh)
        fully_shard(algorithm, mesh=mesh)
        for method in ("training_step", "validation_step"):
            register_fsdp_forward_method(cast(Any, algorithm), method)
        algorithm.to(self.root_device)  # buffers
        self.setup_optimizers(algorithm.trainer)

    def reshard(self) -> None:
        cast(Any, self.algorithm).reshard()

    def clip(self, parameters: list[nn.Parameter], max_norm: float) -> Tensor:
        """Parameters that are split over tensor-parallel processes too have a mesh of their own."""
        groups: dict[Any, list[nn.Parameter]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                groups.setdefault(cast(DTensor, parameter.grad).device_mesh, []).append(parameter)
        norms = [nn.utils.get_total_norm([cast(Tensor, p.grad) for p in group]) for group in groups.values()]
        norm = torch.linalg.vector_norm(torch.stack([cast(DTensor, norm).full_tensor() for norm in norms]))
        for group in groups.values():
            nn.utils.clip_grads_with_norm_(group, max_norm, norm)
        return norm

    # --- whole tensors --------------------------------------------------------------------------------------------

    def gathered(self, tensor: Tensor, name: str) -> Tensor:
        """A sharded tensor, whole, its rows in the order of the unsplit model."""
        if not isinstance(tensor, DTensor):
            return tensor
        whole = tensor.full_tensor()
        if name in self.orders:
            ordered = torch.empty_like(whole)
            ordered[self.orders[name].to(whole.device)] = whole
            return ordered
        return whole

    def places(self, tensor: DTensor, name: str) -> list[Tensor]:
        """For each dimension the indices in the whole tensor, its rows as in the unsplit model, of what this rank has:
        cut first over tensor-parallel processes, then over data.
        """
        places = [torch.arange(size) for size in tensor.shape]
        if name in self.orders:
            places[0] = self.orders[name].cpu()
        mesh = tensor.device_mesh
        for dimension in reversed(range(mesh.ndim)):
            placement: Any = tensor.placements[dimension]
            if isinstance(placement, Shard) or hasattr(placement, "split_factor"):
                pieces = places[placement.dim].chunk(mesh.size(dimension))
                mine = mesh.get_local_rank(dimension)
                places[placement.dim] = pieces[mine] if mine < len(pieces) else places[placement.dim][:0]
        return places

    def share(self, tensor: Any, name: str) -> Share:
        return Share(tensor.to_local(), tensor.shape, self.places(tensor, name))

    def scattered(self, whole: Tensor | Stored, like: DTensor, name: str) -> tuple[DTensor, Share]:
        """This rank's shard of a whole tensor, as `like` has it; a stored one is yet to be read into the share."""
        places = self.places(like, name)
        if isinstance(whole, Stored):
            local = torch.empty_like(like.to_local(), dtype=whole.dtype)
        else:
            local = whole
            for dimension, own in enumerate(places):
                local = local.index_select(dimension, own)
            local = local.to(like.device, like.dtype)
        shard = DTensor.from_local(
            local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        return shard, Share(local, like.shape, places)

    def full(self, network: nn.Module, keep: bool = True) -> Iterator[tuple[str, Tensor]]:
        (prefix,) = (name for name, child in self.algorithm.named_children() if child is network)
        for name, parameter in network.named_parameters():
            value = self.gathered(parameter.detach(), f"{prefix}.{name}")
            yield name, value if isinstance(parameter, DTensor) else value.clone()

    def fill(self, parameters: dict[str, Tensor]) -> None:
        own = dict(self.algorithm.named_parameters())
        reads = Reads()
        for name, value in parameters.items():
            parameter = cast(DTensor, own[name])
            if isinstance(value, Stored):
                reads.add(value, self.share(parameter, name))
            else:
                parameter.to_local().copy_(self.scattered(value, parameter, name)[1].own)
        reads.now()

    def _names(self, optimizer: Optimizer) -> list[str]:
        """Of the parameters as its state dict numbers them."""
        names = {id(parameter): name for name, parameter in self.algorithm.named_parameters()}
        return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]

    def full_optimizer(self, optimizer: Optimizer) -> dict[str, Any]:
        state, names = optimizer.state_dict(), self._names(optimizer)
        parameters = dict(self.algorithm.named_parameters())
        whole: dict[int, dict[str, Any]] = {}
        for number, entries in state["state"].items():
            for key, value in entries.items():
                if self.sharing and isinstance(value, DTensor) and value.shape == parameters[names[number]].shape:
                    value = self.share(value, names[number])
                elif isinstance(value, Tensor):
                    value = self.gathered(value, names[number]).cpu()
                if self.is_global_zero or self.sharing:
                    whole.setdefault(number, {})[key] = value
        return {**state, "state": whole}

    def fill_optimizer(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        names, parameters = self._names(optimizer), dict(self.algorithm.named_parameters())
        sharded: dict[int, dict[str, Any]] = {}
        reads = Reads()
        for number, entries in state["state"].items():
            like = cast(DTensor, parameters[names[number]])
            for key, value in entries.items():
                if isinstance(value, Tensor | Stored) and value.shape == like.shape:
                    shard, share = self.scattered(value, like, names[number])
                    if isinstance(value, Stored):
                        reads.add(value, share)
                    value = shard
                sharded.setdefault(number, {})[key] = value
        reads.now()
        optimizer.load_state_dict({**state, "state": sharded})
