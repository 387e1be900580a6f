"""A run on disk: its manifest, its status, and its outputs, whose hashes are verified when they are read."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from athanor import catalog
from athanor.errors import UserError
from athanor.runs.files import Hashes
from athanor.runs.lock import is_locked

MANIFEST = "manifest.json"


class Run:
    """The run in a directory. Its manifest is read once; a new `Run` of the same directory reads it anew."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __repr__(self) -> str:
        return f"Run({self.id}, {self.status})"

    @cached_property
    def manifest(self) -> dict[str, Any]:
        path = self.directory / MANIFEST
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{self.directory} is no run: it has no {MANIFEST}") from None
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); remove its folder and make the run again") from None
        return manifest

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def id(self) -> str:
        return f"{self.name}/{self.fingerprint}"

    @property
    def root(self) -> Path:
        """The folder of all runs that this one is in."""
        return self.directory.parents[self.name.count("/") + 1]

    @property
    def status(self) -> str:
        """finished, running, failed or interrupted: one that says running and is held by no process was interrupted."""
        status = str(self.manifest["status"])
        return "interrupted" if status == "running" and not is_locked(self.directory) else status

    @property
    def metrics(self) -> dict[str, float]:
        """The final metrics, the most telling first; {} until it has finished."""
        return self.manifest.get("metrics") or {}

    @property
    def age(self) -> str:
        """Time since it ended, or began: 40 s, 5 min, 3 h, 2 d."""
        seconds = time.time() - (self.manifest.get("finished") or self.manifest["started"])
        sizes = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
        size, unit = next(((size, unit) for size, unit in sizes if seconds >= 2 * size), sizes[-1])
        return f"{max(seconds, 0) // size:.0f} {unit}"

    @property
    def command(self) -> str:
        """The command line that makes it."""
        return shlex.join(
            ["athanor", self.manifest["kind"], f"experiment={self.name}", *self.manifest.get("overrides", ())]
        )

    @property
    def outputs_digest(self) -> str:
        """One hash over all outputs: what a run that read this one has read."""
        return digest(self.manifest.get("outputs", {}))

    def path(self, relative: str, verify: bool = True) -> Path:
        """An output of the finished run.

        Raises:
            UserError: it is unfinished, has no such output, or the file is missing or not the one that was written.
        """
        if self.manifest["status"] != "finished":
            raise UserError(f"{self.id} is {self.status}; finish it with `{self.command}`")
        outputs = self.manifest["outputs"]
        if relative not in outputs:
            raise UserError(f"{self.id} has no output {relative!r}{catalog.suggest(relative, outputs)}")
        hashes = Hashes(self.root)
        if verify and (harm := self._harm(relative, hashes, fresh=False)):
            raise UserError(f"{self.directory / relative} {harm}; remake it with `{self.command} --force`")
        hashes.save()
        return self.directory / relative

    def damage(self, *, fresh: bool = False) -> list[str]:
        """What is wrong with its outputs, a phrase each. `fresh` reads every byte, however untouched a file seems."""
        hashes = Hashes(self.root)
        harms = {name: self._harm(name, hashes, fresh=fresh) for name in self.manifest.get("outputs", {})}
        hashes.save()
        return [f"{name} {harm}" for name, harm in harms.items() if harm]

    def absent(self) -> list[str]:
        """Outputs that are missing or of another size: what can be seen without reading them."""
        return [name for name in self.manifest.get("outputs", {}) if self._harm(name, None, fresh=False)]

    def _harm(self, relative: str, hashes: Hashes | None, *, fresh: bool) -> str:
        expected, path = self.manifest["outputs"][relative], self.directory / relative
        if not path.is_file():
            return "is missing"
        if (size := path.stat().st_size) != expected["bytes"]:
            return f"has {size:,} bytes where its manifest says {expected['bytes']:,}"
        if hashes is not None and hashes(path, fresh=fresh) != expected["sha256"]:
            return "was changed after it was written: its sha256 is not the manifest's"
        return ""


def digest(outputs: dict[str, dict[str, Any]]) -> str:
    """16 hex digits over the names and hashes of outputs."""
    import hashlib

    text = json.dumps(sorted((name, entry["sha256"]) for name, entry in outputs.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_run(reference: str, root: Path) -> Path | None:
    """The directory named by a path or by `experiment/fingerprint`, of which any unambiguous beginning will do."""
    if (directory := Path(reference)).joinpath(MANIFEST).is_file():
        return directory.resolve()
    parent, _, beginning = reference.rstrip("/").rpartition("/")
    if not parent or not re.fullmatch(r"[0-9a-f]{1,16}", beginning):
        return None
    found = sorted(path.parent for path in (root / parent).glob(f"{beginning}*/{MANIFEST}"))
    if len(found) > 1:
        raise UserError(f"{reference!r} begins several runs: {', '.join(f'{parent}/{path.name}' for path in found)}")
    return found[0] if found else None


def open_run(reference: str | Path, root: Path | None = None) -> Run:
    """The run named by a directory, by `experiment/fingerprint` or its beginning, or by an experiment with one run.

    Raises:
        UserError: none or several; it lists the candidates.
    """
    root = root or catalog.runs_root()
    if directory := find_run(str(reference), root):
        return Run(directory)
    name = str(reference).rstrip("/")
    runs = list_runs(root)
    own = [run for run in runs if run.name == name]
    if len(own) == 1:
        return own[0]
    if own:
        lines = [f"{run.id}  {run.status}, {run.age} old  {' '.join(run.manifest['overrides'])}" for run in own]
        raise UserError("\n  - ".join((f"{name} has {len(own)} runs; say which:", *lines)))
    if Path(name).is_dir():
        raise UserError(f"{name} is no run: it has no {MANIFEST}")
    known = {run.name for run in runs} | {run.id for run in runs}
    hint = catalog.suggest(name, known, every=6) if known else f"; {root} holds none yet"
    raise UserError(f"there is no run {name!r}{hint}")


def list_runs(root: Path | None = None) -> list[Run]:
    """All runs in a folder of runs, by name and then by start. Hidden folders are passed over."""
    runs = map(Run, run_folders(root or catalog.runs_root()))
    return sorted(runs, key=lambda run: (run.name, run.manifest["started"]))


def run_folders(root: Path) -> Iterator[Path]:
    """Every folder that has a manifest, whatever is in it; hidden folders are passed over."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name[0] != "."]
        if MANIFEST in files:
            folders.clear()
            yield Path(folder)


def verified(path: Path) -> Path:
    """The file itself, its hash verified if it is an output of a run; any other file is taken as it is."""
    for folder in path.absolute().parents:
        if (folder / MANIFEST).is_file():
            run = Run(folder)
            if isinstance(run.manifest, dict) and "fingerprint" in run.manifest:  # others too call a file manifest.json
                return run.path(str(path.absolute().relative_to(folder)))
    return path
