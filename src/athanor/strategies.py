"""How processes share the work of one training: what Lightning's own strategies lack, or have on GPUs only.

Whatever is chosen, the same experiment gives the same model, on CPU (gloo) and CUDA (nccl) alike:

- An algorithm is sharded with all its networks, frozen ones and critics too. Each layer (`Block`) is a unit that is
  gathered when it is needed. What lies outside the layers (embeddings, final norms, heads), of all networks, is one
  more, gathered for as long as a training or validation step lasts: algorithms may call any method of a network.
- Mixed precision is autocast over float32 parameters, everywhere.
- Checkpoints hold tensors in the form of an unsharded training, whoever wrote them, whole ones or each process's share
  (`athanor.shares`), and can be read by every strategy and any number of processes.
- What generates text, in as many passes as it takes, works on a copy with whole weights (`whole`).

Sources: ZeRO, Rajbhandari et al. 2020 (arXiv:1910.02054); FSDP, Zhao et al. 2023 (arXiv:2304.11277).
"""

import copy
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from lightning import Callback, Trainer
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.strategy import Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Shard
from torch.optim import Optimizer

from athanor.algorithms.base import Algorithm
from athanor.callbacks.averaging import ExponentialAverage
from athanor.callbacks.checkpoints import Checkpoints, load
from athanor.callbacks.guard import Guard
from athanor.callbacks.stopping import EarlyStopping
from athanor.config import build
from athanor.errors import UserError
from athanor.models import parallel
from athanor.models.transformer import Block, Transformer
from athanor.optimizers import LAMB, MuonWithAdamW
from athanor.shares import Flat, Reads, Share, Stored

WHOLE = (MuonWithAdamW, torch.optim.Muon, LAMB, torch.optim.Adafactor)
"""Optimizers that reckon with whole matrices, not with each of their numbers."""


def make(config: dict[str, Any]) -> Strategy | str:
    """The strategy of an experiment, for Lightning's Trainer.

    Raises:
        UserError: it does not fit the experiment's cluster or precision, or its package is missing.
    """
    chosen, precision = config["strategy"], config["precision"]
    if chosen == "single":
        count, nodes = config["cluster"]["devices"], config["cluster"]["nodes"]
        if nodes != 1 or (len(count) if isinstance(count, list) else count) not in (1, "1"):
            raise UserError(
                f"strategy=single trains on one device, but the cluster has {nodes} x {count}; choose strategy=ddp or "
                "another that shares the work, or set cluster.devices=1."
            )
        return "auto"
    if isinstance(chosen, str):
        return chosen
    strategy = build(chosen)
    if isinstance(strategy, Sharded):
        known = ("32-true", "bf16-mixed") if isinstance(strategy, ZeRO) else ("32-true", "bf16-mixed", "bf16-true")
        if precision not in known:
            raise UserError(f"precision={precision} is not for {strategy}, which has {', '.join(known)}.")
    return strategy


def check(strategy: Strategy | str, processes: int, callbacks: Sequence[Callback], algorithm: Algorithm) -> None:
    """Raises UserError if the strategy fits the number of processes, the networks, the optimizer or a callback not."""
    if not isinstance(strategy, Sharded):
        return
    strategy.check(processes, algorithm)
    probe = algorithm.make_optimizer([{"params": [nn.Parameter(torch.zeros(2, 2))]}])
    if not strategy.keeps_matrices and isinstance(probe, WHOLE):
        raise UserError(
            f"{strategy} gives an optimizer pieces of parameters, but {type(probe).__name__} needs whole "
            "matrices; choose strategy=ddp or strategy=fsdp2, or optimizer=adamw."
        )
    for callback in callbacks:
        if isinstance(callback, Checkpoints) and callback.sharded and not strategy.shares:
            raise UserError(
                f"{strategy} gathers its checkpoints; leave checkpoint.sharded out, or choose strategy=fsdp2 or "
                "deepspeed_zero3."
            )
        if isinstance(callback, Guard) and callback.on_spike == "skip" and not strategy.skips:
            raise UserError(
                f"{strategy} cannot leave a step out; take callbacks.guard.on_spike=roll_back, or strategy=ddp or fsdp."
            )
        copies = isinstance(callback, ExponentialAverage) or (
            isinstance(callback, EarlyStopping) and callback.keep_best
        )
        if copies and not strategy.cuts_alike:
            raise UserError(
                f"{strategy} cuts the weights in other places than their copy that {type(callback).__name__} keeps, "
                "which so cannot follow them; choose strategy=fsdp2 or deepspeed_zero2, or leave that callback out."
            )
    if isinstance(strategy, ZeRO) and hasattr(probe, "eval"):
        raise UserError(
            f"{strategy} keeps the optimizer's weights to itself, and {type(probe).__name__} could not put its average "
            "in the model's place; choose strategy=ddp or strategy=fsdp2."
        )


def compiled(trainer: Trainer, cluster: dict[str, Any]) -> dict[str, Any]:
    """The cluster, with `compile` as the strategy can have it: sharded layers are compiled only if asked for.

    Raises:
        UserError: compilation is asked for and the strategy has none.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, Sharded) or cluster["compile"] is False:
        return cluster
    if cluster["compile"] is True:
        if strategy.compiles:
            return cluster
        raise UserError(f"cluster.compile=true is not for {strategy}; set cluster.compile=false, or strategy=fsdp2.")
    return {**cluster, "compile": False}


def replicas(trainer: Trainer) -> int:
    """Processes, or groups of them, that train on data of their own."""
    return getattr(trainer.strategy, "replicas", trainer.world_size)


def replica(trainer: Trainer) -> int:
    """The number of this process's among them."""
    return getattr(trainer.strategy, "replica", trainer.global_rank)


class Sharded(DDPStrategy):
    """Base: the whole life of a sharded training but for how it is sharded.

    `plain` holds, for each network of the algorithm by its name, the same without any data.
    """

    keeps_matrices = False  # whether an optimizer sees parameters in their own shape
    compiles = False  # whether layers may be compiled before they are sharded
    skips = False  # whether an optimizer's `found_inf` is obeyed
    cuts_alike = False  # whether a process holds the same pieces of two networks of the same shape
    shares = False  # whether a checkpoint can be had in shares, and read so
    restore_checkpoint_after_setup = True

    def __init__(self, **keywords: Any):
        super().__init__(**keywords)
        self.plain: dict[str, nn.Module] = {}
        self.sharing = False

    def __str__(self) -> str:
        return type(self).__name__

    @property
    def algorithm(self) -> Algorithm:
        return cast(Algorithm, self.lightning_module)

    # --- what a subclass says -------------------------------------------------------------------------------------

    def check(self, world_size: int, algorithm: Algorithm) -> None:
        """Raises UserError where it does not fit."""

    def shard(self, algorithm: Algorithm) -> None:
        """Shards the networks, on the device, and sets `model` and `optimizers`. Collective."""
        raise NotImplementedError

    def full(self, network: nn.Module, keep: bool = True) -> Iterator[tuple[str, Tensor]]:
        """(name, whole tensor) of the parameters of one of the algorithm's networks; an empty tensor for each if not
        `keep`. Collective.
        """
        raise NotImplementedError

    def fill(self, parameters: dict[str, Tensor]) -> None:
        """Sets the algorithm's parameters from whole tensors by name. Collective."""
        raise NotImplementedError

    def full_optimizer(self, optimizer: Optimizer) -> dict[str, Any]:
        """Its state dict as without sharding. Collective."""
        raise NotImplementedError

    def fill_optimizer(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        raise NotImplementedError

    def clip(self, parameters: list[nn.Parameter], max_norm: float) -> Tensor:
        """As `torch.nn.utils.clip_grad_norm_`, over all processes."""
        raise NotImplementedError

    def share(self, tensor: Any, name: str) -> Share:
        """What this process has of a parameter; of those that have `shares`."""
        raise NotImplementedError

    def reshard(self) -> None:
        """Lets go of what a forward pass has gathered for the backward pass that does not follow."""

    # --- the training ---------------------------------------------------------------------------------------------

    @property
    def replicas(self) -> int:
        """Processes, or groups of them, that train on data of their own."""
        return self.world_size

    @property
    def replica(self) -> int:
        """This process's number among them."""
        return self.global_rank

    @property
    def data_group(self) -> Any:
        """The processes of which each has other data; None are all."""
        return None

    def _data_group(self, group: Any) -> Any:
        return group if group not in (None, dist.group.WORLD) else self.data_group or group

    def reduce(self, tensor: Tensor, group: Any = None, reduce_op: Any = "mean") -> Tensor:
        return super().reduce(tensor, self._data_group(group), reduce_op)

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        return super().all_gather(tensor, self._data_group(group), sync_grads)

    def setup(self, trainer: Trainer) -> None:
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        algorithm = self.algorithm
        self.plain = {name: without_data(network) for name, network in networks(algorithm).items()}
        self.precision_plugin.convert_module(algorithm)
        self.shard(algorithm)
        self.setup_precision_plugin()
        _optimizers_to_device(self.optimizers, self.root_device)

    def validation_step(self, *arguments: Any, **keywords: Any) -> Any:
        result = super().validation_step(*arguments, **keywords)
        self.reshard()  # else what lies outside the layers is stale wherever weights change before the next step
        return result

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Gradients are reduced at every micro-batch: whole ones would not fit."""
        yield

    def teardown(self) -> None:
        """Leaves the shards where they are, so that the model can still be gathered."""
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()

    # --- whole networks -------------------------------------------------------------------------------------------

    @contextmanager
    def whole(self, network: nn.Module, everywhere: bool = True) -> Iterator[nn.Module]:
        """A copy with whole weights that no longer needs the other processes, without gradients. Collective.

        Args:
            everywhere: on every rank; else on rank 0, on the CPU, and without data on the others.
        """
        (name,) = (name for name, child in self.algorithm.named_children() if child is network)
        twin = copy.deepcopy(self.plain[name]).requires_grad_(False)
        keep = everywhere or self.is_global_zero
        with torch.no_grad():
            for key, tensor in self.full(network, keep):
                if keep:
                    parent, _, last = key.rpartition(".")
                    value = tensor if everywhere else tensor.cpu()
                    if value.untyped_storage().nbytes() > value.nbytes:  # of a padded buffer, which no file may hold
                        value = value.clone()
                    setattr(twin.get_submodule(parent), last, nn.Parameter(value, requires_grad=False))
        yield twin.train(network.training)

    # --- checkpoints ----------------------------------------------------------------------------------------------

    @contextmanager
    def in_shares(self, wanted: bool) -> Iterator[None]:
        """Within the block what is asked for to be saved are each process's `Share`s, if `wanted`."""
        self.sharing = wanted
        try:
            yield
        finally:
            self.sharing = False

    def lightning_module_state_dict(self) -> dict[str, Any]:
        algorithm, keep = self.algorithm, self.is_global_zero
        if self.sharing:
            state: dict[str, Any] = {name: buffer.cpu() for name, buffer in algorithm.named_buffers()}
            saved = [(n, p) for n, p in algorithm.named_parameters() if n.partition(".")[0] not in algorithm.unsaved]
            return state | {name: self.share(parameter.detach(), name) for name, parameter in saved}
        state = {name: buffer.cpu() for name, buffer in algorithm.named_buffers() if keep}
        for name, network in networks(algorithm).items():
            if name not in algorithm.unsaved:
                with torch.no_grad():
                    state |= {f"{name}.{key}": value.cpu() for key, value in self.full(network, keep) if keep}
        return state

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return load(Path(checkpoint_path), lazily=self.shares)

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        state, buffers = checkpoint["state_dict"], dict(self.algorithm.named_buffers())
        with torch.no_grad():
            for name, buffer in buffers.items():
                buffer.copy_(state[name])
            self.fill({name: value for name, value in state.items() if name not in buffers})

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return self.full_optimizer(optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"]):
            self.fill_optimizer(optimizer, state)


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


class FSDP(Sharded):
    """The same by torch's older FullyShardedDataParallel, which flattens the parameters of a unit into one."""

    skips = True

    def shard(self, algorithm: Algorithm) -> None:
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp._runtime_utils import _lazy_init
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy

        self.names = {id(parameter): name for name, parameter in algorithm.named_parameters()}
        algorithm.to(self.root_device)
        self.setup_optimizers(algorithm.trainer)  # while parameters have their shapes; they stay the same objects
        self.model = FullyShardedDataParallel(
            algorithm, device_id=self.root_device, use_orig_params=True, auto_wrap_policy=ModuleWrapPolicy({Block})
        )
        self.units: list[tuple[str, Any]] = [
            (f"{name}.".replace("_fsdp_wrapped_module.", "").lstrip("."), unit)
            for name, unit in self.model.named_modules()
            if isinstance(unit, FullyShardedDataParallel) and unit._handle is not None
        ]
        _lazy_init(self.model, self.model)  # else the first unit that is asked for its state takes itself for the root

    def reshard(self) -> None:
        from torch.distributed.fsdp._runtime_utils import _reshard

        for _, unit in self.units:
            if not unit._handle.needs_unshard():
                _reshard(unit, unit._handle, free_unsharded_flat_param=True)

    def clip(self, parameters: list[nn.Parameter], max_norm: float) -> Tensor:
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None and parameter.grad.numel()]
        squares = sum((grad.float().square().sum() for grad in grads), torch.zeros((), device=self.root_device))
        dist.all_reduce(squares)
        norm = squares.sqrt()
        for grad in grads:
            grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def full(self, network: nn.Module, keep: bool = True) -> Iterator[tuple[str, Tensor]]:
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp._common_utils import TrainingState

        (prefix,) = (f"{name}." for name, child in self.algorithm.named_children() if child is network)
        for start, unit in self.units:
            flat = unit._handle.flat_param
            places = [(f"{start}{name}", place) for name, place in zip(flat._fqns, flat._param_infos)]
            places = [(name.removeprefix(prefix), place) for name, place in places if name.startswith(prefix)]
            if not places:
                continue
            within = unit.training_state != TrainingState.IDLE  # a step, for which the outermost unit is gathered
            summon = FullyShardedDataParallel.summon_full_params
            with nullcontext() if within else summon(unit, recurse=False, writeback=False):
                found = [(name, getattr(place.module, place.param_name).detach().clone()) for name, place in places]
            yield from found

    def fill(self, parameters: dict[str, Tensor]) -> None:
        from torch.distributed.fsdp import FullyShardedDataParallel

        for start, unit in self.units:
            flat = unit._handle.flat_param
            with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=True):
                for name, place in zip(flat._fqns, flat._param_infos):
                    if f"{start}{name}" in parameters:
                        getattr(place.module, place.param_name).copy_(parameters[f"{start}{name}"])

    @contextmanager
    def _whole_states(self) -> Iterator[None]:
        from torch.distributed.fsdp import FullOptimStateDictConfig, FullStateDictConfig, StateDictType
        from torch.distributed.fsdp import FullyShardedDataParallel as Wrapped

        # offload_to_cpu ends in a segmentation fault on the CPU
        settings = FullStateDictConfig(offload_to_cpu=False), FullOptimStateDictConfig(offload_to_cpu=False)
        with Wrapped.state_dict_type(cast(nn.Module, self.model), StateDictType.FULL_STATE_DICT, *settings):
            yield

    def full_optimizer(self, optimizer: Optimizer) -> dict[str, Any]:
        from torch.distributed.fsdp import FullyShardedDataParallel

        with self._whole_states():
            found = FullyShardedDataParallel.optim_state_dict(cast(nn.Module, self.model), optimizer)
        state = optimizer.state_dict()
        names = [self.names[id(p)] for group in optimizer.param_groups for p in group["params"]]
        state["state"] = {
            number: {key: value.cpu() if isinstance(value, Tensor) else value
                     for key, value in found["state"][name].items()}
            for number, name in enumerate(names) if name in found["state"]
        }  # fmt: skip
        return state

    def fill_optimizer(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        from torch.distributed.fsdp import FullyShardedDataParallel

        names = [self.names[id(p)] for group in optimizer.param_groups for p in group["params"]]
        named = {
            "state": {names[number]: entries for number, entries in state["state"].items()},
            "param_groups": [
                {**group, "params": [names[number] for number in group["params"]]} for group in state["param_groups"]
            ],
        }
        with self._whole_states():
            sharded = FullyShardedDataParallel.optim_state_dict_to_load(cast(nn.Module, self.model), optimizer, named)
        optimizer.load_state_dict(sharded)


class ZeRO(Sharded):
    """DeepSpeed's: sharded are the optimizer's states (stage 1), gradients too (2), parameters too (3).

    Args:
        offload: keeps the optimizer's states in the CPU's memory and takes its steps there; stage 3 only.
        persistence_threshold: parameters with fewer elements are not sharded at stage 3.
    """

    shares = True
    clip: Any = None  # the engine does, within its step

    def __init__(self, stage: Literal[1, 2, 3], offload: bool = False, persistence_threshold: int = 100_000):
        if stage not in (1, 2, 3):
            raise UserError(f"strategy.stage={stage} must be 1, 2 or 3.")
        if offload and stage != 3:
            raise UserError("strategy.offload=true needs strategy.stage=3.")
        if importlib.util.find_spec("deepspeed") is None:
            raise UserError("This strategy needs DeepSpeed, which runs on Linux: pip install 'deepspeed>=0.19,<0.20'.")
        super().__init__()
        self.stage, self.offload, self.persistence_threshold = stage, offload, persistence_threshold
        self.cuts_alike = stage < 3

    def setup_distributed(self) -> None:
        super().setup_distributed()
        if self.root_device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed
        from deepspeed.utils import logger

        logger.setLevel(logging.WARNING)
        if self.root_device.type == "cpu":
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled, for a minute
        deepspeed.comm.init_distributed(
            dist_backend=self._process_group_backend, auto_mpi_discovery=False, verbose=False, dist_init_required=False
        )

    @property
    def settings(self) -> dict[str, Any]:
        """DeepSpeed's own configuration, from ours."""
        algorithm = self.algorithm
        trainer, plan = algorithm.trainer, algorithm.trainer.datamodule.plan  # type: ignore[attr-defined]
        zero: dict[str, Any] = {"stage": self.stage, "contiguous_gradients": True, "overlap_comm": False}
        if self.stage == 3:
            zero["stage3_param_persistence_threshold"] = self.persistence_threshold
        if self.offload:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": self.root_device.type == "cuda"}
        return {
            "train_micro_batch_size_per_gpu": plan.micro,
            "gradient_accumulation_steps": plan.accumulation,
            "gradient_clipping": float(trainer.gradient_clip_val or 0.0),
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": None,
        }

    def shard(self, algorithm: Algorithm) -> None:
        import deepspeed

        if self.stage < 3:
            algorithm.to(self.root_device)
        for module in algorithm.modules():  # the engine moves parameters as it shards them, but no buffers
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.root_device))
        self.setup_optimizers(algorithm.trainer)
        (optimizer,) = self.optimizers
        self.order = [list(group["params"]) for group in optimizer.param_groups]
        self.part_of = [self._part(group[0]) for group in self.order]
        self.engine, self.zero, *_ = deepspeed.initialize(
            model=algorithm,
            optimizer=optimizer,
            model_parameters=[p for p in algorithm.parameters() if p.requires_grad],
            config=self.settings,
            dist_init_required=False,
        )
        self.model = self.engine
        algorithm.to(self.root_device)  # no more than its own note of where it is
        if self.stage == 3:
            layered = {id(p) for m in algorithm.modules() if isinstance(m, Block) for p in m.parameters()}
            for parameter in algorithm.parameters():
                if id(parameter) not in layered:  # gathered for the whole of a step
                    deepspeed.zero.register_external_parameter(algorithm, parameter)
        optimizer.zero_grad = lambda set_to_none=True: None  # type: ignore[method-assign]  # the engine's business
        self.optimizers = [optimizer]
        for step in ("training_step", "validation_step"):  # the engine switches off an autocast around it
            setattr(algorithm, step, self._within_precision(getattr(algorithm, step)))
        self._clip_by_parts()

    def _within_precision(self, step: Callable) -> Callable:
        def run(*arguments: Any) -> Any:
            with self.precision_plugin.forward_context():
                return step(*arguments)

        return run

    # --- steps ----------------------------------------------------------------------------------------------------

    def training_step(self, *arguments: Any) -> Any:
        accumulating = self.algorithm.trainer.fit_loop._should_accumulate()
        self.engine.set_gradient_accumulation_boundary(not accumulating)
        return super().training_step(*arguments)

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *_: Any, **__: Any) -> Tensor:
        self.engine.backward(closure_loss, scale_wrt_gas=False)  # Lightning has divided it already
        return self.precision_plugin.post_backward(closure_loss, self.algorithm)

    def optimizer_step(self, optimizer: Any, closure: Callable, model: Any = None, **_: Any) -> Any:
        result = self.precision_plugin._wrap_closure(self.algorithm, optimizer, closure)
        self.engine.step()
        self.algorithm.clipped(optimizer, self.part_norms)
        return result

    def _part(self, parameter: nn.Parameter) -> int:
        """Of the algorithm's `parts`, the number of the one that holds a parameter."""
        (name,) = (name for name, own in self.algorithm.named_parameters() if own is parameter)
        return next(i for i, (prefix, _) in enumerate(self.algorithm.parts()) if name.startswith(prefix))

    def _clip_by_parts(self) -> None:
        """DeepSpeed clips all groups of an optimizer by one norm; let it take that of the part each belongs to."""
        zero, parts = self.zero, len(self.algorithm.parts())
        clip = zero.unscale_and_clip_grads

        def note(norms: list[Tensor], part_of: list[int]) -> None:
            finite = [norm.float().where(norm >= 0, torch.inf) for norm in norms]  # -1 stands for those that are not
            self.part_norms = [
                torch.linalg.vector_norm(torch.stack([n for n, own in zip(finite, part_of) if own == part]))
                for part in range(parts)
            ]

        if self.stage == 3:
            part_of = [self.part_of[zero.sub_group_to_group_id[i]] for i in range(len(zero.fp16_groups))]
            norm_groups = zero._get_norm_groups

            def noted() -> list[Tensor]:
                norms = norm_groups()
                note(norms, part_of)
                return norms

            zero._get_norm_groups = noted
            zero.unscale_and_clip_grads = lambda group, _: clip(group, self.part_norms[part_of[group]])
            return

        def scaled_global_norm(norm_type: int = 2) -> Tensor:
            norms = [
                zero.get_grad_norm_direct(zero.averaged_gradients[i], zero.params_in_partition[i])
                for i in range(len(zero.bit16_groups))
            ]
            note(norms, self.part_of)
            self.turns = iter(self.part_of)
            return torch.linalg.vector_norm(torch.stack(norms))

        zero.scaled_global_norm = scaled_global_norm
        zero.unscale_and_clip_grads = lambda grads, _: clip(grads, self.part_norms[next(self.turns)])

    # --- whole tensors --------------------------------------------------------------------------------------------

    @contextmanager
    def _gathered(self, parameters: list[nn.Parameter], writer: int | None = None) -> Iterator[None]:
        if self.stage < 3:
            yield
            return
        import deepspeed
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        away = [p for p in parameters if cast(Any, p).ds_status == ZeroParamStatus.NOT_AVAILABLE]
        with deepspeed.zero.GatheredParameters(away, modifier_rank=writer):
            yield

    def full(self, network: nn.Module, keep: bool = True) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in network.named_parameters():
            if self.stage == 3 and parameter.requires_grad:  # however it is just now: gathered, on its way, or neither
                yield name, safe_get_full_fp32_param(parameter)
                continue
            with self._gathered([parameter]):
                value = parameter.detach().clone()
            yield name, value

    def fill(self, parameters: dict[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param

        parameters, reads, pieces = dict(parameters), Reads(), dict[str, Tensor]()
        own = dict(self.algorithm.named_parameters())
        for name, value in parameters.items():
            if isinstance(value, Stored) and self.stage == 3 and own[name].requires_grad:
                pieces[name], share = self._piece(own[name])
                reads.add(value, share)
            elif isinstance(value, Stored):
                parameters[name] = torch.empty(value.shape, dtype=value.dtype)
                reads.add(value, parameters[name])
        reads.now()
        for name, parameter in own.items():
            if name in pieces:
                cast(Any, parameter).ds_tensor.data.copy_(pieces[name])
                self._set_own(parameter, pieces[name])
            elif name in parameters:
                value = parameters[name].to(self.root_device)
                with self._gathered([parameter], writer=0):
                    if self.stage < 3 or self.is_global_zero:
                        parameter.copy_(value)
                if self.stage < 3:
                    safe_set_full_fp32_param(parameter, value)
                else:
                    self._set_local(parameter, value)

    def share(self, tensor: Any, name: str) -> Share:
        from deepspeed.utils import safe_get_local_fp32_param

        parameter = self.algorithm.get_parameter(name)
        if self.stage == 3:
            assert parameter.requires_grad, "DeepSpeed keeps no whole copy of others, and none of them is saved"
            return self._piece(parameter, safe_get_local_fp32_param(parameter))[1]
        return Share(tensor, tensor.shape, [torch.arange(size) for size in tensor.shape])  # one of them will write it

    def _share_of_state(self, parameter: nn.Parameter, key: str) -> Share:
        from deepspeed.utils import safe_get_local_optimizer_state

        if self.stage == 3:
            return self._piece(parameter, safe_get_local_optimizer_state(parameter, key))[1]
        held = cast(Any, parameter)._hp_mapping
        if held is None:
            return Flat(torch.empty(0), parameter.shape, 0)
        return Flat(held.get_hp_fragment(key), parameter.shape, held.lp_fragment_address.start)

    def _piece(self, parameter: nn.Parameter, own: Tensor | None = None) -> tuple[Tensor, Flat]:
        """Stage 3: this rank's piece of a parameter, or of a state of it, with padding at its end; the share in it."""
        whole = cast(Any, parameter)
        size = whole.partition_numel()
        start = size * self.global_rank
        own = torch.zeros(size) if own is None else own
        return own, Flat(own[: max(0, min(size, whole.ds_numel - start))], whole.ds_shape, start)

    def _set_local(self, parameter: nn.Parameter, value: Tensor, key: str | None = None) -> None:
        """Stage 3: this rank's piece of a whole tensor."""
        size = cast(Any, parameter).partition_numel()
        flat = nn.functional.pad(value.flatten(), (0, size * self.world_size - value.numel()))
        self._set_own(parameter, flat.narrow(0, size * self.global_rank, size), key)

    def _set_own(self, parameter: nn.Parameter, mine: Tensor, key: str | None = None) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        if key is None:
            safe_set_local_fp32_param(parameter, mine)
        else:
            safe_set_local_optimizer_state(parameter, mine, key)

    def _flat(self) -> list[tuple[Tensor, list[nn.Parameter]]]:
        """The flat pieces that the optimizer works on, each with the parameters of which it holds pieces."""
        if self.stage == 3:
            return list(zip(self.zero.fp32_partitioned_groups_flat, self.zero.fp16_groups))
        return list(zip(self.zero.single_partition_of_fp32_groups, self.zero.bit16_groups))

    def full_optimizer(self, optimizer: Optimizer) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_optimizer_state
        from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state

        places = {id(p): i for i, p in enumerate(p for group in self.order for p in group)}
        state: dict[int, dict[str, Any]] = {}
        for flat, parameters in self._flat():
            kept = optimizer.state.get(flat, {})
            if self.stage < 3:  # the engine does so after the first group's first step: the others have no state yet
                lazy_init_hp_params_optimizer_state(parameters, flat, {flat: kept})
            for key in sorted(kept):
                whole = isinstance(kept[key], Tensor) and kept[key].shape == flat.shape
                for parameter in parameters:
                    value: Any = kept[key]
                    if whole and self.sharing:
                        value = self._share_of_state(parameter, key)
                    elif whole:
                        value = safe_get_full_optimizer_state(parameter, key)
                    if self.is_global_zero or self.sharing:
                        value = value.detach().cpu().clone() if isinstance(value, Tensor) else value
                        state.setdefault(places[id(parameter)], {})[key] = value
        groups, first = [], 0
        for group, own in zip(optimizer.param_groups, self.order):
            plain = {key: value for key, value in group.items() if key != "params"}
            groups.append({**plain, "params": list(range(first, first + len(own)))})
            first += len(own)
        return {"state": state, "param_groups": groups}

    def fill_optimizer(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        places = {id(p): i for i, p in enumerate(p for group in self.order for p in group)}
        reads, pieces = Reads(), list[tuple[nn.Parameter, str, Tensor]]()
        for flat, parameters in self._flat():
            entries = [state["state"].get(places[id(p)], {}) for p in parameters]
            whole = [key for key, v in entries[0].items() if isinstance(v, Tensor | Stored) and len(v.shape)]
            kept = {key: value for key, value in entries[0].items() if key not in whole}
            kept = {k: v.clone() if isinstance(v, Tensor) else v for k, v in kept.items()}
            optimizer.state[flat] = kept | {key: torch.zeros_like(flat) for key in whole}
            if self.stage < 3:
                from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state

                lazy_init_hp_params_optimizer_state(parameters, flat, optimizer.state)
            for parameter, entry in zip(parameters, entries):
                for key in whole:
                    if isinstance(entry[key], Stored):
                        if self.stage == 3:
                            piece, share = self._piece(parameter)
                            pieces.append((parameter, key, piece))
                        else:
                            share = cast(Flat, self._share_of_state(parameter, key))
                        reads.add(entry[key], share)
                        continue
                    value = entry[key].to(flat.device)
                    if self.stage == 3:
                        self._set_local(parameter, value, key)
                    else:
                        cast(Any, parameter).set_full_hp_param(value, key)
        reads.now()
        for parameter, key, piece in pieces:
            self._set_own(parameter, piece, key)
        for group, loaded in zip(optimizer.param_groups, state["param_groups"]):
            group.update({key: value for key, value in loaded.items() if key != "params"})


def networks(algorithm: Algorithm) -> dict[str, nn.Module]:
    """Those with parameters, by name."""
    return {name: child for name, child in algorithm.named_children() if any(True for _ in child.parameters())}


def without_data(network: nn.Module) -> nn.Module:
    """A copy whose tensors have shapes and nothing else."""
    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
    return copy.deepcopy(network, memo)
