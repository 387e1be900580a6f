"""What the corpus' tests share: a folder to run jobs in, and the real data sets."""

import os
from pathlib import Path

import pytest
from corpus_harness import Context, Outputs


@pytest.fixture
def job(tmp_path, monkeypatch):
    """job(name, object) runs it in a folder of that name and returns the folder. Input runs are opened unverified."""
    import athanor.runs.store

    monkeypatch.setattr(athanor.runs.store, "open_run", Outputs)

    def execute(name, task):
        context = Context(tmp_path / name)
        context.metrics = task.run(context)
        assert context.progress.last[0] == context.progress.last[1] > 0
        assert not list(context.directory.glob(".*")) + list(context.directory.glob("*.partial"))
        return context.directory

    return execute


@pytest.fixture
def context(tmp_path):
    return Context(tmp_path / "run")


@pytest.fixture
def shared():
    """The folder of real data sets, where there is one."""
    root = Path(os.environ.get("ATHANOR_DATA_ROOT", Path(__file__).parents[3] / "shared" / "data"))
    if not (root / "manifest.json").exists():
        pytest.skip("needs the shared data sets: set ATHANOR_DATA_ROOT")
    return root
