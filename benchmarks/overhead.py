"""What each strategy costs beside a bare loop of the same model in plain torch; and what a second process brings.

    make overhead                                 # or: python benchmarks/overhead.py [--write] [--rounds 5]

One process on one thread each, on the CPU, float32, AdamW, clipped: the bare loop, and the trainer under every strategy
that one process can have, in turn, several rounds of it, each in a forked process of its own. Compared are CPU seconds
of a step, which other programs on the machine disturb little, and wall seconds. Then two processes under ddp, on half
of the batch each, beside two bare loops on halves that know nothing of each other, which is all that the cores give.
`--write` keeps the page as benchmarks/results/overhead.md.
"""

import argparse
import logging
import multiprocessing
import os
import platform
import socket
import statistics
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "strategies"))

import deepspeed  # noqa: F401  # so that no forked process imports it
import numpy as np
import torch
import torch.distributed.fsdp
from lightning import Callback
from matrix import strategy
from torch import nn

from athanor.algorithms.pretraining import Pretraining
from athanor.data.pretraining import PackedRows
from small import Given, decoder, fit, optimizer, steady

RESULTS = Path(__file__).resolve().parent / "results" / "overhead.md"
ALONE = ("single", "ddp", "fsdp", "fsdp2", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3", "zero3_offload")
VOCABULARY, LENGTH, BATCH = 4096, 256, 4
STEPS, WARM = 12, 3


class Tokens:
    """A corpus in memory, of documents of some hundred tokens."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.offsets = np.concatenate(([0], np.cumsum(rng.integers(100, 600, 80))))
        self.tokens = rng.integers(1, VOCABULARY, self.offsets[-1]).astype(np.uint16)


class Pace(NamedTuple):
    """Median seconds of a step."""

    wall: float
    cpu: float


class Clock(Callback):
    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.times.append((time.perf_counter(), time.process_time()))

    @property
    def pace(self) -> Pace:
        apart = np.diff(np.array(self.times[WARM:]), axis=0)
        return Pace(*map(float, np.median(apart, axis=0)))


def model() -> Any:
    return decoder(VOCABULARY, width=256, layers=4, heads=4, context=LENGTH)


def bare(batch: int) -> Pace:
    """The loop that one would write."""
    network, samples, clock = model(), PackedRows(Tokens(), LENGTH), Clock()
    adamw = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    for step in range(STEPS):
        indices = np.arange(step * batch, (step + 1) * batch) % len(samples)
        given = samples.batch(indices, indices, samples.weights(indices))
        states = network.hidden_states(
            given.tokens_BT, documents_BT=given.documents_BT, positions_BT=given.positions_BT
        )
        loss, _ = network.cross_entropy(states, given.labels_BT)
        (loss / given.normalizer).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        clock.on_train_batch_end()
    return clock.pace


def trained(name: str, world: int) -> Pace:
    clock = Clock()
    algorithm = Pretraining(model(), optimizer(1e-3, fused=True), steady())
    fit(
        algorithm, Given(PackedRows(Tokens(), LENGTH)), steps=STEPS, batch=BATCH, world=world, strategy=strategy(name),
        validate_every=10 * STEPS, callbacks=[clock],
    )  # fmt: skip
    return clock.pace


def process(answer: Any, environment: dict[str, str], name: str, world: int) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    logging.disable()
    warnings.simplefilter("ignore")
    loops = {"bare": BATCH // world, "half": BATCH // 2}
    answer.put(bare(loops[name]) if name in loops else trained(name, world))


def measured(name: str, world: int = 1) -> Pace:
    """Of the slowest of the processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    ranks = [
        context.Process(target=process, args=(answer, {**shared, "LOCAL_RANK": str(rank)}, name, world))
        for rank in range(world)
    ]
    for rank in ranks:
        rank.start()
    found = [answer.get(timeout=300) for _ in ranks]
    for rank in ranks:
        rank.join()
    return Pace(max(pace.wall for pace in found), max(pace.cpu for pace in found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"keep the page in {RESULTS.name}")
    arguments = parser.parse_args()
    kinds = [("bare", 1), *((name, 1) for name in ALONE), ("ddp", 2), ("bare", 2), ("half", 1)]
    rounds: list[dict[tuple[str, int], Pace]] = []
    for number in range(arguments.rounds):
        rounds.append({kind: measured(*kind) for kind in (kinds if number % 2 == 0 else reversed(kinds))})
        told = (f"{name}-{world} {pace.cpu:.3f}/{pace.wall:.3f}" for (name, world), pace in rounds[-1].items())
        print(f"round {number + 1}, CPU/wall seconds a step:", *told, flush=True)

    def ratios(kind: tuple[str, int], other: tuple[str, int], what: str) -> list[float]:
        return sorted(getattr(one[kind], what) / getattr(one[other], what) for one in rounds)

    lines, plain = [], ("bare", 1)
    for name in ALONE:
        cpu, wall = (ratios((name, 1), plain, what) for what in ("cpu", "wall"))
        seconds = statistics.median(one[name, 1].cpu for one in rounds)
        middle = statistics.median(cpu), statistics.median(wall)
        lines.append(
            f"| {name} | {1e3 * seconds:.0f} ms | {middle[0]:.2f} | {cpu[0]:.2f} to {cpu[-1]:.2f} | {middle[1]:.2f} |"
        )
        print(f"FIGURE overhead_{name} {middle[0]:.3f}")
    gain, most, halved, disturbed = (
        statistics.median(ratios(kind, other, "wall"))
        for kind, other in (
            (("single", 1), ("ddp", 2)), (plain, ("bare", 2)), (("half", 1), plain), (("bare", 2), ("half", 1)),
        )
    )  # fmt: skip
    print(f"FIGURE ddp_two_processes_speedup {gain:.3f}\nFIGURE ddp_two_processes_bound {most:.3f}")
    if arguments.write:
        packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "deepspeed"))
        values = {
            "machine": f"{platform.machine()} CPU, Python {platform.python_version()}, {packages}",
            "model": f"{sum(p.numel() for p in model().parameters()) / 1e6:.1f} M parameters",
            "rows": f"{BATCH} rows of {LENGTH} tokens", "rounds": str(len(rounds)), "steps": str(STEPS - WARM - 1),
            "bare": f"{1e3 * statistics.median(one[plain].cpu for one in rounds):.0f} ms", "table": "\n".join(lines),
            "gain": f"{gain:.2f}", "most": f"{most:.2f}", "share": f"{gain / most:.0%}", "halved": f"{halved:.2f}",
            "disturbed": f"{disturbed:.2f}", "cores": str(os.cpu_count()),
        }  # fmt: skip
        RESULTS.write_text(PAGE.format_map(values), "utf-8")


PAGE = """# What a strategy costs

Made by `make overhead`: {machine}. One process on one thread, float32; a
decoder of {model}, {rows} a step, AdamW, clipped. Beside the step of a bare loop of the same
model in plain torch ({bare} of CPU): {rounds} rounds in turn, of each the median of {steps} steps, in the table the
median of the rounds. 1.05 is 5% longer. What the trainer does besides (metrics, looking for signals and for bad losses)
is in it.

| strategy, one process | CPU of a step | ratio to the bare loop, CPU | of the rounds | wall |
|---|---|---|---|---|
{table}

## Two processes

`ddp` on two processes, half of the batch each, takes a step {gain} times as fast (wall) as `single` does. What bounds
it: two bare loops on half of the batch each, which exchange nothing, are {most} times as fast as one on all of it;
`ddp` has {share} of that. Half of the batch alone on the machine takes {halved} of the time (each process has the whole
update to do), and twice at once each takes {disturbed} times as long as alone: so much the {cores} logical processors,
and whatever else ran on them, leave each other.
"""


if __name__ == "__main__":
    main()
