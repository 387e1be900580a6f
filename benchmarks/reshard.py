"""Every strategy's checkpoint taken up by every other: what is other bits, and how far off the next step is.

    make reshard                                  # or: python benchmarks/reshard.py [--write]

Real processes on the CPU (gloo), float32: DPO, which has a frozen network besides, stopped in the middle under each
strategy, and gone on with under each; from one file and from folders of shares. Ends with status 1 if a tensor is other
bits, the model says anything else, or the next step is beyond the bound of the equivalence (1e-5, DeepSpeed 1e-4).
`--write` keeps the table as benchmarks/results/reshard.md.
"""

import argparse
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "strategies"))

from launch import FORMS, Exchange, Matrix, bound, exchanges

RESULTS = Path(__file__).resolve().parent / "results" / "reshard.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"keep the table in {RESULTS.name}")
    arguments = parser.parse_args()
    table: dict[tuple[str, str], Exchange] = {}
    with tempfile.TemporaryDirectory() as folder:
        matrix = Matrix(Path(folder))
        for writer, reader, came in exchanges(matrix):
            table[writer, reader] = came
            print(f"{writer:18} -> {reader:18} {came}", flush=True)
        matrix.close()
    beyond = [
        f"{writer} -> {reader}: {came}" for (writer, reader), came in table.items()
        if came.changed or came.logits or max(came.loss, came.weights) >= bound(reader)
    ]  # fmt: skip
    if arguments.write:
        RESULTS.write_text(page(table), "utf-8")
    print("\n".join(beyond), file=sys.stderr)
    print(f"FIGURE reshard_cells {len(table)}")
    print(f"FIGURE reshard_changed_tensors {sum(came.changed for came in table.values())}")
    print(f"FIGURE reshard_max_logit_difference {max(came.logits for came in table.values()):.3e}")
    print(f"FIGURE reshard_max_difference {max(max(came.loss, came.weights) for came in table.values()):.3e}")
    raise SystemExit(bool(beyond))


def page(table: dict[tuple[str, str], Exchange]) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "deepspeed"))
    names = [f"{name}-{world}" for name, world in FORMS]
    writers = list(dict.fromkeys(writer for writer, _ in table))
    cells = {pair: f"{max(came.loss, came.weights):.1e}" for pair, came in table.items()}
    rows = "\n".join(f"| {writer} | {' | '.join(cells[writer, reader] for reader in names)} |" for writer in writers)
    changed, logits = sum(came.changed for came in table.values()), max(came.logits for came in table.values())
    return f"""# Checkpoints: every writer by every reader

DPO, stopped after three steps under each strategy (strategy-processes) and gone on with under each: {len(table)} cells.
`dpo` is one file, `shares` a folder into which each process has written its own (`checkpoint.sharded=true`).

- Saved again at once, weights and optimizer's states: {changed} tensors are other bits.
- The model that was taken up, gathered, beside an unsharded one with the weights that were written: the largest
  difference of a logit is {logits:g}.
- The table has the next step: the larger of the relative differences of its loss and of the weights after it (worst
  tensor) from one process that has taken up the same; bounds as in [equivalence](equivalence.md), 1e-5, DeepSpeed 1e-4.

Made by `make reshard`: {platform.machine()} CPU, gloo, float32, Python {platform.python_version()}, {packages}.

| written by \\ taken up by | {" | ".join(names)} |
|---|{"---|" * len(names)}
{rows}
"""


if __name__ == "__main__":
    main()
