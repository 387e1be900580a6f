"""What all sharded trainings have in common: their life, whole copies of networks, and checkpoints."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning import Trainer
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from athanor.algorithms.base import Algorithm
from athanor.callbacks.checkpoints import load
from athanor.shares import Share


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


def networks(algorithm: Algorithm) -> dict[str, nn.Module]:
    """Those with parameters, by name."""
    return {name: child for name, child in algorithm.named_children() if any(True for _ in child.parameters())}


def without_data(network: nn.Module) -> nn.Module:
    """A copy whose tensors have shapes and nothing else."""
    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
    return copy.deepcopy(network, memo)
