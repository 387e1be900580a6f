"""A plan for people, and as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from athanor.planning.machines import GIB

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from athanor.planning.plan import Knob, Plan

BAR = 28  # characters of the whole memory of a device
WHEN = {
    "forward": "the forward pass ends", "backward": "the backward pass begins", "optimizer": "the optimizer steps",
    "rollout": "responses are sampled and scored", "validation": "validation runs",
}  # fmt: skip


def as_json(plan: Plan) -> str:
    machine, layout, batch = plan.machine, plan.layout, plan.batch
    shown = {
        "experiment": plan.experiment,
        "fingerprint": plan.fingerprint,
        "precision": plan.precision,
        "device": {
            "name": machine.name, "memory_bytes": machine.memory, "peak_flops": machine.peak,
            "peak_is": machine.peak_is,
        },
        "strategy": {"kind": layout.kind, "devices": layout.devices, "tensor_parallel": layout.tensor,
                     "stages": layout.stages, "turns": layout.turns},
        "batch": {
            "global": batch.global_batch_size, "micro": batch.micro, "accumulation": batch.accumulation,
            "length": plan.shape.length, "kind": plan.shape.kind,
        },
        "networks": [
            {**network._asdict(), "total": sum(network.parameters.values())} for network in plan.networks
        ],
        "memory_bytes": plan.memory._asdict(),
        "fits": plan.fits,
        "knobs": [knob._asdict() for knob in plan.knobs],
        "time": plan.time._asdict(),
    }  # fmt: skip
    return json.dumps(shown, indent=2)


def render(plan: Plan) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    return Group(
        Text.from_markup(f"[bold]{plan.experiment}[/] [dim]{plan.fingerprint}[/]  {where(plan)}"),
        Text(spread(plan)),
        "",
        _networks(plan),
        "",
        _memory(plan),
        Text(layers(plan), style="dim"),
        "",
        Text(verdict(plan), style={True: "green", False: "bold red", None: "yellow"}[plan.fits]),
        *(Text.from_markup(f"  [bold]{line}[/]") for line in map(knob_line, plan.knobs)),
        *(Text(line) for line in time_lines(plan)),
    )


def where(plan: Plan) -> str:
    layout = plan.layout
    devices = plan.machine.name if layout.devices == 1 else f"{layout.devices} x {plan.machine.name}"
    shared = f", each layer over {layout.tensor}" if layout.tensor > 1 else ""
    if layout.stages > 1:
        shared = f" of {layout.stages} x {layout.turns} stages"
    return f"{devices}, {layout.kind}{shared}, {plan.precision}"


def spread(plan: Plan) -> str:
    batch, shape = plan.batch, plan.shape
    rows = {"pairs": "pairs"}.get(shape.kind, "rows")
    return (
        f"{batch.global_batch_size:,} {rows} of {shape.length:,} tokens a step: {batch.world_size:,} x micro-batch "
        f"{batch.micro:,} x {batch.accumulation:,} accumulated"
    )


def verdict(plan: Plan) -> str:
    total, room = plan.memory.total / GIB, plan.machine.memory
    if room is None:
        return f"{total:.2f} GiB a device; say --device or --memory to know whether it fits"
    if plan.fits:
        return f"fits: {total:.2f} of {room / GIB:.1f} GiB"
    ways = "; it would fit with" if plan.knobs else "; nothing that was tried makes it fit"
    return f"does not fit: {total:.2f} GiB where a device has {room / GIB:.1f}{ways}"


def knob_line(knob: Knob) -> str:
    note = f"  ({knob.note})" if knob.note else ""
    return f"{' '.join(knob.overrides)}  -> {knob.total / GIB:.2f} GiB{note}"


def layers(plan: Plan) -> str:
    sizes = list(plan.memory.layers.values())
    if not sizes:
        return ""
    most = f"{max(sizes) / 2**20:,.1f} MiB" + ("" if len(set(sizes)) == 1 else " at most")
    return f"most is held when {WHEN[plan.memory.phase]}; activations of a block: {most}, of {len(sizes)} blocks"


def time_lines(plan: Plan) -> list[str]:
    time = plan.time
    lines = [f"{count(time.tokens)} tokens in {plan.batch.max_steps:,} steps, {count(time.flops)} FLOPs"]
    if time.seconds is None:
        return [*lines, "time: say --device, or --rate as tokens a second of a device"]
    hours = f"{time.device_hours:,.1f} {'GPU' if plan.machine.gpu else 'CPU'}-hours"
    said = "at the measured rate"
    if time.mfu is not None and plan.machine.peak is not None:
        said = f"at {time.mfu:.0%} of {plan.machine.peak / 1e12:,.4g} TFLOP/s ({plan.machine.peak_is})"
    return [*lines, f"{span(time.seconds)}, {hours}, {count(time.tokens_per_second or 0)} tokens/s {said}"]


def _networks(plan: Plan) -> Table:
    from rich.table import Table

    table = _table("parameters", *(f"{n.name}{'' if n.trained else ' (frozen)'}" for n in plan.networks))
    for part in plan.networks[0].parameters:
        table.add_row(part, *(f"{n.parameters[part]:,}" for n in plan.networks))
    assert isinstance(table, Table)
    table.add_row("total", *(f"{sum(n.parameters.values()):,}" for n in plan.networks), style="bold")
    if any(n.active < sum(n.parameters.values()) for n in plan.networks):
        table.add_row("active", *(f"{n.active:,}" for n in plan.networks))
    table.add_row("FLOPs a token", *(count(n.flops_per_token if n.trained else n.flops_per_token / 3)
                                     for n in plan.networks))  # fmt: skip
    return table


def _memory(plan: Plan) -> Table:
    table = _table("memory of a device", "GiB")
    table.add_column("")
    whole = max(plan.memory.total, plan.machine.memory or 0)
    for name, size in sorted(plan.memory.parts.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{size / GIB:.2f}", f"[cyan]{'█' * round(BAR * size / whole)}[/]")
    table.add_row("total", f"{plan.memory.total / GIB:.2f}", style="bold")
    return table


def _table(first: str, *others: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def count(number: float) -> str:
    """1.38T, 345.6B, 12.0M, 900."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 1e3 * 1e12:
            return f"{number:.2e}"
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def span(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"
