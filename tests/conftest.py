"""A project of its own for each test: the real configs, tiny experiments, real files."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it puts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


TOGETHER = ("slurm", "strategies", "furnace")  # folders that share something costly, and take longest: they begin


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """How `pytest -n 2 --dist loadgroup` deals tests out: by file, and some folders whole."""

    def group(item: pytest.Item) -> str:
        parts = item.path.relative_to(REPOSITORY / "tests").parts
        return parts[0] if parts[0] in TOGETHER else "/".join(parts)

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=lambda item: TOGETHER.index(group(item)) if group(item) in TOGETHER else len(TOGETHER))


class Project:
    """A folder with `configs/`, `experiments/`, two documents in `data/`, and the working directory in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(REPOSITORY / "configs", folder / "configs")
        self.write("data/a.txt", "one ").write("data/b.txt", "two ")
        self.experiment(
            "documents/tiny",
            """
            # Join the two documents.
            defaults: [/prepare, _self_]
            allowed_targets: [tiny]
            inputs:
              raw: {files: data/*.txt}
            job:
              _target_: tiny.Join
              files: ${inputs.raw}
              num_workers: ${cluster.num_workers}
            """,
        )
        self.experiment(
            "repeat/tiny",
            """
            # Repeat the documents.
            defaults: [/prepare, _self_]
            allowed_targets: [tiny]
            inputs: {documents: documents/tiny}
            job: {_target_: tiny.Repeat, documents: "${inputs.documents}", times: 2}
            """,
        )

    def write(self, path: str, text: str) -> Project:
        (target := self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        return self

    def experiment(self, name: str, text: str) -> Project:
        lines = text.strip("\n").splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip())
        return self.write(f"experiments/{name}.yaml", "\n".join(line[indent:] for line in lines) + "\n")

    def athanor(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The command line in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "athanor", *words],
            cwd=self.folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    @property
    def executions(self) -> list[str]:
        """Which jobs ran, in order."""
        path = self.folder / "executions"
        return path.read_text().split() if path.exists() else []


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in ("ATHANOR_HOME", "ATHANOR_RUNS", "ATHANOR_DATA_ROOT", "ATHANOR_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY / "tests")]))
    return Project(tmp_path)


@pytest.fixture
def refused() -> Callable[..., str]:
    """Call something that must raise a UserError, and return its text."""
    from athanor.errors import UserError

    def call(function: Callable[..., object], *arguments: object, **keywords: object) -> str:
        with pytest.raises(UserError) as caught:
            function(*arguments, **keywords)
        return str(caught.value)

    return call
