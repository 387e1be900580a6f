"""Sharding by torch's FullyShardedDataParallel."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from athanor.algorithms.base import Algorithm
from athanor.models.transformer import Block
from athanor.strategies.sharded import Sharded


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
