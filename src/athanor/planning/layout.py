"""How a strategy spreads a training over devices: which part of what each device holds.

Blocks are the units of sharding: what belongs to one is gathered before it computes and let go after, the next one
being fetched meanwhile. What is in no block is gathered for as long as a step lasts. Mixed precision is autocast over
float32 parameters, so the low-precision copies that the backward pass needs are whole everywhere.
"""

from typing import Any, NamedTuple

from athanor.errors import UserError
from athanor.planning.errors import NoPlanError
from athanor.planning.live import ACTIVATIONS, FROZEN, GRADIENTS, OPTIMIZER, WEIGHTS, WORKING

BUCKET = 500_000_000  # elements: DeepSpeed's own reduce_bucket_size
STAGES = {1: "zero1", 2: "zero2", 3: "zero3"}
NAMES = {"ddp": "ddp", "fsdp": "fsdp", "deepspeed": "zero2"} | {f"deepspeed_stage_{n}": s for n, s in STAGES.items()}
CLASSES = {
    "DDPStrategy": "ddp", "FSDP": "fsdp", "FSDP2": "fsdp", "FSDPStrategy": "fsdp", "ModelParallelStrategy": "fsdp",
    "ZeRO": "zero", "DeepSpeedStrategy": "zero", "Pipeline": "pipeline",
}  # fmt: skip
SHARDED = {
    "single": (), "ddp": (), "pipeline": (), "zero1": (OPTIMIZER,), "zero2": (OPTIMIZER, GRADIENTS),
    "zero3": (OPTIMIZER, GRADIENTS, WEIGHTS, FROZEN), "fsdp": (OPTIMIZER, GRADIENTS, WEIGHTS, FROZEN),
}  # fmt: skip


class Layout(NamedTuple):
    """
    Args:
        kind: single, ddp, fsdp, zero1, zero2, zero3 or pipeline.
        devices: of all nodes.
        tensor: devices that share every layer.
        groups: that hold all the shards each.
        offload: the optimizer is on the CPU.
        stages: devices that share the layers of a network, each of which has `turns` parts of them.
    """

    kind: str
    devices: int
    tensor: int = 1
    groups: int = 1
    offload: bool = False
    stages: int = 1
    turns: int = 1

    @property
    def replicas(self) -> int:
        """Devices, or groups that share layers, that see rows of their own."""
        return self.devices // (self.tensor * self.stages)

    @property
    def in_flight(self) -> float:
        """Micro-batches whose activations the first of the stages holds at once, all of its layers counted as one."""
        if self.turns == 1:
            return float(self.stages)
        return (2 * (self.stages - 1) + (self.turns - 1) * self.stages + 1) / self.turns

    def idle(self, accumulation: int) -> float:
        """Time in which a stage waits, over that in which it computes (Narayanan et al. 2021, section 2.2)."""
        return (self.stages - 1) / (self.turns * accumulation)

    @property
    def shards(self) -> int:
        return self.replicas // self.groups

    def share(self, category: str, phase: str) -> float:
        """Part of the bytes of a category that a device holds."""
        if category == WORKING and phase == "optimizer":
            category = OPTIMIZER
        if category == OPTIMIZER and self.offload:
            return 0.0
        if category == ACTIVATIONS and self.stages > 1:
            return self.in_flight
        return 1 / self.shards if category in SHARDED[self.kind] else 1.0

    def extra(self, sizes: "Sizes", phase: str) -> dict[str, float]:
        """Bytes that a device holds besides, because of the strategy."""
        if self.kind == "ddp":
            return {"gradient buckets": float(sizes.trained)}
        held: dict[str, float] = {}
        if self.kind.startswith("zero"):
            held["gradient bucket"] = float(BUCKET * sizes.weight)
            held["optimizer's own weights"] = 0.0 if self.offload else sizes.trained / self.shards
        if self.kind in ("fsdp", "zero3") and phase != "optimizer":
            gradients = sizes.block + sizes.outside if phase == "backward" else 0
            whole = sizes.model if phase == "rollout" else 0
            held["gathered"] = float(2 * sizes.block + sizes.outside + gradients + whole)
        return held


class Sizes(NamedTuple):
    """Bytes of parameters, whole: all that are trained, the largest block, what is in none, and the policy."""

    trained: int
    block: int
    outside: int
    model: int
    weight: int  # of one


def layout_of(strategy: Any, devices: int) -> Layout:
    """Of the config's `strategy`: a name that Lightning knows, or a node.

    Raises:
        UserError: a strategy that is not planned for, or that does not fit the number of devices.
    """
    tensor, groups, offload, stages, turns = 1, 1, False, 1, 1
    if isinstance(strategy, dict):
        name = str(strategy.get("_target_")).rpartition(".")[2]
        kind = CLASSES.get(name)
        if kind == "zero":
            kind, offload = STAGES.get(strategy.get("stage", 2)), bool(strategy.get("offload"))
        if kind == "pipeline":
            stages, turns = int(strategy.get("stages", 2)), int(strategy.get("turns", 1))
        wanted = {key: strategy.get(key, 1) for key in ("tensor_parallel", "tensor_parallel_size", "replicas")}
        wanted |= {"stages": stages}
        sizes = {key: 1 if value == "auto" else int(value) for key, value in wanted.items()}
        tensor, groups = max(sizes["tensor_parallel"], sizes["tensor_parallel_size"]), sizes["replicas"]
        for key, size in sizes.items():
            if size < 1 or devices % size:
                raise UserError(f"strategy.{key}={size} does not divide the {devices} devices")
    else:
        name = str(strategy)
        kind = {"auto": "ddp", "single": "single"}.get(name) or NAMES.get(name.partition("_find_unused")[0])
        if name == "single" and devices > 1:
            raise UserError(f"strategy=single trains on one device, but the cluster has {devices}; choose another")
    if not kind:
        raise NoPlanError(f"there is no plan for strategy {name}; there is for auto, {', '.join((*NAMES, *CLASSES))}")
    if devices == tensor:
        return Layout("single", devices, tensor)
    return Layout(kind, devices, tensor, groups, offload, stages, turns)
