"""`slurm/local-cluster`: idempotent, mends what has died, says what is wrong, leaves nothing behind."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from slurm_project import LOCAL_CLUSTER, Cluster

from athanor.cluster import jobs

pytestmark = pytest.mark.slurm


def test_up_again_restarts_only_what_has_died(healthy: Cluster) -> None:
    pids = {path.name: path.read_text() for path in (healthy.folder / "run").glob("*.pid")}
    assert healthy("up", "2").returncode == 0
    assert {path.name: path.read_text() for path in (healthy.folder / "run").glob("*.pid")} == pids
    os.kill(int(pids["slurmd-node2.pid"]), signal.SIGKILL)
    broken = healthy("status")
    assert broken.returncode == 1
    assert "slurmd-node2: dead" in broken.stdout
    assert healthy("up", "2").returncode == 0
    after = {path.name: path.read_text() for path in (healthy.folder / "run").glob("*.pid")}
    assert {name for name in pids if pids[name] != after[name]} == {"slurmd-node2.pid"}
    assert healthy("status").returncode == 0


def test_each_node_offers_what_it_should(cluster: Cluster) -> None:
    said = cluster.ask("srun", "--nodes=2", "--gpus-per-node=2", "sh", "-c", "echo $(hostname) $CUDA_VISIBLE_DEVICES")
    assert sorted(said.split("\n")) == ["", "node1 0,1", "node2 0,1"]


@pytest.mark.parametrize(
    ("words", "environment", "sentence"),
    [
        (("up", "many"), {}, "NODES must be a number from 1 to 99, not 'many'"),
        (("up",), {"ATHANOR_SLURM_DIR": "x" * 90}, "is too long a path; set ATHANOR_SLURM_DIR to a shorter one"),
        (("up",), {"ATHANOR_SLURM_GPUS": "9"}, "ATHANOR_SLURM_GPUS is at most 4"),
    ],
)
def test_it_says_what_is_wrong(
    words: tuple[str, ...], environment: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [str(LOCAL_CLUSTER), *words], env={**os.environ, "ATHANOR_SLURM_DIR": str(tmp_path), **environment},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert sentence in done.stderr


@pytest.mark.parametrize("reason", ["not root", "no servers"])
def test_where_it_cannot_install_it_says_why(reason: str, tmp_path: Path) -> None:
    """`dpkg-query` finds nothing installed; the user may not install, or apt knows no such package."""
    commands = {
        "dpkg-query": "exit 1",
        "id": "echo 1000" if reason == "not root" else "echo 0",
        "sudo": "exit 1",
        "apt-get": "echo 'could not resolve'; exit 100",
        "apt-cache": "echo '  Candidate: (none)'",
    }
    for name, text in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [str(LOCAL_CLUSTER), "up"], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "ATHANOR_SLURM_DIR": str(tmp_path / "d"), "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 1
    wanted = {"not root": "run it as root once", "no servers": "its servers cannot be reached"}[reason]
    assert wanted in done.stderr


def test_a_taken_port_is_named(cluster: Cluster) -> None:
    other = Cluster(Path(f"{cluster.folder}c"))
    other.environment["ATHANOR_SLURM_PORT"] = port = cluster.environment["ATHANOR_SLURM_PORT"]
    try:
        refused = other("up", "1")
        assert refused.returncode == 1
        assert f"port {port} is taken, perhaps by another SLURM; set ATHANOR_SLURM_PORT" in refused.stderr
    finally:
        other("down")


def test_down_leaves_nothing(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of a cluster of its own, with a job in it, beside the other tests' one."""
    other = Cluster(Path(f"{cluster.folder}b"))
    assert other("up", "1").returncode == 0
    pids = [int(path.read_text()) for path in (other.folder / "run").glob("*.pid")]
    environment = {**os.environ, **other.conf}
    subprocess.run(["sbatch", "--output=/dev/null", "--wrap=exec sleep 3000"], env=environment, check=True, timeout=30)
    assert other("down").returncode == 0
    assert not other.folder.exists()
    assert str(other.folder) not in Path("/etc/hosts").read_text()
    for pid in pids:
        state = Path(f"/proc/{pid}/status")
        assert not state.exists() or "State:\tZ" in state.read_text()
    assert other("status").stdout == "down\n"
    assert other("down").returncode == 0, "a second time too"
    shutil.rmtree(other.folder, ignore_errors=True)


@pytest.fixture
def kept_account(tmp_path_factory: pytest.TempPathFactory):
    """One node with slurmdbd and MariaDB; where they cannot be installed, the test says why and is skipped."""
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="athanor-")))
    try:
        started = cluster("up", "1", "--accounting")
        if started.returncode:
            why = f"no accounting here: {(started.stderr.splitlines() or ['?'])[-1]}"
            pytest.skip(why)
        yield cluster
    finally:
        cluster("down")
        shutil.rmtree(cluster.folder, ignore_errors=True)


@pytest.mark.slow
def test_with_accounting_the_end_of_every_job_is_known(
    kept_account: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has left the queue and never began a run: only sacct knows what became of it."""
    endings = {"true": "COMPLETED", "exit 3": "FAILED", "sleep 600": "CANCELLED"}
    numbers = {}
    for place, command in enumerate(endings):
        words = ["sbatch", "--parsable", "--mem=10", "--output=/dev/null", f"--wrap={command}"]
        numbers[command] = kept_account.ask(*words).strip()
        record = {"job": numbers[command], "name": f"x/{place}", "fingerprint": "0", "directory": None,
                  "log": str(tmp_path / "no.txt"), "submitted": place}  # fmt: skip
        (tmp_path / ".slurm").mkdir(exist_ok=True)
        (tmp_path / f".slurm/{numbers[command]}.json").write_text(json.dumps(record))
    array = kept_account.ask("sbatch", "--parsable", "--mem=10", "--output=/dev/null", "--array=1-2",
                             "--wrap=exit $((SLURM_ARRAY_TASK_ID - 1))").strip()  # fmt: skip
    elements = {str(n): {"title": "", "name": "x/array", "fingerprint": "0", "directory": None} for n in (1, 2)}
    (tmp_path / f".slurm/{array}.json").write_text(
        json.dumps({"job": array, "log": str(tmp_path / "no.txt"), "submitted": 9, "elements": elements})
    )
    kept_account.wait(numbers["sleep 600"], "RUNNING")
    kept_account.ask("scancel", numbers["sleep 600"])
    monkeypatch.setenv("SLURM_CONF", kept_account.conf["SLURM_CONF"])
    wanted = {numbers[command]: state for command, state in endings.items()}
    wanted |= {f"{array}_1": "COMPLETED", f"{array}_2": "FAILED"}
    found: dict[str, str] = {}

    def told() -> bool:
        found.update({job.id: job.state for job in jobs.listed(tmp_path)})
        return found == wanted

    until = time.monotonic() + 60
    while not told():
        assert time.monotonic() < until, (found, wanted)
        time.sleep(0.5)
    assert not any(job.live for job in jobs.listed(tmp_path))
    assert kept_account("status").returncode == 0
    pids = {path.stem: int(path.read_text()) for path in (kept_account.folder / "run").glob("*.pid")}
    assert {"mariadbd", "slurmdbd"} <= pids.keys()
    os.kill(pids["slurmdbd"], signal.SIGKILL)
    assert "slurmdbd: dead" in kept_account("status").stdout
    assert kept_account("up", "1", "--accounting").returncode == 0
    assert {job.id: job.state for job in jobs.listed(tmp_path)} == wanted, "it was written down"
    assert kept_account("down").returncode == 0
    assert not kept_account.folder.exists()
    for name, pid in pids.items():
        state = Path(f"/proc/{pid}/status")
        assert not state.exists() or "State:\tZ" in state.read_text(), name
