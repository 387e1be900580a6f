"""Does the learning rate found at a small width serve a large one? Standard parametrisation beside muP.

    pip install -e '.[charts]'
    python benchmarks/mup.py [--shards DIR] [--widths 64 128 256 512] [--steps 80] [--seeds 1] [--chart FILE]

Trains a decoder of each width at rates an octave apart (AdamW, constant after warm-up, no weight decay, float32), with
GPT-2's initialisation and with muP from the least width, on token shards (default those of shards/demo). At the least
width the two are the same model, trained once. Heads keep their 32 channels. The optimum of a width is the vertex of
the parabola, in log2 of the rate, through the best rate and its neighbours, by the mean over seeds of the held-out loss
after the last step; its drift is how far apart, in octaves, the optima of the widths lie.

What has been trained is kept in a file (--cells; JSON lines) and not trained again.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from athanor import config
from athanor.corpus.shards import Shards
from athanor.data.order import order
from athanor.data.pretraining import PackedRows
from athanor.functional import cross_entropy_sum
from athanor.models.initialisation import MuP, ScaledNormal
from athanor.models.transformer import Transformer

LENGTH, ROWS, HELD_OUT, WARMUP = 128, 8, 64, 10
CHANNELS, LAYERS = 32, 2


def model_of(parametrisation: str, width: int, base: int, vocabulary_size: int) -> Transformer:
    start = MuP(base_width=base) if parametrisation == "muP" else ScaledNormal()
    return Transformer(
        vocabulary_size, width, LAYERS, width // CHANNELS, LENGTH, hidden=3 * width, initialisation=start
    )


def optimizer_of(model: Transformer, rate: float) -> torch.optim.Optimizer:
    factors = model.learning_rate_factors
    groups = [{"params": [p], "lr": rate * factors.get(name, 1.0)} for name, p in model.named_parameters()]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)


def loss_of(model: Transformer, rows: PackedRows, indices: np.ndarray) -> torch.Tensor:
    batch = rows.batch(indices, indices, rows.weights(indices))
    logits_BTV = model(batch.tokens_BT, documents_BT=batch.documents_BT, positions_BT=batch.positions_BT)
    return cross_entropy_sum(logits_BTV, batch.labels_BT) / batch.normalizer


def train(
    parametrisation: str, base: int, width: int, exponent: float, seed: int, steps: int, rows: PackedRows,
    held_out: PackedRows,
) -> float:  # fmt: skip
    """Held-out loss after the last step, nats a token; that of a uniform guess where training diverged."""
    torch.manual_seed(seed)
    vocabulary_size = rows.shards.vocabulary_size
    model = model_of(parametrisation, width, base, vocabulary_size)
    optimizer = optimizer_of(model, 2.0**exponent)
    rates = [group["lr"] for group in optimizer.param_groups]
    worst = math.log(vocabulary_size)
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * min(1.0, (step + 1) / WARMUP)
        loss = loss_of(model, rows, order(seed, len(rows), step * ROWS, (step + 1) * ROWS))
        if not loss < 2 * worst:
            return worst
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        found = float(loss_of(model, held_out, np.arange(len(held_out))))
    return found if found < worst else worst


def vertex(losses: dict[float, float]) -> float:
    """log2 of the rate where the parabola through the least loss and its neighbours is least."""
    best = min(losses, key=losses.__getitem__)
    a, b, c = (losses[best + d] for d in (-1, 0, 1))
    return best + 0.5 * (a - c) / (a - 2 * b + c)


def search(loss_at: Callable[[float], float], start: float, beside: int) -> dict[float, float]:
    """Losses by log2 of the rate, octave by octave from `start`, until the best has `beside` others on each side."""
    found = {start: loss_at(start)}
    while True:
        best = min(found, key=found.__getitem__)
        missing = [best + d for d in range(-beside, beside + 1) if best + d not in found]
        if not missing:
            return dict(sorted(found.items()))
        nearest = min(missing, key=lambda exponent: abs(exponent - best))
        found[nearest] = loss_at(nearest)


def draw(table: dict[str, dict[int, dict[float, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "athanor"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.2), sharex=True, sharey=True, layout="constrained")
    for axis, (title, curves) in zip(axes, table.items()):
        for place, (width, losses) in enumerate(curves.items()):
            colour = pyplot.get_cmap("viridis")(0.85 * place / max(1, len(curves) - 1))
            axis.plot(*zip(*losses.items()), marker="o", markersize=3, color=colour, label=f"width {width}")
            best = vertex(losses)
            axis.axvline(best, color=colour, alpha=0.5, linewidth=1, linestyle="--")
        axis.set(title=title, xlabel="log2 of the learning rate")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("held-out loss, nats a token")
    axes[1].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", help="directory of a shards run")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--start", type=float, default=-6, help="log2 of the first rate")
    parser.add_argument("--beside", type=int, default=2, help="octaves on each side of the best")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--cells", type=Path, default=Path("mup.jsonl"))
    parser.add_argument("--chart", type=Path, help="an SVG")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    directory, base = arguments.shards or str(config.load("shards/demo").directory), min(arguments.widths)
    rows = PackedRows(Shards(directory, "train"), LENGTH)
    held_out = PackedRows(Shards(directory, "validation"), LENGTH, HELD_OUT)
    done: dict[tuple, float] = {}
    if arguments.cells.exists():
        for line in arguments.cells.read_text("utf-8").splitlines():
            record = json.loads(line)
            done[tuple(record["cell"])] = record["loss"]

    def loss_at(parametrisation: str, width: int, exponent: float) -> float:
        losses = []
        for seed in arguments.seeds:
            cell = (parametrisation, base, width, exponent, seed, arguments.steps)
            if cell not in done:
                started = time.process_time()
                done[cell] = train(parametrisation, base, width, exponent, seed, arguments.steps, rows, held_out)
                seconds = round(time.process_time() - started, 1)
                print(
                    f"{parametrisation}, width {width}, 2^{exponent:g}, seed {seed}: {done[cell]:.4f}, {seconds} CPU-s"
                )
                with arguments.cells.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"cell": cell, "loss": done[cell], "seconds": seconds}) + "\n")
            losses.append(done[cell])
        return mean(losses)

    table: dict[str, dict[int, dict[float, float]]] = {}
    for parametrisation in ("standard", "muP"):
        curves, start = table.setdefault(parametrisation, {}), arguments.start
        for width in sorted(arguments.widths):
            own = "standard" if width == base else parametrisation
            curves[width] = search(partial(loss_at, own, width), start, arguments.beside)
            start = min(curves[width], key=curves[width].__getitem__)
    print(f"\ntorch {torch.__version__}, Python {platform.python_version()}, one thread")
    for parametrisation, curves in table.items():
        exponents = sorted({exponent for losses in curves.values() for exponent in losses})
        print(f"\n| {parametrisation} | " + " | ".join(f"2^{e:g}" for e in exponents) + " | optimum |")
        print("|---" * (len(exponents) + 2) + "|")
        for width, losses in curves.items():
            shown = (f"{losses[e]:.3f}" if e in losses else "" for e in exponents)
            print(f"| {width} | " + " | ".join(shown) + f" | 2^{vertex(losses):.2f} |")
        name, optima = parametrisation.lower(), [vertex(losses) for losses in curves.values()]
        print(f"\nFIGURE {name}_optimum_drift_octaves {max(optima) - min(optima):.3f}")
        at_base = min(curves[base], key=curves[base].__getitem__)
        for width, losses in curves.items():
            if at_base in losses:
                print(f"FIGURE {name}_loss_by_transfer_{width} {losses[at_base] - min(losses.values()):.4f}")
    if arguments.chart:
        draw(table, arguments.chart)


if __name__ == "__main__":
    main()
