"""A step on devices that are not there: the strategy itself shards the experiment's own networks over a process group
of as many ranks as you like, in which nothing is sent, on tensors without data. What one of the ranks holds is counted
storage by storage, what it sends collective by collective.

`athanor plan` reckons with shares of the whole; here is nothing but what the code does. The two are held against each
other by tests and by benchmarks/scale.py (docs/scale.md).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp._fully_shard import _fsdp_param_group
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from athanor import config as configs
from athanor.algorithms.base import Algorithm
from athanor.config import Experiment, build
from athanor.data.plan import BatchPlan
from athanor.errors import UserError
from athanor.float8 import beyond
from athanor.planning import models, step
from athanor.planning.batches import Shape, shape_of
from athanor.planning.layout import Layout, layout_of
from athanor.planning.live import BLOCK, GATHERED, GRADIENTS, Live, Moment
from athanor.planning.plan import batch_plan, context_of, devices_of
from athanor.strategies import FSDP2, fsdp2

KINDS = {"allgather": "all-gather", "all_gather": "all-gather", "reduce_scatter": "reduce-scatter",
         "allreduce": "all-reduce", "all_reduce": "all-reduce"}  # fmt: skip


class Sent(NamedTuple):
    """What a rank sends in one kind of collective over one group, in one phase of a micro-batch.

    Args:
        ranks: of the group.
        nodes: that it reaches.
        bytes: sent by this rank to the next of a ring, which is the least there is: (n - 1) / n of the whole tensor for
            an all-gather or a reduce-scatter, twice that for an all-reduce.
        leaving: bytes that leave a node in all such groups that it takes part in, by rings in the order of ranks, of
            which one hop a node does.
    """

    phase: str
    kind: str
    ranks: int
    nodes: int
    calls: int
    bytes: float
    leaving: float


class Simulation(NamedTuple):
    """
    Args:
        peaks: of the rank, by phase; bytes.
        sent: for one micro-batch; `backward` holds what clipping sends once a step, too.
        weights: bytes of parameters by part of the network, on each rank.
    """

    layout: Layout
    batch: BatchPlan
    shape: Shape
    peaks: dict[str, Moment]
    sent: list[Sent]
    weights: list[dict[str, int]]
    per_node: int

    @property
    def peak(self) -> tuple[str, Moment]:
        return max(self.peaks.items(), key=lambda item: item[1].held)

    def per_step(self, within: bool) -> float:
        """Bytes of a step that go over a rank's link to the next one of its node, or over its part of the node's links
        to others.
        """
        counted = (
            (sent.bytes if sent.ranks > sent.nodes else 0.0) if within else sent.leaving / self.per_node
            for sent in self.sent
        )
        return self.batch.accumulation * sum(counted)


def simulate(experiment: Experiment, rank: int = 0, on_gpu: bool = True, length: int | None = None) -> Simulation:
    """
    Args:
        rank: whose step it is.
        on_gpu: whether to assume the kernels of a GPU.
        length: tokens of a row, as `athanor plan --length`.

    Raises:
        UserError: the experiment cannot run, or by a strategy that is not simulated.
    """
    if problems := configs.check(experiment.config, experiment.variables):
        raise UserError("\n  - ".join((f"{experiment.name} cannot run:", *problems)))
    config = models.with_models(experiment)
    config |= {"precision": beyond(config["precision"])}
    per_node, nodes = devices_of(config["cluster"]), config["cluster"]["nodes"]
    layout = layout_of(config["strategy"], per_node * nodes)
    strategy = build(config["strategy"]) if isinstance(config["strategy"], dict) else None
    if not isinstance(strategy, FSDP2):
        raise UserError("simulated are strategy=fsdp2, fsdp2_tp and hsdp; for others there is `athanor plan`.")
    batch = batch_plan(config, layout)
    shape = shape_of(config, context_of(config["model"]), length)._replace(validation=0)
    live = Rank(per_node, labelled=shape.labelled, last=shape.length - 2)
    weights: list[dict[str, int]] = []

    def shard(algorithm: Algorithm) -> None:
        lend(strategy, algorithm, rank, layout.devices)
        strategy.check(layout.devices, algorithm)
        strategy.shard(algorithm)
        algorithm.trainer.strategy = strategy  # type: ignore[misc]
        weights.extend(weights_of(algorithm, other) for other in range(layout.devices))

    with group(rank, layout.devices), live.counted():
        traced = step.trace(config, shape, batch, layout, on_gpu, live, shard)
    return Simulation(layout, batch, shape, traced.peaks, live.sent(), weights, per_node)


@contextmanager
def group(rank: int, ranks: int) -> Iterator[None]:
    """The process group of all ranks, of which this process is one and the others are not there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise UserError("a simulation needs a process that takes part in no training")
    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    apart = (
        (fsdp2, "init_device_mesh"), (DeviceMesh, "__init__"), (DeviceMesh, "_concatenate"),
        (ShardingPropagator, "_propagate_tensor_meta_non_cached"),  # on whole tensors of its own
    )  # fmt: skip
    try:
        with ExitStack() as patches:
            for owner, name in apart:
                patches.enter_context(patch.object(owner, name, unseen(getattr(owner, name))))
            yield
    finally:
        dist.destroy_process_group()


def unseen(function: Callable) -> Callable:
    """The same out of sight: on tensors that have numbers, as those of a mesh must, and not counted."""

    def run(*arguments: Any, **keywords: Any) -> Any:
        with _disable_current_modes():
            return function(*arguments, **keywords)

    return run


def lend(strategy: Any, algorithm: Algorithm, rank: int, ranks: int) -> None:
    """Gives a strategy what Lightning's Trainer would."""
    strategy.parallel_devices = [torch.device("cpu")]
    strategy.cluster_environment = SimpleNamespace(
        global_rank=lambda: rank, local_rank=lambda: 0, world_size=lambda: ranks, node_rank=lambda: 0
    )
    strategy._lightning_module = algorithm
    strategy.setup_optimizers = lambda trainer: None  # the step makes its own
    algorithm.to = lambda *_: algorithm  # type: ignore[method-assign]  # it is nowhere


def weights_of(algorithm: Algorithm, rank: int) -> dict[str, int]:
    """Bytes of parameters by part of the network, of a rank that need not be this one."""
    found: dict[str, int] = defaultdict(int)
    for name, parameter in algorithm.named_parameters():
        shape = list(parameter.shape)
        mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
        for dimension in reversed(range(mesh.ndim)):  # by tensor-parallel neighbours first, as FSDP2 cuts
            if (cut := getattr(placements[dimension], "dim", None)) is not None:
                piece = -(-shape[cut] // mesh.size(dimension))
                shape[cut] = max(0, min(piece, shape[cut] - piece * place_of(rank, mesh, dimension)))
        found[step.part_of(name)] += math.prod(shape) * parameter.element_size()
    return dict(found)


def place_of(rank: int, mesh: DeviceMesh, dimension: int) -> int:
    """Of any rank, along a dimension of the mesh, which is cut from all ranks in their order."""
    members = dist.get_process_group_ranks(mesh.get_group(dimension))
    stride = members[1] - members[0] if len(members) > 1 else 1
    return rank // stride % len(members)


class Rank(Live):
    """Counts on one rank what is there, whole: nothing is a share of something.

    Args:
        per_node: ranks of a node.
    """

    def __init__(self, per_node: int, labelled: float, last: int):
        super().__init__(lambda category, phase: 1.0, labelled, last)
        self.per_node = per_node
        self.calls: dict[tuple[str, str, tuple[int, ...]], list[float]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor | AsyncTensor) for kind in types):
            return NotImplemented  # they come again as what they are made of
        if function.namespace in ("c10d", "_c10d_functional"):
            self.note_sent(function, args)
        return super().__torch_dispatch__(function, types, args, kwargs)

    def set(self, tensors: Any, category: str) -> None:
        super().set((local(tensor) for tensor in tensors), category)

    # --- what is sent -----------------------------------------------------------------------------------------------

    def note_sent(self, function: Any, args: Any) -> None:
        name = str(function).split(".")[1].strip("_")
        kind = next((shown for key, shown in KINDS.items() if name.startswith(key)), None)
        if kind is None:
            return
        tensors = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
        ranks = tuple(dist.get_process_group_ranks(group_of(args)))
        whole = max(x.numel() * x.element_size() for x in tensors)
        if name == "all_gather_into_tensor":  # given its piece alone
            whole *= len(ranks)
        sent = whole * (len(ranks) - 1) / len(ranks) * (2 if kind == "all-reduce" else 1)
        found = self.calls.setdefault((self.phase, kind, ranks), [0, 0.0])
        found[0] += 1
        found[1] += sent

    def sent(self) -> list[Sent]:
        rows: dict[tuple[str, str, int, int], list[float]] = {}
        for (phase, kind, ranks), (calls, size) in self.calls.items():
            if phase == "build" or len(ranks) == 1:
                continue
            nodes = [rank // self.per_node for rank in ranks]
            mine = nodes.count(nodes[0])
            leaving = size / mine * self.per_node if len(set(nodes)) > 1 else 0.0
            row = rows.setdefault((phase, kind, len(ranks), len(set(nodes))), [0, 0.0, 0.0])
            for i, more in enumerate((calls, size, leaving)):
                row[i] += more
        return [Sent(*key, int(calls), size, leaving) for key, (calls, size, leaving) in rows.items()]

    # --- what FSDP2 holds ---------------------------------------------------------------------------------------------

    @contextmanager
    def counted(self) -> Iterator[None]:
        """While it is entered, storages that change their size are noticed, and FSDP2's own are called `gathered`."""
        resize = torch.UntypedStorage.resize_

        def resized(storage: Any, size: int) -> Any:
            result = resize(storage, size)
            self.resized(storage)
            return result

        with ExitStack() as patches:
            patches.enter_context(patch.object(torch.UntypedStorage, "resize_", resized))
            for name in ("foreach_all_gather", "foreach_all_gather_copy_out", "foreach_reduce"):
                own = self.making_gathered(getattr(_fsdp_param_group, name))
                patches.enter_context(patch.object(_fsdp_param_group, name, own))
            yield

    def making_gathered(self, function: Callable) -> Callable:
        def run(parameters: Any, *arguments: Any, **keywords: Any) -> Any:
            before, self.making = self.making, GATHERED
            try:
                return function(parameters, *arguments, **keywords)
            finally:
                self.making = before
                if function.__name__ == "foreach_reduce":
                    self.set((one.sharded_param.grad for one in parameters), GRADIENTS)

        return run

    def resized(self, storage: Any) -> None:
        key = storage._cdata
        if key in self.storages:
            before, category = self.storages[key]
            size = math.ceil(storage.nbytes() / BLOCK) * BLOCK
            self.storages[key] = size, category
            self.add(category, size - before)
            self.note_peak()


AsyncTensor = dist._functional_collectives.AsyncCollectiveTensor


def local(tensor: Tensor | None) -> Tensor | None:
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def group_of(args: Any) -> Any:
    """The process group that a collective is given: as an object of torch's, or by its name, last."""
    found = [
        x
        for x in tree_leaves(args)
        if isinstance(x, torch.ScriptObject) and "ProcessGroup" in x._type().qualified_name()
    ]
    if found:
        return dist.ProcessGroup.unbox(found[0])
    return dist.distributed_c10d._resolve_process_group([x for x in args if isinstance(x, str)][-1])  # type: ignore[arg-type]
