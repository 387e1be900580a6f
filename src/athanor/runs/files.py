"""Files that are whole or absent, and their SHA-256, remembered for as long as the file is untouched."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

PARTIAL = ".partial"  # the end of a temporary's name


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` in one step: after a crash it holds the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    with temporary.open("wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """As `write_atomic`, indented, keys in the order given."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def remove(path: Path) -> None:
    """A file, or a folder, which first gets a temporary's name: it is never half there under its own."""
    if path.is_dir():
        gone = path if path.name.endswith(PARTIAL) else path.with_name(f"{path.name}.old{PARTIAL}")
        if gone != path:
            shutil.rmtree(gone, ignore_errors=True)
            path.replace(gone)
        shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hex digest of the bytes of a file, read now."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Hashes:
    """SHA-256 of files, kept in `<runs>/.cache/hashes.json` by path, size, times of change and inode.

    A file changed within the last two seconds is not remembered: a second change may fall on the same time stamp.
    """

    def __init__(self, runs: Path) -> None:
        self._path = runs / ".cache" / "hashes.json"
        self._known: dict[str, list[Any]] | None = None
        self._changed = False

    def __call__(self, path: Path, *, fresh: bool = False) -> str:
        """The hash of the file as it is; `fresh` reads it even where it seems untouched."""
        stat = path.stat()
        key = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        known = self._load()
        name = os.path.abspath(path)
        if not fresh and (entry := known.get(name)) and entry[:4] == key:
            return str(entry[4])
        digest = sha256(path)
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > 2_000_000_000:
            known[name] = [*key, digest]
            self._changed = True
        return digest

    def save(self) -> None:
        """Keep what was learnt. Of two processes the last one wins, which costs the other a second reading."""
        if self._changed:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, json.dumps(self._known, separators=(",", ":")))
            self._changed = False

    def _load(self) -> dict[str, list[Any]]:
        if self._known is None:
            try:
                self._known = json.loads(self._path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                self._known = {}
        assert self._known is not None
        return self._known
