"""Trainings as points of a scaling law: from finished pretraining runs, or from a table."""

import csv
import json
import struct
from collections.abc import Sequence
from math import prod
from pathlib import Path

from athanor import catalog
from athanor.errors import UserError
from athanor.runs.run import Run, list_runs, open_run
from athanor.scaling.law import Point

COLUMNS = ("parameters", "tokens", "loss")
SAME = ("tokenizer", "shards")
WEIGHTS = "model.safetensors"


def read(references: Sequence[str]) -> list[Point]:
    """Of a CSV file with the columns parameters, tokens and loss, or of runs.

    Args:
        references: one file, or runs; a folder of runs or the beginning of an experiment's name, ending in /, stands
            for all finished trainings in it.

    Raises:
        UserError: what is named does not exist, is unfinished, or cannot be compared.
    """
    if len(references) == 1 and references[0].endswith(".csv"):
        return table(Path(references[0]))
    runs = {run.directory: run for reference in references for run in named(reference)}
    points = [point(run) for run in runs.values()]
    for key in SAME:
        seen = {run.manifest["inputs"].get(key, {}).get("outputs"): run.id for run in runs.values()}
        if len(seen) > 1:
            first, second, *_ = seen.values()
            raise UserError(f"{first} and {second} read different {key}, so their losses do not compare")
    return points


def named(reference: str) -> list[Run]:
    if not reference.endswith("/") or (Path(reference) / "manifest.json").is_file():
        return [open_run(reference)]
    folder = Path(reference) if Path(reference).is_dir() else catalog.runs_root() / reference
    found = [run for run in list_runs(folder) if run.manifest["kind"] == "train" and run.status == "finished"]
    if not found:
        raise UserError(f"{reference} holds no finished training")
    return found


def point(run: Run) -> Point:
    """Parameters as the weights' file counts them, tokens as the config does, and the last validation loss."""
    config, loss = run.manifest["config"], run.metrics.get("validation/loss")
    if run.status != "finished" or loss is None:
        raise UserError(f"{run.id} is {run.status} and has no validation/loss; finish it with `{run.command}`")
    length = config.get("data", {}).get("sequence_length")
    if length is None:
        raise UserError(f"{run.id} is no pretraining: it has no data.sequence_length")
    tokens = config["max_steps"] * config["global_batch_size"] * length
    return Point(parameters(run.path(WEIGHTS, verify=False)), tokens, loss, run.id)


def parameters(weights: Path) -> int:
    """Elements of a safetensors file, from its header."""
    with weights.open("rb") as file:
        header = json.loads(file.read(*struct.unpack("<Q", file.read(8))))
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def table(path: Path) -> list[Point]:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if missing := [name for name in COLUMNS if rows and name not in rows[0]]:
        raise UserError(f"{path} has no column {missing[0]!r}; it needs {', '.join(COLUMNS)}")
    points = []
    for number, row in enumerate(rows, 2):
        try:
            size, tokens, loss = (float(row[name]) for name in COLUMNS)
        except (TypeError, ValueError):
            shown = [row[name] for name in COLUMNS]
            raise UserError(f"{path}, line {number}: {shown} are not three numbers") from None
        points.append(Point(size, tokens, loss, row.get("name") or f"line {number}"))
    return points
