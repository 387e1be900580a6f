"""A project whose runs do not exist yet: the repository's own experiments, a folder of runs that is empty."""

from __future__ import annotations

import pytest

from athanor import config
from athanor.planning import plan as planning
from small import REPOSITORY


@pytest.fixture(autouse=True)
def empty(tmp_path, monkeypatch):
    monkeypatch.setenv("ATHANOR_HOME", str(REPOSITORY))
    monkeypatch.setenv("ATHANOR_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def planned():
    """Plans an experiment with overrides; keywords are the command line's wishes."""

    def call(name: str, *overrides: str, **wishes):
        wishes.setdefault("rate", 1000.0)  # no measurement of this machine
        return planning.plan(config.load(name, overrides), planning.Wishes(**wishes))

    return call
