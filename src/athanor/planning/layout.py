"""How a strategy spreads a training over devices: which part of what each device holds.

The rules and their sources are in docs/planning.md. Blocks are the units of sharding: what belongs to one is gathered
before it computes and let go after, the next one being fetched meanwhile.
"""

from typing import Any, NamedTuple

from athanor.errors import UserError
from athanor.planning.live import FROZEN, GRADIENTS, OPTIMIZER, WEIGHTS, WORKING

BUCKET = 200_000_000  # elements: reduce_bucket_size of Lightning's DeepSpeedStrategy
STAGES = {1: "zero1", 2: "zero2", 3: "zero3"}
NAMES = {"ddp": "ddp", "fsdp": "fsdp", "deepspeed": "zero2"} | {f"deepspeed_stage_{n}": s for n, s in STAGES.items()}
CLASSES = {"DDPStrategy": "ddp", "FSDPStrategy": "fsdp", "DeepSpeedStrategy": "", "ModelParallelStrategy": ""}
SHARDED = {
    "single": (), "ddp": (), "zero1": (OPTIMIZER,), "zero2": (OPTIMIZER, GRADIENTS),
    "zero3": (OPTIMIZER, GRADIENTS, WEIGHTS, FROZEN), "fsdp": (OPTIMIZER, GRADIENTS, WEIGHTS, FROZEN),
}  # fmt: skip
GATHERING = ("fsdp", "zero3")


class Layout(NamedTuple):
    kind: str  # single, ddp, fsdp, zero1, zero2 or zero3
    devices: int  # of all nodes
    tensor: int = 1  # devices that share every layer
    precision: str = "32-true"

    @property
    def replicas(self) -> int:
        """Devices that see different rows; what is sharded is spread over them."""
        return self.devices // self.tensor

    @property
    def computing(self) -> str:
        """The precision that the modules compute in. Autocast would keep a low-precision copy of every weight, whole;
        FSDP's mixed-precision policy and DeepSpeed cast what they gather instead.
        """
        low = self.kind == "fsdp" or self.kind.startswith("zero")
        return self.precision.replace("-mixed", "-true") if low else self.precision

    @property
    def scale(self) -> dict[str, int]:
        """By category, bytes held over bytes traced in the precision of computing: float32 beside two bytes."""
        if self.kind.startswith("zero") and "16" in self.precision:
            return {OPTIMIZER: 2}
        if self.kind == "fsdp" and self.computing != self.precision:
            return {OPTIMIZER: 2, GRADIENTS: 2, WEIGHTS: 2}
        return {}

    def share(self, category: str, phase: str) -> float:
        """Part of the traced bytes of a category that a device holds."""
        if category == WORKING and phase == "optimizer":
            category = OPTIMIZER
        return self.scale.get(category, 1) / (self.replicas if category in SHARDED[self.kind] else 1)

    def extra(self, parameters: int, block: int, outside: int, phase: str) -> dict[str, float]:
        """Bytes that a device holds besides, because of the strategy.

        Args:
            parameters: that are trained.
            block, outside: parameters of the largest block, and of all that is in none.
        """
        wide, narrow = (size_of(name) for name in (self.precision, self.computing))
        held: dict[str, float] = {}
        if self.kind == "ddp":
            held["gradient buckets"] = float(parameters * wide)
        if self.kind.startswith("zero"):
            held["gradient buckets"] = 2.0 * BUCKET * narrow
            if "16" in self.precision:
                held["float32 weights"] = 4.0 * parameters / self.replicas
        if self.kind in GATHERING and phase != "optimizer":
            gradients = block + outside if phase == "backward" else 0
            held["gathered weights and gradients"] = float((2 * block + outside + gradients) * narrow)
        return held


def size_of(precision: str) -> int:
    """Bytes of a weight at rest."""
    return {"64-true": 8, "16-true": 2, "bf16-true": 2}.get(precision, 4)


def layout_of(strategy: Any, devices: int, precision: str) -> Layout:
    """Of the config's `strategy`: a name that Lightning knows, or a node.

    Raises:
        UserError: a strategy that is not planned for, or that does not fit the number of devices.
    """
    tensor = 1
    if isinstance(strategy, dict):
        name = str(strategy.get("_target_")).rpartition(".")[2]
        kind = CLASSES.get(name)
        if name == "DeepSpeedStrategy":
            kind = STAGES.get(strategy.get("stage", 2))
        if name == "ModelParallelStrategy":
            wanted = strategy.get("tensor_parallel_size", "auto"), strategy.get("data_parallel_size", "auto")
            tensor = 1 if wanted[0] == "auto" else int(wanted[0])
            if devices % tensor or wanted[1] not in ("auto", devices // tensor):
                raise UserError(
                    f"strategy.data_parallel_size={wanted[1]} times strategy.tensor_parallel_size={tensor} must be "
                    f"the {devices} devices"
                )
            kind = "fsdp"
    else:
        name = strategy
        kind = "ddp" if name == "auto" else NAMES.get(name.removesuffix("_find_unused_parameters_true"))
    if not kind:
        raise UserError(f"there is no plan for strategy {name}; there is for auto, {', '.join((*NAMES, *CLASSES))}")
    return Layout(kind if devices > tensor else "single", devices, tensor, precision)
