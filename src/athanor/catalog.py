"""What this project offers: its experiments and pipelines, found by a folder walk.

Only the standard library is imported and nothing is composed, so that `athanor train --help` answers at once.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from athanor.errors import UserError

KINDS = ("prepare", "train", "evaluate")


class Entry(NamedTuple):
    """One file under `experiments/`: its name is its path without the suffix."""

    name: str
    path: Path
    kind: str  # prepare, train, evaluate, pipeline, sweep; "" for a file that is none of them
    description: str  # its first comment


def project() -> Path:
    """The folder of configs/ and experiments/: $ATHANOR_HOME, else one at or above here, else this package's own."""
    if home := os.environ.get("ATHANOR_HOME"):
        return Path(home).resolve()
    for folder in (here := Path.cwd(), *here.parents):
        if (folder / "configs").is_dir() and (folder / "experiments").is_dir():
            return folder
    return Path(__file__).resolve().parents[2]


def source() -> Path:
    """The folder that configs/ and experiments/ are taken from: the project, or the copy of it made for a SLURM job."""
    return Path(code).resolve() if (code := os.environ.get("ATHANOR_CODE")) else project()


def runs_root() -> Path:
    """Where runs are kept unless an experiment says otherwise: $ATHANOR_RUNS, else `runs` in the project."""
    return project() / os.environ.get("ATHANOR_RUNS", "runs")


def entries(kind: str | None = None) -> list[Entry]:
    """Every experiment (of one kind), by name."""
    folder = source() / "experiments"
    texts = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}
    return [entry for name, path in texts.items() if kind in (None, (entry := _entry(name, path)).kind)]


def find(name: str, kind: str | None = None) -> Entry:
    """The experiment of that name and kind, or a UserError that names the nearest, or the right verb."""
    path = source() / "experiments" / f"{name}.yaml"
    if not path.is_file():
        names = [entry.name for entry in entries() if entry.kind and (kind is None or entry.kind == kind)]
        raise UserError(f"there is no experiment {name!r}{suggest(name, names)}")
    entry = _entry(name, path)
    if not entry.kind:
        raise UserError(
            f"experiments/{name}.yaml is no experiment: its defaults name none of {', '.join('/' + k for k in KINDS)}"
        )
    if kind is not None and entry.kind != kind:
        raise UserError(f"{name!r} is not for `athanor {kind}`: use `athanor {entry.kind} experiment={name}`")
    return entry


def suggest(word: str, words: Iterable[str], *, every: int = 12) -> str:
    """The end of a sentence about a wrong word: `; did you mean 'x'?`, else the possible ones if they are few."""
    words = sorted(set(words))
    if near := difflib.get_close_matches(word, words, n=1, cutoff=0.6):
        return f"; did you mean {near[0]!r}?"
    same_end = [other for other in words if other.rpartition("/")[2].rpartition(".")[2] == word]
    if same_end:
        return f"; did you mean {same_end[0]!r}?"
    return f"; there are: {', '.join(words)}" if 0 < len(words) <= every else ""


def _entry(name: str, path: Path) -> Entry:
    text = path.read_text(encoding="utf-8", errors="replace")
    comments = (line.lstrip("# ").rstrip() for line in text.splitlines() if line.startswith("#"))
    return Entry(name, path, _kind(path), next((line for line in comments if line and line[0] != "@"), ""))


def _kind(path: Path) -> str:
    return _kind_at(path, path.stat().st_mtime_ns, path.stat().st_size)


@functools.cache
def _kind_at(path: Path, _changed: int, _size: int) -> str:
    """The base named in the defaults list, if need be the base of the experiment named there."""
    text = re.sub(r"(?m)(^|\s)#.*$", "", path.read_text(encoding="utf-8", errors="replace"))
    if re.search(r"(?m)^steps:", text):
        return "pipeline"
    if re.search(r"(?m)^(factors|space):", text):
        return "sweep"
    match = re.search(r"(?ms)^defaults:(.*?)(?=^[^\s\-\]#]|\Z)", text)
    experiments = source() / "experiments"
    for reference in re.findall(r"[\[\s,\-]/([\w/\-]+)", match[1] if match else ""):
        if reference in KINDS:
            return str(reference)
        if (parent := experiments / f"{reference}.yaml").is_file() and parent != path and (kind := _kind(parent)):
            return kind
    return ""
