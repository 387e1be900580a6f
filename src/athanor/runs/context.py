"""What a running job is given: its folder, its experiment, a place to log, and a way to write files whole."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from athanor.progress import Progress
from athanor.runs.files import PARTIAL

if TYPE_CHECKING:
    from athanor.config import Experiment

METRICS = "metrics.jsonl"


def rank() -> int:
    """This process's place among those of a distributed run, as its launcher says it; 0 if there is none."""
    if "SLURM_STEP_ID" not in os.environ:  # a batch script says SLURM_PROCID=0 to all that it starts
        names: tuple[str, ...] = ("RANK", "LOCAL_RANK")
    else:
        names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 0)


class RunContext:
    """One attempt at a run. On ranks other than 0 nothing is written."""

    def __init__(
        self,
        directory: Path,
        experiment: Experiment,
        progress: Progress | None = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        self.directory = directory
        self.experiment = experiment
        self.progress = progress or Progress(quiet=True)
        self.callbacks = callbacks  # of Lightning, that watch a training and leave what it computes alone
        self.rank = rank()
        self.afterwards: list[Callable[[], None]] = []  # to be done once the run says that it is finished

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one event to metrics.jsonl: step, time in seconds since 1970, and the metrics as floats."""
        if self.rank == 0:
            event = {"step": step, "time": round(time.time(), 3)} | {k: float(v) for k, v in metrics.items()}
            with (self.directory / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")

    @contextmanager
    def temporary(self, name: str) -> Iterator[Path]:
        """A path to write to, renamed to `name` in the run's folder if the block succeeds, removed if it does not."""
        final = self.directory / name
        final.parent.mkdir(parents=True, exist_ok=True)
        path = final.with_name(f"{final.name}{PARTIAL}")
        try:
            yield path
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.replace(final)
        finally:
            path.unlink(missing_ok=True)


def curves(events: Iterable[Mapping[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Logged metric -> (steps, values), steps rising, from the events of metrics.jsonl. A step logged again after a
    resume keeps its last value; what is no finite number is left out.
    """
    found: dict[str, dict[int, float]] = {}
    for event in events:
        if not isinstance(event.get("step"), int):
            continue
        for name, value in event.items():
            usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if name not in ("step", "time", "epoch") and usable:
                found.setdefault(name, {})[event["step"]] = float(value)
    return {name: ([*sorted(at)], [at[step] for step in sorted(at)]) for name, at in found.items()}


def write_table(directory: Path) -> None:
    """metrics.csv from metrics.jsonl: a row an event, a column a metric."""
    path = directory / METRICS
    if not path.is_file():
        return
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    columns = list(dict.fromkeys(key for event in events for key in event))
    with (directory / "metrics.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(events)
