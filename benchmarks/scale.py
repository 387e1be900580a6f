"""70 billion parameters on 512 GPUs, on paper: what each rank holds and sends, by a simulation of the strategy's own
code, beside what `athanor plan` says (docs/scale.md).

    python benchmarks/scale.py [--write] [--layers 80]

Nothing is allocated and nothing is sent: fake tensors, and a process group of which one rank is there. Ends with status
1 if a rank holds more than a device has. `--write` keeps the tables as benchmarks/results/scale.md.
"""

import argparse
import time
from pathlib import Path

from athanor import config
from athanor.planning import plan as planning
from athanor.planning.live import CATEGORIES
from athanor.planning.machines import GIB
from athanor.planning.simulation import Simulation, simulate

RESULTS = Path(__file__).resolve().parent / "results" / "scale.md"
CLUSTER = ("cluster=gpus", "cluster.nodes=64", "cluster.devices=8", "cluster.recompute=full")
CASES = {
    "fsdp2": ("strategy=fsdp2", "cluster.micro_batch_size=2"),
    "hsdp, 4 groups": ("strategy=hsdp", "strategy.replicas=4", "cluster.micro_batch_size=2"),
    "fsdp2, 4 rows": ("strategy=fsdp2", "cluster.micro_batch_size=4"),
    "fsdp2_tp, 8": ("strategy=fsdp2_tp", "strategy.tensor_parallel=8", "cluster.micro_batch_size=4"),
}  # fmt: skip
WITHIN, BETWEEN = 450e9, 50e9  # bytes a second of a GPU: NVLink 4 in one direction, and a 400 Gb/s adapter of its own


def row(name: str, found: Simulation, planned: planning.Plan) -> list[str]:
    phase, moment = found.peak
    total, told = moment.held + planned.machine.reserved, planned.memory.total
    within, between = found.per_step(True), found.per_step(False)
    assert planned.time.seconds is not None
    computing = planned.time.seconds / planned.batch.max_steps
    return [name, str(found.batch.micro), str(found.batch.accumulation), f"{total / GIB:.1f}", phase,
            f"{told / GIB:.1f}", f"{told / total:.2f}", f"{within / 1e9:,.0f}", f"{between / 1e9:,.0f}",
            f"{within / WITHIN:.1f}", f"{between / BETWEEN:.1f}", f"{computing:.1f}"]  # fmt: skip


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"keep the tables in {RESULTS.name}")
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--device", default="h100")
    parser.add_argument("--only", nargs="*", default=list(CASES))
    arguments = parser.parse_args()
    rows, parts, sent, over, errors = [], [], [], 0, []
    for name in arguments.only:
        started = time.perf_counter()
        experiment = config.load("ladder/70b", [*CLUSTER, *CASES[name], f"model.layers={arguments.layers}"])
        found = simulate(experiment)
        planned = planning.plan(experiment, planning.Wishes(device=arguments.device))
        rows.append(row(name, found, planned))
        room = planned.machine.memory or 0
        held = found.peak[1].held + planned.machine.reserved
        most = max(sum(weights.values()) for weights in found.weights)
        mine = sum(found.weights[0].values())
        over += sum(
            held + 4 * (sum(weights.values()) - mine) > room for weights in found.weights
        )  # weight, gradient, moments
        errors.append(planned.memory.total / held - 1)
        moment = found.peak[1].parts
        parts.append([name, *(f"{moment.get(kind, 0) / GIB:.2f}" for kind in CATEGORIES), f"{most / GIB:.3f}"])
        sent += [
            [name, x.phase, x.kind, str(x.ranks), "node" if x.nodes == 1 else f"{x.nodes} nodes", str(x.calls),
             f"{x.bytes / 1e9:.3g}", f"{x.leaving / 1e9:.3g}"]
            for x in found.sent if x.bytes > 1e6
        ]  # fmt: skip
        print(" ".join(rows[-1]), f"({time.perf_counter() - started:.0f} s)", flush=True)
    text = f"""# 70B parameters on 512 GPUs

`python benchmarks/scale.py`: ladder/70b, {arguments.layers} layers, 64 nodes of 8 {arguments.device}, activations made
again. What a rank holds (GiB); what goes in a step over its link within the node, and over its eighth of the links
to other nodes (GB); the seconds are those of 450 and 50 GB/s, and of computing at 40% of the peak.

{
        table(
            [
                "strategy",
                "rows",
                "accumulated",
                "held",
                "in",
                "planned",
                "ratio",
                "within",
                "between",
                "s within",
                "s between",
                "s computing",
            ],
            rows,
        )
    }
At that moment, by part; beside it the parameters of the fullest rank:

{table(["strategy", *CATEGORIES, "parameters"], parts)}
Sent for one micro-batch by a rank, and out of a node by its eight (GB):

{table(["strategy", "phase", "collective", "ranks", "over", "calls", "sent", "leaves a node"], sent)}"""
    print(text)
    if arguments.write:
        RESULTS.write_text(text, "utf-8")
    print(f"FIGURE scale_ranks_over_limit {over}")
    print(f"FIGURE scale_plan_error_max {max(errors, key=abs):.4f}")
    raise SystemExit(bool(over))


if __name__ == "__main__":
    main()
