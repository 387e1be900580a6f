"""A copy of the code as it is now, for jobs that run later: to edit the checkout while they wait does not change them.

The copy lies in the runs' folder under the hash of its content, so that many jobs share one. The project's folder stays
where relative paths, data and runs are looked up; only code, configs and experiments come from the copy.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import athanor
from athanor import catalog
from athanor.runs import manifest
from athanor.runs.files import write_atomic

NAMES = ("configs", "experiments", "slurm")


def take(folder: Path) -> Path:
    """The copy's directory in `folder`, made if need be: src/athanor, configs, experiments, slurm, code.json."""
    files = sorted(_files())
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    directory = folder / digest.hexdigest()[:16]
    if directory.is_dir():
        return directory
    temporary = folder / f".{directory.name}.{os.getpid()}"
    for name, path in files:
        (target := temporary / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    write_atomic(temporary / manifest.SNAPSHOT, json.dumps(manifest.code(), indent=2) + "\n")
    try:
        temporary.rename(directory)
    except OSError:  # another submission has just made it
        shutil.rmtree(temporary)
    return directory


def _files() -> list[tuple[str, Path]]:
    """(name in the copy, file)"""
    package = Path(athanor.__file__).parent
    roots = {"src/athanor": package, **{name: _root(name, package) for name in NAMES}}
    return [
        (f"{name}/{path.relative_to(root).as_posix()}", path)
        for name, root in roots.items()
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name[0] != "."
    ]


def _root(name: str, package: Path) -> Path:
    """The project's own folder of that name, else the repository's."""
    own = catalog.source() / name
    return (own if own.is_dir() else package.parents[1] / name).resolve()
