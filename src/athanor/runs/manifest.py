"""What a run was made by: code, packages, hardware. No host or user names."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from athanor import catalog

SNAPSHOT = "code.json"  # of a copy of the code: what `code` said where it was made


def code() -> dict[str, Any]:
    """The project's commit, and what lies uncommitted on top of it: a diff, and the hashes of new files."""
    if (copy := catalog.source() / SNAPSHOT).is_file():
        return dict(json.loads(copy.read_text(encoding="utf-8")))
    commit = _git("rev-parse", "HEAD").strip() or None
    if commit is None:
        return {"commit": None, "diff_sha256": None, "diff": ""}
    diff = _git("diff", "HEAD", "--", "src", "configs", "experiments")
    for name in _git("ls-files", "--others", "--exclude-standard", "--", "src", "configs", "experiments").splitlines():
        if (path := catalog.project() / name).is_file():
            diff += f"new file {name} sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}\n"
    return {"commit": commit, "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None, "diff": diff}


def packages() -> dict[str, str]:
    """Versions of what athanor requires, extras too where they are installed."""
    versions = {}
    for requirement in metadata.requires("athanor") or []:
        name = re.split(r"[\s\[<>=!~;(]", requirement, maxsplit=1)[0].lower()
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return dict(sorted(versions.items()))


def hardware() -> dict[str, Any]:
    """Processor, $OMP_NUM_THREADS, cores that may be used, bytes of memory, GPUs, interpreter, operating system."""
    return {
        "cpu": _cpu(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpus(),
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.release()}-{platform.machine()}",
    }


def _cpu() -> str:
    try:
        return re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())[1]  # type: ignore[index]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return listed.stdout.strip().splitlines() if listed.returncode == 0 else []


def _git(*words: str) -> str:
    try:
        done = subprocess.run(
            ["git", *words], cwd=catalog.project(), capture_output=True, encoding="utf-8", errors="replace", timeout=60,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def command() -> str:
    """The command line of this process, by the name a user knows."""
    import shlex

    name = Path(sys.argv[0]).name
    return shlex.join(["athanor" if name == "__main__.py" else name, *sys.argv[1:]])
