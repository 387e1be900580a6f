"""What is going on: a live table on a terminal, a plain line every ten seconds elsewhere, nothing if quiet.

A task is one run (a pipeline plans several); a stage is a part of it that counts from 0 to its own total. All of it
goes to stderr. `update` costs microseconds and may be called for every item. Only a live table imports rich.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

PLAIN_SECONDS = 10.0
MARKS = {"waiting": "·", "running": "▶", "finished": "✓", "skipped": "✓", "failed": "✗", "interrupted": "✗"}
STYLES = {"waiting": "dim", "running": "bold", "skipped": "dim", "failed": "red", "interrupted": "yellow"}


@dataclass
class Task:
    """One row."""

    title: str
    state: str = "waiting"
    stage: str = ""
    done: float = 0
    total: float = 0
    fields: dict[str, Any] = field(default_factory=dict)
    started: float = 0.0
    seconds: float = 0.0
    first: tuple[float, float] | None = None  # time and `done` of the stage's first update, from which speed is told

    def left(self) -> float | None:
        """Seconds until the stage is done, at its speed so far."""
        if self.first is None or self.done <= self.first[1] or not self.total:
            return None
        return (time.monotonic() - self.first[0]) / (self.done - self.first[1]) * max(self.total - self.done, 0)


class Progress:
    """Shows tasks. `mode` is auto, rich, plain or quiet; `quiet=True` is for tests and for ranks other than 0."""

    def __init__(self, mode: str = "auto", *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.mode = "quiet" if quiet else mode
        if self.mode == "auto":
            self.mode = "rich" if self.stream.isatty() else "plain"
        self.tasks: list[Task] = []
        self.current = Task("")
        self._live: Any = None
        self._next_line = 0.0

    def plan(self, titles: Sequence[str]) -> None:
        """Tasks that will come, shown as waiting."""
        self.tasks += [Task(title) for title in titles]

    def start(self, title: str) -> None:
        """A task begins."""
        waiting = [task for task in self.tasks if task.title == title and task.state == "waiting"]
        self.current = waiting[0] if waiting else Task(title)
        if not waiting:
            self.tasks.append(self.current)
        self.current.state, self.current.started = "running", time.monotonic()
        self._next_line = time.monotonic() + PLAIN_SECONDS
        if self.mode == "rich" and self._live is None:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                get_renderable=self._table, console=Console(file=self.stream), refresh_per_second=4, transient=False
            )
            self._live.start()

    def stage(self, title: str) -> None:
        """The task goes on to its next part, which counts anew."""
        task = self.current
        task.stage, task.done, task.total, task.fields, task.first = title, 0, 0, {}, None

    def update(self, done: float, total: float, **fields: Any) -> None:
        """So much of the stage is done; `fields` (loss, tokens_per_second, ...) are shown beside it."""
        task = self.current
        task.done, task.total, task.fields = done, total, fields
        if task.first is None:
            task.first = (time.monotonic(), done)
        if self.mode == "plain" and (now := time.monotonic()) >= self._next_line:
            self._next_line = now + PLAIN_SECONDS
            left = task.left()
            parts = [_name(task), f"{_number(done)}/{_number(total)}", _fields(fields)]
            self._print("  ".join([part for part in parts if part] + ([f"{clock(left)} left"] if left else [])))

    def finish(self, state: str = "finished") -> None:
        """The task is over: finished, skipped, failed or interrupted."""
        task = self.current
        task.state, task.seconds = state, time.monotonic() - task.started if task.started else 0.0
        if self.mode == "plain" and state != "skipped":
            self._print(f"{task.title} {state} after {clock(task.seconds)}")

    def close(self) -> None:
        """Leave the last picture standing."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _print(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def _table(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for _ in range(6):
            table.add_column(no_wrap=True)
        for task in self.tasks:
            running = task.state == "running"
            seconds = time.monotonic() - task.started if running else task.seconds
            left = task.left() if running else None
            bar = ProgressBar(task.total or 1, task.done, width=20) if running and task.total else ""
            count = f"{_number(task.done)}/{_number(task.total)}" if running and task.total else ""
            told = _fields(task.fields) if running else ("already done" if task.state == "skipped" else "")
            table.add_row(
                Text(f"{MARKS[task.state]} {_name(task) if running else task.title}", STYLES.get(task.state, "green")),
                bar,
                count,
                told,
                clock(seconds) if running or task.state == "finished" else "",
                f"{clock(left)} left" if left else "",
            )
        return table


def clock(seconds: float) -> str:
    """9 s, 1:05, 2:03:04."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, second = divmod(whole, 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}" if minutes >= 60 else f"{minutes}:{second:02}"


def _name(task: Task) -> str:
    return f"{task.title} · {task.stage}" if task.stage and task.stage not in task.title else task.title


def _number(value: Any) -> str:
    if not isinstance(value, (int, float)):
        return str(value)
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e5, "k")):
        if abs(value) >= size:
            return f"{value / (size if letter != 'k' else 1e3):.4g}{letter}"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.4g}"


def _fields(fields: dict[str, Any]) -> str:
    return "  ".join(
        f"{_number(value)} {name.removesuffix('_per_second').replace('_', ' ')}/s"
        if name.endswith("_per_second")
        else f"{name.replace('_', ' ')} {_number(value)}"
        for name, value in fields.items()
    )
