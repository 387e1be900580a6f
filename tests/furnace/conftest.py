"""The project of `furnace_project`, made once for all tests of this folder."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from furnace_project import Furnace, Outcome

from athanor import cli


@pytest.fixture(scope="session")
def furnace(tmp_path_factory: pytest.TempPathFactory) -> Furnace:
    """The project, its pipeline run once; `furnace.first` is how that ended."""
    furnace = Furnace(tmp_path_factory.mktemp("furnace"))
    furnace.first = furnace.run("pipeline", "experiment=pipelines/tiny", timeout=500)
    assert furnace.first.code == 0, furnace.first.err
    return furnace


@pytest.fixture(scope="session")
def bench(furnace: Furnace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Trainings in forked processes, which spares the imports, and things that go wrong in them."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "faults"))
    from faults import Bench

    bench = Bench(furnace, tmp_path_factory.mktemp("faults"))
    yield bench
    bench.close()


@pytest.fixture
def here(
    furnace: Furnace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """`athanor words` in this process, which spares the imports."""
    for name in [name for name in os.environ if name.startswith(("ATHANOR_", "WANDB_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATHANOR_HOME", str(furnace.folder))
    monkeypatch.chdir(furnace.folder)

    def call(*words: str) -> Outcome:
        started = time.monotonic()
        code = cli.main(words)
        out, err = capsys.readouterr()
        return Outcome(code, out, err, time.monotonic() - started)

    return call
