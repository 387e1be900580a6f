"""SLURM and the project, started once for all tests of this folder."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "furnace"))

from slurm_project import TWO_NODES, Cluster, Rehearsal, run_of


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes; where they cannot be started, the tests say why and are skipped."""
    folder = Path(tempfile.mkdtemp(prefix="athanor-"))  # not below pytest's, whose paths are too long for a socket
    cluster = Cluster(folder)
    try:
        started = cluster("up", "2")
        if started.returncode:
            why = f"no SLURM here: {(started.stderr.splitlines() or ['?'])[-1]}"
            pytest.fail(f"{why}\n{started.stderr}") if os.environ.get("CI") else pytest.skip(why)
        yield cluster
    finally:
        cluster("down")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def rehearsal(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    return Rehearsal(tmp_path_factory.mktemp("slurm"), cluster)


@pytest.fixture(scope="session")
def undisturbed(rehearsal: Rehearsal, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The run of a training on that many nodes, made by a job that nothing happened to."""
    made: dict[int, Any] = {}
    one_at_a_time = threading.Lock()

    def make(nodes: int) -> Path:
        with one_at_a_time:
            if nodes not in made:
                runs = tmp_path_factory.mktemp(f"undisturbed-{nodes}")
                more = TWO_NODES if nodes == 2 else []
                flags = (f"--nodes={nodes}",)
                number = rehearsal.sbatch("slurm/train.sbatch", *rehearsal.words(runs, *more), flags=flags)
                assert rehearsal.cluster.wait(number)["JobState"] == "COMPLETED", rehearsal.said(number)
                made[nodes] = run_of(runs)
            return made[nodes]

    return make


@pytest.fixture(scope="module")
def at_once(
    request: pytest.FixtureRequest,
    cluster: Cluster,
    rehearsal: Rehearsal,
    undisturbed: Callable[[int], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Future[None]]]:
    """What becomes of the file's tests that are to run `together`, of those that were chosen."""
    tests = [item for item in request.session.items if item.path == request.path and hasattr(item.function, "body")]
    shared = {"cluster": cluster, "rehearsal": rehearsal, "undisturbed": undisturbed}
    with ThreadPoolExecutor(len(tests)) as pool:
        futures = {}
        for item in tests:
            wanted = signature(item.function.body).parameters
            given = {name: value for name, value in shared.items() if name in wanted}
            futures[item.name] = pool.submit(item.function.body, **given, tmp_path=tmp_path_factory.mktemp("together"))
        yield futures


@pytest.fixture
def healthy(cluster: Cluster) -> Iterator[Cluster]:
    """For tests that break it: every node is up again afterwards."""
    yield cluster
    restarted = cluster("up", "2")
    assert restarted.returncode == 0, restarted.stderr
