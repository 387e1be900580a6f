"""`athanor submit`, `jobs` and `cancel` on a real SLURM, and what is refused before sbatch is called."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from furnace_project import read_json, steps
from slurm_project import TWO_NODES, Cluster, Rehearsal, listed, run_of, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def submitted(outcome: Any) -> dict[str, str]:
    """Numbers of the jobs by what was submitted."""
    assert outcome.code == 0, outcome.err
    rows = [line.split() for line in outcome.out.splitlines() if line.startswith("job ")]
    return {row[2]: row[1] for row in rows}


def test_what_cluster_says_is_what_slurm_hears(rehearsal: Rehearsal, cluster: Cluster, tmp_path: Path) -> None:
    more = [*TWO_NODES, "cluster.slurm.partition=low", "cluster.slurm.time='1-02:00:00'", "cluster.slurm.memory=1G"]
    more += [
        "cluster.slurm.cpus_per_task=2",
        "cluster.slurm.options=['--hold','--comment=rehearsal']",
        "cluster.devices=2",
    ]
    more += ["cluster.accelerator=gpu", "cluster.slurm.signal_seconds=77"]
    numbers = submitted(rehearsal.run("submit", "train", *rehearsal.words(tmp_path, *more)))
    number = numbers["pretrain/demo"]
    job = cluster.job(number)
    cluster.ask("scancel", number)
    heard = {
        name: job[name] for name in ("Partition", "TimeLimit", "MinMemoryNode", "CPUs/Task", "Comment", "NumNodes")
    }
    assert heard == {
        "Partition": "low", "TimeLimit": "1-02:00:00", "MinMemoryNode": "1G", "CPUs/Task": "2", "Comment": "rehearsal",
        "NumNodes": "2-2",
    }  # fmt: skip
    assert job["NtasksPerN:B:S:C"].startswith("2:")
    assert "gres:gpu:2" in job["TresPerNode"]
    assert job["Requeue"] == "1"
    assert job["WorkDir"] == str(rehearsal.folder)
    record = read_json(tmp_path / f".slurm/{number}.json")
    assert "--signal=USR1@77" in record["command"]
    assert record["cluster"] == "local-slurm"


def test_a_job_runs_the_code_as_it_was_when_it_was_submitted(
    rehearsal: Rehearsal, cluster: Cluster, tmp_path: Path
) -> None:
    """While it is held, the experiment is changed to another seed and the interpreter's own copy is out of reach."""
    path = rehearsal.folder / "experiments/pretrain/demo.yaml"
    before = path.read_text()
    words = rehearsal.words(tmp_path, "max_steps=20", "validate_every_n_steps=10")
    sent = rehearsal.run("submit", "train", *words, "cluster.slurm.options=['--hold']")
    number = submitted(sent)["pretrain/demo"]
    expected = sent.out.split()[3]
    try:
        path.write_text(before.replace("seed: 1", "seed: 2"))
        assert "seed: 2" in path.read_text()
        refused = rehearsal.run("submit", "train", *words)
        assert refused.code == 0, "another seed is another run"
        other = submitted(refused)["pretrain/demo"]
        cluster.ask("scontrol", "release", number)
        assert cluster.wait(number)["JobState"] == "COMPLETED"
    finally:
        path.write_text(before)
    manifest = read_json(tmp_path / expected / "manifest.json")
    assert manifest["science"]["seed"] == 1
    assert manifest["status"] == "finished"
    slurm = manifest["attempts"][-1]["slurm"]
    assert (slurm["job"], slurm["cluster"], slurm["script"]) == (number, "local-slurm", "slurm/train.sbatch")
    codes = {read_json(tmp_path / f".slurm/{job}.json")["code"] for job in (number, other)}
    assert len(codes) == 2
    for code in codes:
        assert (Path(code) / "src/athanor/train.py").is_file()
    cluster.wait(other)


def test_a_pipeline_is_a_chain_of_jobs(rehearsal: Rehearsal, cluster: Cluster, tmp_path: Path) -> None:
    """Each waits for what it reads; a second submission adds no step while they wait, and nothing afterwards."""
    whole = yaml.safe_load((rehearsal.folder / "experiments/pipelines/data.yaml").read_text())["steps"]
    tiny = {step: whole[step] for step in ("tasks", "documents")}
    file = rehearsal.folder / "experiments/pipelines/two.yaml"
    file.write_text(f"# Two steps.\n{yaml.safe_dump({'steps': tiny, 'report': 'Two'}, sort_keys=False)}")
    words = ["pipeline", "experiment=pipelines/two", "cluster=local-slurm", f"paths.runs={tmp_path}"]
    numbers = submitted(rehearsal.run("submit", *words, "cluster.slurm.options=['--begin=now+20']"))
    assert list(numbers) == ["tasks", "documents", "report"]
    waits = cluster.job(numbers["documents"])
    assert waits["Dependency"].startswith(f"afterok:{numbers['tasks']}")
    again = rehearsal.run("submit", *words)
    assert set(submitted(again)) == {"report"}, "the steps are in the queue already"
    cluster.ask("scancel", submitted(again)["report"])
    for number in numbers.values():
        assert cluster.wait(number)["JobState"] == "COMPLETED"
    assert (tmp_path / "pipelines/two/report.html").is_file()
    assert rehearsal.run("submit", *words).out == "already done\n"


def test_modules_environment_and_container_are_made_in_the_job(
    rehearsal: Rehearsal, cluster: Cluster, tmp_path: Path
) -> None:
    """With a module command, a `python` on the environment's path and an apptainer that say that they were called."""
    called, folder = tmp_path / "called", tmp_path / "bin"
    folder.mkdir()
    real = rehearsal.environment["ATHANOR_PYTHON"]
    commands = {
        "python": f'echo "python $2 $3" >>{called}; exec {real} "$@"',
        "apptainer": f'echo "apptainer $1 $2 $3" >>{called}; shift 3; exec "$@"',
    }
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    activate = tmp_path / "activate"
    activate.write_text(f"export PATH={folder}:$PATH\n")
    words = [
        "prepare",
        "experiment=tasks/demo",
        "cluster=local-slurm",
        f"paths.runs={tmp_path}/runs",
        "job.documents=8",
    ]
    words += [f"cluster.slurm.environment={activate}", "cluster.slurm.modules=[cuda/12,gcc]"]
    words += ["cluster.slurm.container=image.sif", *steps()["tasks"]["overrides"]]
    module = f'() {{ echo "module $*" >>{called}; }}'
    number = submitted(rehearsal.run("submit", *words, **{"BASH_FUNC_module%%": module}))["tasks/demo"]
    assert cluster.wait(number)["JobState"] == "COMPLETED"
    assert called.read_text().splitlines() == [
        "module load cuda/12 gcc", "apptainer exec --nv image.sif", "python athanor prepare",
    ]  # fmt: skip


def test_what_follows_a_failed_job_does_not_wait_for_ever(
    rehearsal: Rehearsal, cluster: Cluster, tmp_path: Path
) -> None:
    words = ["pipeline", "experiment=pipelines/data", "cluster=local-slurm", f"paths.runs={tmp_path}"]
    numbers = submitted(rehearsal.run("submit", *words, "cluster.slurm.options=['--begin=now+60']"))
    assert list(numbers) == ["tasks", "documents", "tokenizer", "shards", "report"]
    cluster.ask("scancel", numbers["documents"])
    for step in ("tokenizer", "shards", "report"):
        wait_until(lambda step=step: cluster.job(numbers[step])["JobState"] == "CANCELLED", 30, f"the end of {step}")
    cluster.ask("scancel", numbers["tasks"])


def test_jobs_and_runs_are_joined(rehearsal: Rehearsal, cluster: Cluster, tmp_path: Path) -> None:
    words = rehearsal.words(tmp_path)
    number = submitted(rehearsal.run("submit", "train", *words))["pretrain/demo"]
    wait_until(lambda: run_of(tmp_path) is not None and (run_of(tmp_path) / "metrics.jsonl").exists(), 60, "its start")

    def row() -> dict[str, Any]:
        (found,) = listed(rehearsal.run("jobs", "--json", ATHANOR_RUNS=str(tmp_path)).out)
        return found

    now = row()
    assert (now["id"], now["state"], now["live"], now["name"]) == (number, "RUNNING", True, "pretrain/demo")
    assert now["steps"] == 400
    assert 0 < now["step"] <= 400
    assert now["loss"] > 0
    assert now["has"].startswith("59:") or now["has"] == "1:00:00"
    table = rehearsal.run("jobs", ATHANOR_RUNS=str(tmp_path)).out
    assert table.splitlines()[1].startswith(f"{number} ")
    refused = rehearsal.run("submit", "train", *words)
    assert refused.code == 2
    assert f"athanor: job {number} (running) is for pretrain/demo/" in refused.err
    cluster.wait(number)
    wait_until(lambda: not cluster.ask("squeue", "--noheader", f"--jobs={number}"), 30, "its end")
    after = row()
    assert (after["state"], after["live"], after["step"]) == ("FINISHED", False, 400)
    done = rehearsal.run("submit", "train", *words)
    assert (done.code, done.out) == (0, "already done\n")


# What is refused, without any SLURM: an sbatch that tells on whoever calls it


@pytest.fixture
def guarded(rehearsal: Rehearsal, tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\necho 1\n")
    (folder / "sbatch").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["max_stps=3"], "did you mean 'max_steps'?"),
        (["model.width=wide"], "model.width"),
        (["+cluster.slurm.partion=gpu"], "did you mean 'partition'?"),
        (["cluster.slurm.time=86400"], "cluster.slurm.time"),  # as YAML reads 24:00:00
        (["cluster.slurm.memory=lots"], "cluster.slurm.memory=lots is not as SLURM writes it: 200G"),
        (["cluster.devices=auto"], "SLURM needs to know how many on each node"),
        (["cluster=cpu"], "is not one of SLURM; say cluster=local-slurm or cluster=slurm"),
        (["global_batch_size=9", "cluster.nodes=2"], "the nearest that do: 8 or 10"),
        (["inputs.shards=shards/demo"], " cluster=local-slurm\n"),  # the end of each command that makes one
    ],
)
def test_a_broken_one_is_refused_before_sbatch(
    rehearsal: Rehearsal, guarded: dict[str, str], tmp_path: Path, more: list[str], sentence: str
) -> None:
    outcome = rehearsal.run("submit", "train", *rehearsal.words(tmp_path, *more), **guarded)
    assert outcome.code == 2
    assert sentence in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "called").exists()


def test_a_broken_one_is_refused_within_two_seconds(
    rehearsal: Rehearsal, guarded: dict[str, str], tmp_path: Path
) -> None:
    """Seconds of this process alone: other jobs of the machine are not its fault."""
    words = ["submit", "train", *rehearsal.words(tmp_path, "model.width=wide")]
    code = (
        f"import resource, sys; from athanor import cli; assert cli.main({words!r}) == 2; "
        "assert not {'torch', 'lightning'} & set(sys.modules); u = resource.getrusage(resource.RUSAGE_SELF); "
        "print(u.ru_utime + u.ru_stime)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**rehearsal.environment, **guarded}, cwd=rehearsal.folder, text=True,
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert float(done.stdout) < 2.0


def test_a_full_disk_is_seen(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch, refused: Any, tmp_path: Path
) -> None:
    from athanor import config
    from athanor.cluster import submission

    monkeypatch.setenv("ATHANOR_HOME", str(rehearsal.folder))
    name, *overrides = rehearsal.words(tmp_path)
    experiment = config.load(name.partition("=")[2], overrides)
    submission.check(experiment, upstream=())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**8))
    assert "has 0.1 GB free, and this may write 1.1 GB" in refused(submission.check, experiment, upstream=())


def test_where_there_is_no_sbatch_it_says_where_to_go(rehearsal: Rehearsal, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in ("git", "bash"):
        if found := shutil.which(name):
            (empty / name).symlink_to(found)
    started = time.monotonic()
    outcome = rehearsal.run("submit", "train", *rehearsal.words(tmp_path), PATH=str(empty))
    assert outcome.code == 2, time.monotonic() - started
    assert "there is no `sbatch` here" in outcome.err
    assert "slurm/local-cluster up" in outcome.err
    (empty / "squeue").write_text("#!/bin/sh\necho 'squeue: fatal: failed to fetch config' >&2\nexit 1\n")
    (empty / "squeue").chmod(0o755)
    lost = rehearsal.run("cancel", "1", PATH=str(empty))
    assert lost.code == 2
    assert "knows of no cluster: set SLURM_CONF to its slurm.conf" in lost.err
