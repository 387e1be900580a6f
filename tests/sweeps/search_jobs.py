"""A job whose best point is known; files beside the project steer it and count it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from athanor.errors import UserError
from athanor.runs.context import RunContext


class Valley:
    """Loss = (x - 0.3)^2 + depth of `kind` + seed / 100. `trouble/any` says what goes wrong, `trouble/hold` waits."""

    def __init__(self, seed: int, x: float, kind: str = "flat", layers: int = 1) -> None:
        self.seed, self.x, self.kind, self.layers = seed, x, kind, layers

    def run(self, context: RunContext) -> dict[str, float]:
        with Path("executions").open("a") as file:
            file.write(f"{self.x!r}-{self.kind}-{self.layers}-{self.seed}\n")
        self._trouble()
        loss = (self.x - 0.3) ** 2 + {"flat": 0.1, "deep": 0.0}[self.kind] + self.seed / 100 + 0.01 * self.layers
        with context.temporary("loss.txt") as path:
            path.write_text(repr(loss))
        if self.x > 0.95:
            return {"loss": float("nan")}
        return {"loss": loss}

    def _trouble(self) -> None:
        while Path("trouble/hold").exists():
            time.sleep(0.02)
        for path in Path("trouble").glob("any"):
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
