"""Every algorithm under every strategy beside the same training in one process: how far apart, and at what cost.

    make equivalence                                  # or: python benchmarks/equivalence.py [--write] [STRATEGY...]

Real processes on the CPU (gloo), float32, two and four of them, the global batch in one piece or in four accumulated
ones, by AdamW and by SGD. Prints a table, and ends with status 1 if a difference is beyond its bound: 1e-5 for torch's
own strategies, 1e-4 for DeepSpeed's. `--write` keeps the table as benchmarks/results/equivalence.md.
"""

import argparse
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "strategies"))

from launch import MATRIX, Difference, Matrix, bound, difference

ALGORITHMS = ("pretraining", "sft", "reward", "dpo", "ppo")
SPLITS = [(split, kind) for split in (1, 4) for kind in ("adamw", "sgd")]
WIDTHS = (12, 16, 2, 8, 8, 8, 8, 6)
RESULTS = Path(__file__).resolve().parent / "results" / "equivalence.md"


def words(splits: list[tuple[int, str]]) -> list[str]:
    return [f"{algorithm}/{split}/{kind}" for algorithm in ALGORITHMS for split, kind in splits]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("strategies", nargs="*", help="default all")
    parser.add_argument("--write", action="store_true", help=f"keep the table in {RESULTS.name}")
    arguments = parser.parse_args()
    chosen = [(name, world) for name, world in MATRIX if not arguments.strategies or name in arguments.strategies]
    rows, worst, beyond = [], 0.0, []
    with tempfile.TemporaryDirectory() as folder:
        matrix = Matrix(Path(folder))
        (one,) = matrix("single", 1, *words(SPLITS[:2]))
        for strategy, world in chosen:
            started = time.perf_counter()
            try:
                found = matrix(strategy, world, *words(SPLITS))[0]
            except AssertionError as error:
                beyond.append(f"{strategy} on {world} processes does not train: {error}")
                continue
            for algorithm in ALGORITHMS:
                far = {cell: difference(one[algorithm, 1, cell[1]], found[(algorithm, *cell)]) for cell in SPLITS}
                most = Difference(*(max(x) for x in zip(*far.values())))
                by_sgd = max(d.weights for (_, kind), d in far.items() if kind == "sgd")
                worst = max(worst, most.loss)
                if max(most.loss, most.weights) >= bound(strategy):
                    beyond.append(f"{algorithm} under {strategy} on {world} processes is beyond its bound: {most}")
                numbers = (f"{x:.1e}" for x in (*most, by_sgd))
                rows.append((algorithm, strategy, str(world), *numbers, f"{bound(strategy):.0e}"))
                print(" ".join(f"{x:<{w}}" for x, w in zip(rows[-1], WIDTHS)), flush=True)
            print(f"# {strategy} on {world} processes: {time.perf_counter() - started:.0f} s", flush=True)
        matrix.close()
    cells = len(rows) * len(SPLITS)
    if arguments.write:
        RESULTS.write_text(page(rows, cells, worst), "utf-8")
    print("\n".join(beyond), file=sys.stderr)
    print(f"FIGURE equivalence_cells {cells}")
    print(f"FIGURE equivalence_max_relative {worst:.3e}")
    raise SystemExit(bool(beyond))


def page(rows: list[tuple[str, ...]], cells: int, worst: float) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "deepspeed"))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""# Strategies: the same model

Largest differences from the same training in one process, over accumulation 1 and 4, AdamW and SGD, 6 steps each:
{cells} trainings, largest relative difference of a loss {worst:.1e}. Loss: the largest of |loss - loss'| over the steps
by the largest |loss|. Gradient: its norm. Weights: ||weights - weights'|| / ||weights||, the worst tensor at the end;
beside it that by SGD alone, which does not amplify rounding.

Made by `make equivalence`: {platform.machine()} CPU, gloo, float32, Python {platform.python_version()}, {packages}.

| Algorithm | Strategy | Processes | Loss | Gradient | Weights | Weights, SGD | Bound |
|---|---|---|---|---|---|---|---|
{table}
"""


if __name__ == "__main__":
    main()
