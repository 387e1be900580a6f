"""Every algorithm under every strategy beside the same training in one process: how far apart, and at what cost.

    make equivalence                                  # or: python benchmarks/equivalence.py [--write] [STRATEGY...]

Real processes on the CPU (gloo), float32, two and four of them, the global batch in one piece or in four accumulated
ones, by AdamW and by SGD. Prints a table, with the sentence by which a strategy refuses what it does not train, and
ends with status 1 if a difference is beyond its bound: 1e-5 for torch's own strategies, 1e-4 for DeepSpeed's. `--write`
keeps the table as benchmarks/results/equivalence.md.
"""

import argparse
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "strategies"))

from launch import DIVIDED, MATRIX, Difference, Matrix, bound, difference

ALGORITHMS = ("pretraining", "sft", "reward", "dpo", "ppo")
SPLITS = [(split, kind) for split in (1, 4) for kind in ("adamw", "sgd")]
WIDTHS = (12, 32, 2, 8, 8, 8, 8, 6)
RESULTS = Path(__file__).resolve().parent / "results" / "equivalence.md"


def words(splits: list[tuple[int, str]]) -> list[str]:
    return [f"{algorithm}/{split}/{kind}" for algorithm in ALGORITHMS for split, kind in splits]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("strategies", nargs="*", help="default all")
    parser.add_argument("--write", action="store_true", help=f"keep the table in {RESULTS.name}")
    arguments = parser.parse_args()
    chosen = [x for x in MATRIX + DIVIDED if not arguments.strategies or x[0].split(".")[0] in arguments.strategies]
    rows: list[tuple[str, ...]] = []
    refused: dict[str, list[str]] = {}  # where, by sentence
    worst, cells, beyond, begun = 0.0, 0, [], time.perf_counter()
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
                own = {cell: found[(algorithm, *cell)] for cell in SPLITS}
                for sentence in {result["refused"] for result in own.values() if "refused" in result}:
                    splits = {split for (split, _), result in own.items() if result.get("refused") == sentence}
                    where = f"{algorithm} under {strategy} on {world}" + " in one piece" * (splits == {1})
                    refused.setdefault(sentence, []).append(where)
                own = {cell: result for cell, result in own.items() if "refused" not in result}
                cells += len(own)
                row: tuple[str, ...] = (algorithm, strategy, str(world), "refused", "", "", "", "")
                if own:
                    far = {cell: difference(one[algorithm, 1, cell[1]], result) for cell, result in own.items()}
                    most = Difference(*(max(x) for x in zip(*far.values())))
                    by_sgd = max(d.weights for (_, kind), d in far.items() if kind == "sgd")
                    worst = max(worst, most.loss)
                    if max(most.loss, most.weights) >= bound(strategy):
                        beyond.append(f"{algorithm} under {strategy} on {world} processes is beyond its bound: {most}")
                    row = (*row[:3], *(f"{x:.1e}" for x in (*most, by_sgd)), f"{bound(strategy):.0e}")
                rows.append(row)
                print(" ".join(f"{x:<{w}}" for x, w in zip(row, WIDTHS)), flush=True)
            print(f"# {strategy} on {world} processes: {time.perf_counter() - started:.0f} s", flush=True)
        matrix.close()
    for sentence, places in refused.items():
        print(f"# refused: {'; '.join(places)}: {sentence}")
    if arguments.write:
        RESULTS.write_text(page(rows, refused, cells, worst, (time.perf_counter() - begun) / 60), "utf-8")
    print("\n".join(beyond), file=sys.stderr)
    print(f"FIGURE equivalence_cells {cells}")
    print(f"FIGURE equivalence_max_relative {worst:.3e}")
    raise SystemExit(bool(beyond))


def page(rows: list[tuple[str, ...]], refused: dict[str, list[str]], cells: int, worst: float, minutes: float) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "deepspeed"))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    sentences = "\n".join(f"- {sentence}\n  ({'; '.join(places)})" for sentence, places in refused.items())
    return f"""# Strategies: the same model

Largest differences from the same training in one process, over accumulation 1 and 4, AdamW and SGD, 6 steps each:
{cells} trainings, largest relative difference of a loss {worst:.1e}. Loss: the largest of |loss - loss'| over the steps
by the largest |loss|. Gradient: its norm. Weights: ||weights - weights'|| / ||weights||, the worst tensor at the end;
beside it that by SGD alone, which does not amplify rounding.

Made by `make equivalence` in {minutes:.0f} minutes: {platform.machine()} CPU, gloo, float32, Python
{platform.python_version()}, {packages}.

| Algorithm | Strategy | Processes | Loss | Gradient | Weights | Weights, SGD | Bound |
|---|---|---|---|---|---|---|---|
{table}

What a strategy refuses, and where (a row above is over the rest):

{sentences}
"""


if __name__ == "__main__":
    main()
