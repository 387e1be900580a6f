"""What lies in a folder of runs, at this moment. Nothing is written, and what cannot be read is told of, not raised."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from athanor import catalog
from athanor.cluster import jobs
from athanor.cluster.jobs import Job, Standing, standing
from athanor.errors import UserError
from athanor.report.gather import DATA_ROLES, RunView
from athanor.runs.run import MANIFEST, Run, run_folders

NUMBER = (int, float)
SHAPES: dict[str, Any] = {
    "config": dict, "science": dict, "metrics": dict, "inputs": dict, "code": dict, "packages": dict, "hardware": dict,
    "overrides": list, "attempts": list, "started": NUMBER, "seconds": NUMBER,
}  # fmt: skip
QUEUE_SECONDS = 15.0  # between two questions to SLURM, however many pages are open


@dataclass
class Row:
    """A run in the list."""

    run: RunView
    status: str
    started: float
    steps: int | None  # that a training is to take
    standing: Standing  # of one that has not finished
    metric: str  # the most telling one of a finished run
    value: float | None

    @property
    def id(self) -> str:
        return f"{self.run.name}/{self.run.fingerprint}"

    @property
    def tone(self) -> str:
        return "data" if self.run.role in DATA_ROLES else self.run.role

    @property
    def overrides(self) -> list[str]:
        """As it was run with, without those that only say where its inputs are."""
        given = self.run.manifest.get("overrides") or ()
        return [str(word) for word in given if not str(word).lstrip("+").startswith("inputs.")]

    @property
    def share(self) -> float | None:
        """Of its steps that are done."""
        if self.status == "finished" or not self.steps or self.standing.step is None:
            return None
        return min(self.standing.step / self.steps, 1.0)


@dataclass
class Broken:
    """A run whose manifest says nothing."""

    place: str
    reason: str


@dataclass
class Page:
    """A report that stands under an address of its own: of a pipeline, an ablation or a search."""

    name: str
    description: str
    begun: bool  # something of it is in the folder


@dataclass
class Shelf:
    """A folder of runs."""

    root: Path
    _queue: tuple[float, list[Job], str] = field(default=(0.0, [], ""), repr=False)

    def runs(self) -> tuple[dict[str, RunView], list[Broken]]:
        """Runs by `experiment/fingerprint`, the newest first, and what should be one and is not."""
        found, broken = [], []
        for folder in run_folders(self.root):
            place = folder.relative_to(self.root).as_posix()
            try:
                stat = (folder / MANIFEST).stat()
                manifest = _manifest(folder / MANIFEST, stat.st_mtime_ns, stat.st_size)
            except (OSError, ValueError) as error:
                broken.append(Broken(place, str(error)))
                continue
            found.append(RunView(place, folder, manifest))
        broken.sort(key=lambda one: one.place)
        found.sort(key=lambda run: (-_started(run), run.name))
        return {f"{run.name}/{run.fingerprint}": run for run in found}, broken

    def rows(self) -> tuple[list[Row], list[Broken]]:
        """The list: what is under way first."""
        runs, broken = self.runs()
        rows = [_row(run) for run in runs.values()]
        return sorted(rows, key=lambda row: row.status != "running"), broken

    def jobs(self) -> tuple[list[Job], str]:
        """Those in the queue and the last ten that have left it; or why they cannot be told."""
        asked, found, trouble = self._queue
        if time.monotonic() - asked > QUEUE_SECONDS or not asked:
            try:
                sound = [Run(view.directory) for view in self.runs()[0].values()]
                listed, trouble = jobs.listed(self.root, sound), ""
                ended = [job for job in listed if not job.live]
                found = [*(job for job in listed if job.live), *reversed(ended[-10:])]
            except (UserError, OSError) as error:
                found, trouble = [], str(error)
            self._queue = (time.monotonic(), found, trouble)
        return found, trouble

    def pipelines(self) -> list[Page]:
        folders = sorted(path.parent for path in self.root.glob("pipelines/*/pipeline.json"))
        return [Page(folder.name, "", True) for folder in folders]

    def sweeps(self, kind: str) -> list[Page]:
        """Of the project's ablations or searches (`kind`: ablations or search), those begun first; then saved ones."""
        entries = {e.name.partition("/")[2]: e for e in catalog.entries("sweep") if e.name.startswith(f"{kind}/")}
        begun = {path.name for path in self.root.glob(f"{kind}/*") if path.is_dir()}
        pages = [Page(name, entry.description, name in begun) for name, entry in entries.items()]
        pages += [Page(name, "", True) for name in sorted(begun - set(entries))]
        return sorted(pages, key=lambda page: not page.begun)

    def saved(self) -> dict[str, Path]:
        """Pages that were written into the folder, by their places in it."""
        patterns = ("pipelines/*/*.html", "ablations/*/*.html", "search/*/*/*.html", "*.html")
        found = [path for pattern in patterns for path in sorted(self.root.glob(pattern)) if path.is_file()]
        return {path.relative_to(self.root).as_posix(): path for path in found}


@lru_cache(maxsize=4096)
def _manifest(path: Path, _changed: int, _size: int) -> dict[str, Any]:
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or not manifest.get("name") or not manifest.get("fingerprint"):
        raise ValueError("it names no run")
    for key, shape in SHAPES.items():
        if manifest.get(key) is not None and not isinstance(manifest[key], shape):
            raise ValueError(f"its {key!r} is {str(manifest[key])[:80]!r}")
    for attempt in manifest.get("attempts") or ():
        if not isinstance(attempt, dict) or not isinstance(attempt.get("started"), NUMBER):
            raise ValueError(f"one of its attempts is {str(attempt)[:80]!r}")
    return manifest


def _row(run: RunView) -> Row:
    status = run.status
    steps = (run.manifest.get("config") or {}).get("max_steps")
    steps = steps if isinstance(steps, int) else None
    metric, value = next(iter((run.manifest.get("metrics") or {}).items()), ("", None))
    under_way = run.kind == "train" and status != "finished"
    return Row(
        run=run,
        status=status,
        started=_started(run),
        steps=steps,
        standing=standing(run.directory, steps) if under_way else Standing(),
        metric=metric,
        value=value if isinstance(value, NUMBER) else None,
    )


def _started(run: RunView) -> float:
    return float(run.manifest.get("started") or 0.0)
