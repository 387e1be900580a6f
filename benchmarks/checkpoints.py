"""How long a training stands still for its checkpoints: the demo's pretraining, and a model thirty times as large.

    python benchmarks/checkpoints.py [--sizes demo]       # after the demo, whose shards it reads

Real runs of `athanor train` that save every few steps: one process, which writes a file; two under fsdp2 that gather
it; and two that write each its share. Printed are medians of the time between two steps, of the time that rank 0 waited
for a checkpoint, of how much longer a step took that began with one (which is what all ranks waited, and what the
thread that writes took from the training), and of the time that this thread took.
"""

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from athanor.runs.run import open_run

SIZES = {
    "demo": ["max_steps=120", "checkpoint.every_n_steps=10"],
    "30M": [
        "max_steps=24", "checkpoint.every_n_steps=3", "model.width=512", "model.layers=10", "model.heads=8",
        "optimizer=adamw", "~optimizer.matrix_lr",
    ],
}  # fmt: skip
TWO = ["strategy=fsdp2", "cluster.devices=2"]
KINDS = {
    "one process, a file": [],
    "two, gathered": [*TWO, "checkpoint.sharded=false"],
    "two, shares": [*TWO, "checkpoint.sharded=true"],
}
VALIDATES = 12


class Saved(NamedTuple):
    """Medians, in seconds; bytes of a checkpoint."""

    step: float
    waited: float
    longer: float
    written: float
    bytes: int


def measure(words: list[str]) -> Saved:
    inputs = [f"inputs.{name}={open_run(f'{name}/demo').directory}" for name in ("shards", "tokenizer")]
    with tempfile.TemporaryDirectory() as runs:
        own = [f"paths.runs={runs}", "logger.every_n_steps=1", "schedule.warmup_steps=2", "cluster=cpu", *words]
        own += [f"validate_every_n_steps={VALIDATES}", "checkpoint.best=1"]
        command = ["train", "experiment=pretrain/demo", *inputs, *own]
        subprocess.run([sys.executable, "-m", "athanor", *command], check=True, stdout=subprocess.DEVNULL)
        (log,) = Path(runs).glob("*/*/*/log.txt")
        said = log.read_text()
        waits = {int(n): float(ms) / 1e3 for n, ms in re.findall(r"step (\d+): the training waited ([\d.]+) ms", said)}
        files = [float(ms) / 1e3 for ms in re.findall(r"was written in ([\d.]+) ms", said)]
        events = [json.loads(line) for line in log.with_name("metrics.jsonl").read_text().splitlines()]
        times = {event["step"]: event["time"] for event in events if "train/loss" in event}
        apart = {step: times[step + 1] - times[step] for step in sorted(times)[2:-1] if step % VALIDATES}
        plain = statistics.median(seconds for step, seconds in apart.items() if step not in waits)
        saving = statistics.median(seconds for step, seconds in apart.items() if step in waits)
        (kept,) = log.parent.glob("checkpoints/*.ckpt")
        size = sum(path.stat().st_size for path in (kept.iterdir() if kept.is_dir() else [kept]))
    waited = statistics.median(itertools.islice(waits.values(), 1, None))
    return Saved(plain, waited, saving - plain, statistics.median(files), size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    arguments = parser.parse_args()
    found: dict[tuple[str, str], Saved] = {}
    print("| model | saved by | checkpoint | a step | rank 0 waited | of a step | the step is longer by | written in |")
    print("|---|---|---|---|---|---|---|---|")
    for size, kind in itertools.product(arguments.sizes, KINDS):
        found[size, kind] = saved = measure([*SIZES[size], *KINDS[kind]])
        print(
            f"| {size} | {kind} | {saved.bytes / 1e6:.0f} MB | {1e3 * saved.step:.0f} ms | {1e3 * saved.waited:.1f} ms "
            f"| {saved.waited / saved.step:.1%} | {1e3 * saved.longer:.0f} ms | {1e3 * saved.written:.0f} ms |",
            flush=True,
        )
    for name, kind in zip(("", "_gathered", "_sharded"), KINDS):
        share = max(found[size, kind].waited / found[size, kind].step for size in arguments.sizes)
        print(f"FIGURE save_blocking_share{name} {share:.4f}")


if __name__ == "__main__":
    main()
