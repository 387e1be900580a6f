"""The same few steps of an experiment in one process and under other strategies: is it the same model?

Each training is a run of its own, started by `athanor train` below `<runs>/.prove`, where the table stays too.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from athanor.config import Experiment
from athanor.errors import UserError
from athanor.progress import Progress
from athanor.runs import store
from athanor.runs.context import METRICS
from athanor.runs.files import write_atomic, write_json
from athanor.runs.run import Run, list_runs

BOUNDS = {"32-true": 1e-4, "64-true": 1e-4}  # on losses; other precisions round more
ALONE = ["strategy=single", "cluster.devices=1", "cluster.nodes=1"]


def prove(
    experiment: Experiment, strategies: Sequence[str], steps: int, progress: Progress | None = None
) -> dict[str, Any]:
    """Trains `steps` steps in one process and under each strategy, on the experiment's own cluster, and compares.

    Returns:
        {"experiment", "steps", "bound", "when", "trainings": [{"strategy", "loss", "gradient", "weights", "seconds",
        "error"}]}: relative differences, the largest over the steps and the tensors; `error` is None where it ran.

    Raises:
        UserError: its inputs are not finished, or it does not train in one process.
    """
    if experiment.kind != "train":
        raise UserError(f"{experiment.name} trains nothing; name a training")
    if steps < 1 or not strategies:
        raise UserError("steps must be at least 1, and strategies name at least one, such as strategies=ddp,fsdp2")
    experiment.validate()
    if missing := store.unfinished_inputs(experiment):
        raise UserError(f"{experiment.name} needs a run that is not finished; make it with `{missing[0].command}`")
    runs = Path(experiment.config["paths"]["runs"])
    folder = runs.resolve() / ".prove" / experiment.name / experiment.fingerprint
    shutil.rmtree(folder, ignore_errors=True)
    precision = experiment.config["precision"]
    result: dict[str, Any] = {"experiment": experiment.name, "fingerprint": experiment.fingerprint, "steps": steps}
    result |= {"bound": BOUNDS.get(precision, 2e-2), "precision": precision, "when": time.time(), "trainings": []}
    progress = progress or Progress(quiet=True)
    progress.start("one process")
    one, error = _train(experiment, folder / "single", steps, ALONE)
    if one is None:
        progress.finish("failed")
        raise UserError(f"{experiment.name} does not train in one process: {error}")
    progress.finish()
    for strategy in strategies:
        progress.start(strategy)
        made, error = _train(experiment, folder / strategy, steps, [f"strategy={strategy}"])
        row: dict[str, Any] = {"strategy": strategy, "error": error}
        if made is not None:
            row |= {"loss": _apart(one, made, "train/loss"), "gradient": _apart(one, made, "train/grad_norm")}
            row |= {"weights": _weights_apart(one, made), "seconds": made.manifest["seconds"]}
        result["trainings"].append(row)
        progress.finish("failed" if error else "finished")
    write_json(folder / "prove.json", result)
    write_atomic(folder / "prove.md", table(result))
    result["table"] = str(folder / "prove.md")
    return result


def holds(result: dict[str, Any]) -> bool:
    """Whether every strategy trained, with losses within the bound."""
    return all(row["error"] is None and row["loss"] <= result["bound"] for row in result["trainings"])


def table(result: dict[str, Any]) -> str:
    """As Markdown."""
    lines = [
        f"# {result['experiment']} ({result['fingerprint']}): {result['steps']} steps, {result['precision']}\n",
        "Relative differences from one process, the largest over steps and tensors; "
        f"losses should lie within {result['bound']:.0e}.\n",
        "| strategy | loss | gradient norm | weights | seconds |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["trainings"]:
        if row["error"]:
            lines.append(f"| {row['strategy']} | {row['error']} | | | |")
        else:
            apart = " | ".join(f"{row[name]:.1e}" for name in ("loss", "gradient", "weights"))
            lines.append(f"| {row['strategy']} | {apart} | {row['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def _train(experiment: Experiment, folder: Path, steps: int, execution: list[str]) -> tuple[Run | None, str | None]:
    """The run, or what `athanor train` said instead."""
    given = [f"inputs.{name}={entry.paths[0]}" for name, entry in experiment.inputs.items() if entry.kind == "run"]
    mine = {word.lstrip("+~").partition("=")[0] for word in (*given, *execution)}
    own = [word for word in experiment.overrides if word.lstrip("+~").partition("=")[0] not in mine]
    words = ["train", f"experiment={experiment.name}", *own, *given, *execution, f"paths.runs={folder}"]
    words += [f"max_steps={steps}", f"validate_every_n_steps={steps}", "logger.every_n_steps=1", "display=quiet"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run(
        [sys.executable, "-m", "athanor", *words], env=environment, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        said = [line for line in ended.stderr.splitlines() if line.startswith("athanor: ")]
        return None, (said or ended.stderr.splitlines() or ["?"])[-1].removeprefix("athanor: ")
    return list_runs(folder)[0], None


def _values(run: Run, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run.directory / METRICS).read_text("utf-8").splitlines()]
    return [line[name] for line in lines if name in line]


def _apart(one: Run, other: Run, name: str) -> float:
    """The largest difference over the steps by the largest value; infinite if they are not the same steps."""
    a, b = _values(one, name), _values(other, name)
    if len(a) != len(b):
        return math.inf
    return max(abs(x - y) for x, y in zip(a, b)) / max(map(abs, a))


def _weights_apart(one: Run, other: Run) -> float:
    """The largest ||a - b|| / ||a|| over the tensors."""
    from safetensors.torch import load_file

    a, b = (load_file(run.path("model.safetensors")) for run in (one, other))
    return max(
        float((a[name].double() - b[name].double()).norm() / a[name].double().norm().clamp(min=1e-30)) for name in a
    )
