"""Jobs and parts small enough to run in a test, real enough to make files, metrics, and mistakes."""

from __future__ import annotations

import enum
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from athanor.errors import UserError
from athanor.runs.context import RunContext
from athanor.runs.store import open_run

Mode = Literal["fast", "slow"]


class Join:
    """Joins files into one; counts its own executions beside the project."""

    def __init__(self, files: list[str], upper: bool = False, num_workers: int = 0) -> None:
        self.files, self.upper, self.num_workers = files, upper, num_workers

    def run(self, context: RunContext) -> dict[str, float]:
        if not self.files:
            raise UserError("there are no files to join")
        text = "".join(Path(file).read_text() for file in self.files)
        with context.temporary("documents.txt") as path:
            path.write_text(text.upper() if self.upper else text)
        context.log({"characters": len(text)}, step=1)
        _count("join")
        return {"characters": len(text)}


class Repeat:
    """Repeats another run's text; may stop half-way in several ways."""

    def __init__(self, documents: str, times: int, stop: str | None = None) -> None:
        self.documents, self.times, self.stop = documents, times, stop

    def run(self, context: RunContext) -> dict[str, float]:
        text = open_run(self.documents).path("documents.txt").read_text()
        if self.stop and not os.environ.get("GO_ON"):
            (context.directory / "half-written.txt").write_text("half")
            Path("started").touch()
            if self.stop == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.stop == "wait":
                time.sleep(60)
            if self.stop == "interrupt":
                raise KeyboardInterrupt
            if self.stop == "user":
                raise UserError("the text is no good; bring another")
            raise RuntimeError("the furnace went out")
        with context.temporary("documents.txt") as path:
            path.write_text(text * self.times)
        _count("repeat")
        return {"characters": len(text) * self.times, "times": self.times}


def _count(name: str) -> None:
    with Path("executions").open("a") as file:
        file.write(f"{name}\n")


# Parts with every kind of annotation


class Tensor:
    pass


class Colour(enum.Enum):
    RED = "red"


class Base:
    def __init__(self, width: int, mode: Mode = "fast") -> None: ...


class Model(Base):
    """Takes what its base takes."""


class Loader:
    def __init__(
        self,
        path: str | Path,
        *,
        batch: int,
        rate: float = 0.1,
        shuffle: bool = True,
        limit: int | None = None,
        names: Sequence[str] = (),
        betas: tuple[float, float] = (0.9, 0.999),
        sizes: tuple[int, ...] = (),
        weights: Mapping[str, float] | None = None,
        extra: dict[str, list[int]] | None = None,
        mode: Mode | Literal[3] = "fast",
        hook: Callable[[int], int] | None = None,
        start: Tensor | None = None,
        inner: Model | None = None,
        colour: Colour = Colour.RED,
        anything: Any = None,
        implicit: int = None,  # type: ignore[assignment]  # noqa: RUF013
    ) -> None: ...

    @classmethod
    def default(cls, path: str) -> Loader:
        return cls(path, batch=1)


@dataclass
class Settings:
    size: int
    names: list[str] = field(default_factory=list)


@dataclass
class MoreSettings(Settings):
    rate: float = 0.1


class Point(NamedTuple):
    x: int
    y: int = 0


def anything_goes(first: int, **others: Any) -> None: ...


def chain(parts: Iterable[Any]) -> None: ...


def schedule(optimizer: Any, *, warmup_steps: int, decay: Literal["cosine", "linear"] = "cosine") -> None: ...
