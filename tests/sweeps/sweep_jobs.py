"""A job whose loss is known and that dies in the ways members die; files beside the project steer it and count it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from athanor.errors import UserError
from athanor.runs.context import RunContext
from athanor.runs.store import open_run


class Guess:
    """Loss = size + seed / 10 + a little of both. `trouble/<size>-<seed>` holds what goes wrong, and how often."""

    def __init__(self, seed: int, size: float, documents: str | None = None, mode: str = "plain") -> None:
        self.seed, self.size, self.documents, self.mode = seed, size, documents, mode

    def run(self, context: RunContext) -> dict[str, float]:
        if self.documents:
            open_run(self.documents).path("documents.txt")
        _count(f"guess-{self.size:g}-{self.seed}")
        self._trouble()
        loss = self.size + self.seed / 10 + 0.01 * (self.seed**2 * int(self.size) % 5)
        for step in range(1, 11):
            context.log({"train/loss": loss + 5 / step}, step)
        (context.directory / "gpu.txt").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        if self.size == 99:
            return {"loss": float("nan")}
        return {"loss": loss, "accuracy": 1 - loss / 100}

    def _trouble(self) -> None:
        for path in Path("trouble").glob(f"{self.size:g}-{self.seed}"):
            what, _, times = path.read_text().partition(" ")
            if times:
                left = int(times) - 1
                path.write_text(f"{what} {left}") if left else path.unlink()
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "raise":
                raise RuntimeError("the furnace went out")
            if what == "user":
                raise UserError("the coal is wet; bring another")
            if what == "wait":
                while path.exists():
                    time.sleep(0.05)


class Slow:
    """What all members read; slow enough for two processes to meet at it."""

    def run(self, context: RunContext) -> dict[str, float]:
        _count("slow")
        time.sleep(1.5)
        with context.temporary("documents.txt") as path:
            path.write_text("one two")
        return {"documents": 1}


class Score:
    """Measures a guess by another metric."""

    def __init__(self, model: str) -> None:
        self.model = model

    def run(self, context: RunContext) -> dict[str, float]:
        _count("score")
        return {"score": 100 * open_run(self.model).metrics["loss"]}


def _count(what: str) -> None:
    with Path("executions").open("a") as file:
        file.write(f"{what}\n")
