"""Members of an ablation that begin at once: a job that can be stopped at any of its steps and goes on there."""

from __future__ import annotations

import os
import time
from pathlib import Path

from athanor import signals
from athanor.runs.context import RunContext
from athanor.runs.store import open_run


class Data:
    """What all members read."""

    def run(self, context: RunContext) -> dict[str, float]:
        with Path("executions").open("a") as file:
            file.write("data\n")
        with context.temporary("data.txt") as path:
            path.write_text("0.25")
        return {"bytes": 4}


class Walk:
    """Loss = size + seed / 10 + what the data say. `steps/<size>-<seed>` says how far it is; `raise/` if it fails."""

    def __init__(self, seed: int, size: float, data: str, steps: int = 40, pause: float = 0.1) -> None:
        self.seed, self.size, self.data, self.steps, self.pause = seed, size, data, steps, pause

    def run(self, context: RunContext) -> dict[str, float]:
        name = f"{self.size:g}-{self.seed}"
        saved = Path("steps") / name
        first = int(saved.read_text()) if saved.exists() else 0
        with Path("executions").open("a") as file:
            file.write(f"{name} {first} {os.environ['SLURM_ARRAY_TASK_ID']}\n")
        if Path("raise", name).exists():
            raise RuntimeError("the furnace went out")
        loss = self.size + self.seed / 10 + float(open_run(self.data).path("data.txt").read_text())
        for step in range(first + 1, self.steps + 1):
            time.sleep(self.pause)
            context.log({"train/loss": loss + 1 / step}, step)
            saved.write_text(str(step))
            if number := signals.noted():
                raise SystemExit(signals.exit_code(number))
        return {"loss": loss}
