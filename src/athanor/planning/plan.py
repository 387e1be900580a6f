"""What an experiment will need on a cluster: parameters, FLOPs, memory of a device and time, before anything is built.

The sums are explained in docs/planning.md, and held against measurements by benchmarks/plan.py.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from athanor import config as configs
from athanor.config import Experiment
from athanor.data.plan import BatchPlan
from athanor.errors import UserError
from athanor.float8 import beyond
from athanor.planning import machines, models, step
from athanor.planning.batches import Shape, shape_of
from athanor.planning.errors import NoPlanError
from athanor.planning.layout import SHARDED, Layout, layout_of
from athanor.planning.machines import Machine
from athanor.planning.step import Network

MFU = {True: 0.4, False: 0.3}  # of a GPU, of a CPU
NODE, MOST = 8, 4096  # devices of a node as most clusters have them; no more devices than so many are thought of
FSDP = ("strategy=fsdp2",)


class Wishes(NamedTuple):
    """What the command line says besides the experiment."""

    mfu: float | None = None
    device: str | None = None
    memory: float | None = None  # GiB of a device
    length: int | None = None  # tokens of a row
    rate: float | None = None  # measured tokens per second of a device


class Memory(NamedTuple):
    """Of one device, at the moment when most is held; bytes."""

    total: float
    phase: str  # when that is
    parts: dict[str, float]
    layers: dict[str, float]  # activations of each block


class Knob(NamedTuple):
    """Overrides that make it fit."""

    overrides: list[str]
    total: float
    note: str = ""


class Time(NamedTuple):
    tokens: float  # of the whole training
    flops: float
    seconds: float | None
    device_hours: float | None
    mfu: float | None
    tokens_per_second: float | None  # of all devices


class Plan(NamedTuple):
    experiment: str
    fingerprint: str
    precision: str
    machine: Machine
    layout: Layout
    batch: BatchPlan
    shape: Shape
    networks: list[Network]
    memory: Memory
    time: Time
    knobs: list[Knob]

    @property
    def fits(self) -> bool | None:
        return None if self.machine.memory is None else self.memory.total <= self.machine.memory


def plan(experiment: Experiment, wishes: Wishes = Wishes()) -> Plan:  # noqa: B008
    """
    Raises:
        UserError: the experiment cannot run, is no training, or is one that cannot be planned for.
    """
    own = [text for text in experiment.problems if not text.startswith("inputs.")]
    if problems := [*own, *configs.check(experiment.config, experiment.variables)]:
        raise UserError("\n  - ".join((f"{experiment.name} cannot run:", *problems)))
    for name, value in (("mfu", wishes.mfu), ("memory", wishes.memory), ("rate", wishes.rate)):
        if value is not None and not value > 0:
            raise UserError(f"--{name} {value} must be positive")
    if wishes.mfu is not None and wishes.mfu > 1:
        raise UserError(f"--mfu {wishes.mfu} is a share of the peak: at most 1")
    config = models.with_models(experiment)
    config |= {"precision": beyond(config["precision"])}  # activations are kept in bfloat16
    cluster, precision = config["cluster"], config["precision"]
    per_node = devices_of(cluster)
    found = machines.machine(cluster, precision, wishes.device, wishes.memory, per_node)
    layout = layout_of(config["strategy"], per_node * cluster["nodes"])
    batch = batch_plan(config, layout)
    shape = shape_of(config, context_of(config["model"]), wishes.length)
    if not found.gpu and wishes.rate is None:
        peak = machines.measured_peak(precision, cluster["threads"])
        found = found._replace(peak=peak, peak_is="measured here, just now")
    networks = step.networks(config, shape.length)
    needed = memory(config, shape, batch, layout, found)
    time = duration(config, shape, batch, layout, found, networks, wishes)
    knobs: list[Knob] = []
    if found.memory is not None and needed.total > found.memory:
        knobs = list(fitting(config, shape, layout, found, needed))
    return Plan(experiment.name, experiment.fingerprint, precision, found, layout, batch, shape, networks, needed,
                time, knobs)  # fmt: skip


def devices_of(cluster: dict[str, Any]) -> int:
    """Of a node.

    Raises:
        UserError: they are not said, and not to be counted here.
    """
    devices = cluster["devices"]
    if isinstance(devices, list):
        return len(devices)
    if str(devices).removeprefix("-").isdigit() and int(devices) > 0:
        return int(devices)
    if cluster["accelerator"] == "cpu":
        return 1
    if not torch.cuda.device_count():
        raise NoPlanError(f"cluster.devices={devices} are those of the machine that trains; say how many to plan here")
    return torch.cuda.device_count()


def batch_plan(config: dict[str, Any], layout: Layout) -> BatchPlan:
    batch = BatchPlan(
        seed=config["seed"], max_steps=config["max_steps"], global_batch_size=config["global_batch_size"],
        world_size=layout.replicas, micro_batch_size=config["cluster"]["micro_batch_size"],
    )  # fmt: skip
    batch.check()
    return batch


def context_of(model: dict[str, Any]) -> int:
    return int((model.get("trunk") or model)["context"])


# --- memory -----------------------------------------------------------------------------------------------------------


def memory(config: dict[str, Any], shape: Shape, batch: BatchPlan, layout: Layout, machine: Machine) -> Memory:
    """Of one device, by part, in the phase that holds most."""
    own = models.staged(models.one_of(config, layout.tensor), layout.stages)
    traced = step.trace(own, shape, batch, layout, machine.gpu)
    dearest: Memory | None = None
    for phase, moment in traced.peaks.items():
        parts = {name: size * layout.share(name, phase) for name, size in moment.parts.items()}
        parts |= layout.extra(traced.sizes, phase)
        parts["framework"] = machine.reserved
        total = sum(parts.values())
        if dearest is None or total > dearest.total:
            layers = {name: float(size) for name, size in traced.layers.items()}
            dearest = Memory(total, phase, {name: size for name, size in parts.items() if size}, layers)
    assert dearest is not None
    return dearest


class Try(NamedTuple):
    """What else might be set."""

    layout: Layout
    overrides: tuple[str, ...] = ()
    precision: str | None = None
    recompute: str | None = None
    note: str = ""


def fitting(
    config: dict[str, Any], shape: Shape, layout: Layout, machine: Machine, needed: Memory
) -> Iterator[Knob]:  # fmt: skip
    """Ways to fit, each with the largest micro-batch that does: smaller micro-batches alone, else activations made
    again, sharding, or more devices, each with what came before; and weights of less precision.
    """
    if knob := tried(config, shape, Try(layout), machine):
        yield knob
        return
    again = config["cluster"].get("recompute", "none")
    choices = [again] if again == "full" else [again, "full"]
    layouts: list[tuple[Layout, tuple[str, ...]]] = [(layout, ())]
    if layout.kind != "fsdp" and layout.devices > 1:
        layouts.append((sharded(layout), FSDP))
    layouts += wider(layout, config["cluster"]["nodes"])
    held = sum(needed.parts.get(name, 0) * layout.shards ** (name in SHARDED[layout.kind]) for name in SHARDED["fsdp"])
    for other, overrides in layouts:
        if other.kind == "fsdp" and held / other.shards > (machine.memory or 0):
            continue
        ways = (Try(other, (*overrides, *recomputing(again, now)), recompute=now) for now in choices)
        if found := [knob for way in ways if (knob := tried(config, shape, way, machine))]:
            yield from found
            break
    low = Try(layout, ("precision=bf16-true",), "bf16-true", note="another science: weights of 8 significant bits")
    if config["precision"] != "bf16-true" and (knob := tried(config, shape, low, machine)):
        yield knob


def recomputing(before: str, now: str) -> tuple[str, ...]:
    return () if now == before else (f"cluster.recompute={now}",)


def sharded(layout: Layout) -> Layout:
    return Layout("fsdp", layout.devices, layout.tensor)


def wider(layout: Layout, nodes: int) -> list[tuple[Layout, tuple[str, ...]]]:
    """Fully sharded over more and more devices, whole nodes of them from 8 on."""
    per_node, found = layout.devices // nodes, []
    while nodes * per_node < MOST:
        per_node, nodes = (2 * per_node, nodes) if per_node < NODE else (per_node, 2 * nodes)
        overrides = () if layout.kind == "fsdp" else FSDP
        more = (f"cluster.devices={per_node}", *([f"cluster.nodes={nodes}"] if nodes > 1 else []))
        found.append((Layout("fsdp", nodes * per_node, layout.tensor), (*overrides, *more)))
    return found


def tried(config: dict[str, Any], shape: Shape, way: Try, machine: Machine) -> Knob | None:
    """The way with the largest micro-batch that fits, one row or a power of two or all; None if none does."""
    room, given = machine.memory, config["cluster"]["micro_batch_size"]
    cluster = config["cluster"] | ({"recompute": way.recompute} if way.recompute else {})
    changed = config | {"precision": way.precision or config["precision"], "cluster": cluster}
    assert room is not None
    try:
        rows = batch_plan(changed | {"cluster": cluster | {"micro_batch_size": None}}, way.layout).per_rank
    except UserError:
        return None  # the global batch does not divide

    def needed(micro: int) -> float:
        one = changed | {"cluster": cluster | {"micro_batch_size": micro}}
        return memory(one, shape, batch_plan(one, way.layout), way.layout, machine).total

    best, total = 1, needed(1)
    if total > room:
        return None
    most = min(given or rows, rows)
    sizes = [n for n in range(2, most + 1) if rows % n == 0 and (n == most or not n & (n - 1))]
    if sizes:  # memory is all but linear in the rows
        slope = (needed(sizes[0]) - total) / (sizes[0] - 1)
        for size in reversed([n for n in sizes if total + (n - 1) * slope <= 1.02 * room]):
            if (found := needed(size)) <= room:
                best, total = size, found
                break
    said = [] if best == (given or rows) else [f"cluster.micro_batch_size={best}"]
    return Knob([*way.overrides, *said], total, way.note)


# --- time -------------------------------------------------------------------------------------------------------------


def duration(
    config: dict[str, Any], shape: Shape, batch: BatchPlan, layout: Layout, machine: Machine, networks: list[Network],
    wishes: Wishes,
) -> Time:  # fmt: skip
    """From FLOPs and a share of the device's peak, or from a measured rate."""
    tokens, flops = (x * batch.max_steps for x in work(config, shape, batch, networks))
    mfu, peak = wishes.mfu or MFU[machine.gpu], machine.peak
    if wishes.rate:
        seconds = tokens / (wishes.rate * layout.devices)
        return Time(tokens, flops, seconds, seconds * layout.devices / 3600, None, wishes.rate * layout.devices)
    if peak is None:
        return Time(tokens, flops, None, None, mfu, None)
    seconds = flops / (mfu * peak * layout.devices) * (1 + layout.idle(batch.accumulation))
    return Time(tokens, flops, seconds, seconds * layout.devices / 3600, mfu, tokens / seconds)


def work(config: dict[str, Any], shape: Shape, batch: BatchPlan, networks: list[Network]) -> tuple[float, float]:
    """Tokens and FLOPs of an optimizer step, padding included; a forward pass is a third of a training pass."""
    rows = batch.global_batch_size * (2 if shape.kind == "pairs" else 1)
    tokens = float(rows * shape.length)
    flops = sum(tokens * net.flops_per_token * (1 if net.trained else 1 / 3) for net in networks)
    if shape.kind != "prompts":
        return tokens, flops
    trained = {net.name: net.flops_per_token for net in networks if net.trained}
    every = {net.name: net.flops_per_token for net in networks}
    share = batch.global_batch_size / (shape.rollout * config["data"].get("epochs_per_rollout", 1))
    collected = shape.rollout * shape.length * (sum(every.values()) + every["model"]) / 3
    return tokens, tokens * sum(trained.values()) + share * collected
