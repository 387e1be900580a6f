"""The metrics of a training in its run's own files, whatever other loggers there are."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class RunLogger(Logger):
    """Writes every metric through `RunContext.log` (metrics.jsonl)."""

    def __init__(self, run: Any):
        super().__init__()
        self.run = run

    @property
    def name(self) -> str:
        return self.run.experiment.name

    @property
    def version(self) -> str:
        return self.run.experiment.fingerprint

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.run.log(metrics, step)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run's config.yaml and manifest hold them."""


def forget_after(path: Path, step: int) -> None:
    """Drops the lines of metrics.jsonl or samples.jsonl that a resumed run is about to write again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines():
        try:
            if (json.loads(line).get("step") or 0) <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:  # the line that was being written when the process died
            continue
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(kept), "utf-8")
    temporary.replace(path)
