"""How long a training stands still for its checkpoints: the demo's pretraining, and a model thirty times as large.

    python benchmarks/checkpoints.py        # after the demo, whose shards it reads

Real runs of `athanor train` that save every few steps. Printed for each size are medians of the time between two steps,
of the time that the training waited for a checkpoint, and of the time that the thread beside it took for the file.
"""

import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from athanor.runs.run import open_run

SIZES = {
    "demo, 1M": ["max_steps=120", "checkpoint.every_n_steps=10"],
    "30M": [
        "max_steps=24", "checkpoint.every_n_steps=3", "model.width=512", "model.layers=10", "model.heads=8",
        "optimizer=adamw", "~optimizer.matrix_lr",
    ],
}  # fmt: skip


def measure(words: list[str]) -> tuple[float, float, float, int]:
    """Median seconds of a step, of a wait, of a file; and the bytes of a checkpoint."""
    inputs = [f"inputs.{name}={open_run(f'{name}/demo').directory}" for name in ("shards", "tokenizer")]
    with tempfile.TemporaryDirectory() as runs:
        own = [f"paths.runs={runs}", "logger.every_n_steps=1", "schedule.warmup_steps=2", "cluster=cpu", *words]
        command = ["train", "experiment=pretrain/demo", *inputs, *own, "validate_every_n_steps=12", "checkpoint.best=1"]
        subprocess.run([sys.executable, "-m", "athanor", *command], check=True, stdout=subprocess.DEVNULL)
        (log,) = Path(runs).glob("*/*/*/log.txt")
        said = log.read_text()
        waits = [float(ms) for ms in re.findall(r"the training waited ([\d.]+) ms", said)]
        files = [float(ms) for ms in re.findall(r"was written in ([\d.]+) ms", said)]
        events = [json.loads(line) for line in log.with_name("metrics.jsonl").read_text().splitlines()]
        times = [event["time"] for event in events if "train/loss" in event]
        steps = [after - before for before, after in itertools.pairwise(times[2:])]
        (kept,) = log.parent.glob("checkpoints/*.ckpt")
        size = kept.stat().st_size
    return statistics.median(steps), statistics.median(waits[1:]) / 1e3, statistics.median(files) / 1e3, size


def main() -> None:
    shares = []
    print("| model | checkpoint | a step | waited | of a step | the file, beside it |\n|---|---|---|---|---|---|")
    for name, words in SIZES.items():
        step, waited, file, size = measure(words)
        shares.append(waited / step)
        print(
            f"| {name} | {size / 1e6:.0f} MB | {1e3 * step:.0f} ms | {1e3 * waited:.1f} ms | {waited / step:.1%} | "
            f"{1e3 * file:.0f} ms |"
        )
    print(f"FIGURE save_blocking_share {max(shares):.4f}")


if __name__ == "__main__":
    main()
