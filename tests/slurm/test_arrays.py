"""`athanor submit sweep` on a real SLURM: members are killed, preempted, or fail; nothing is sent or done twice."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from array_project import Bench
from furnace_project import read_json
from slurm_project import Cluster, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def numbers_of(out: str) -> dict[str, str]:
    """Of the jobs that were sent; an array's without its elements."""
    return {key: number for number, key in re.findall(r"^job (\d+)\S* +(\w+)$", out, re.MULTILINE)}


def members_of(elements: list[str]) -> list[int]:
    """`7_1` and `7_[2,4-6]` are the members 1, 2, 4, 5, 6."""
    pieces = [piece for element in elements for piece in element.partition("_")[2].strip("[]").split(",")]
    ends = [(piece.partition("-")[0], piece.rpartition("-")[2]) for piece in pieces]
    return sorted(number for first, last in ends for number in range(int(first), int(last) + 1))


@pytest.fixture
def bench(cluster: Cluster, tmp_path: Path) -> Bench:
    return Bench(tmp_path, cluster)


def ended(bench: Bench, number: str) -> None:
    wait_until(lambda: not bench.cluster.ask("squeue", "--noheader", f"--jobs={number}"), 300, f"the end of {number}")


def test_an_array_survives_what_happens_to_its_members_and_is_sent_once(bench: Bench, cluster: Cluster) -> None:
    """Of six members, two at a time: 1 is killed; 2 fails, however often it begins; 6, whose job has the number of the
    whole array, is preempted when the others are done. Nobody watches.
    """
    (bench.folder / "raise/2-1").touch()
    sent = bench.submit("--at-once", "2")
    assert sent.code == 0, sent.err
    jobs = numbers_of(sent.out)
    assert list(jobs) == ["inputs", "members", "report"]
    array = jobs["members"]
    assert f"job {array}_[1-6]" in sent.out
    assert cluster.job(f"{array}_6")["Dependency"].startswith(f"afterok:{jobs['inputs']}")
    assert cluster.job(f"{array}_6")["ArrayTaskThrottle"] == "2"
    again = bench.submit()
    assert again.out.startswith("0 of 6 members are finished, the others are in the queue already\n")
    rows = [row.split()[0] for row in bench.run("jobs", "size").out.splitlines() if row.startswith(f"{array}_")]
    waiting = [row for row in rows if row.endswith("]")]
    assert len(waiting) == 1, "those that wait are one row, whoever has begun by now"
    assert members_of(rows) == [1, 2, 3, 4, 5, 6]

    wait_until(lambda: bench.step(1) >= 5, 120, "the first member")
    bench.kill(f"{array}_1")
    wait_until(lambda: bench.step(6) >= 3, 300, "the last member")
    rows = {job["id"]: job for job in bench.listed()}
    last = rows[f"{array}_6"]
    assert (last["state"], last["member"], last["live"]) == ("RUNNING", "6: 3.0 seed 2", True)
    assert last["step"] >= 3
    assert last["loss"] > 3
    assert last["log"].endswith(f"/{array}_6.txt")
    assert rows[f"{array}_2"]["state"] == "FAILED"
    cluster.ask("scancel", "--signal=USR1", f"{array}_6")
    wait_until(lambda: cluster.job(f"{array}_6")["Restarts"] == "1", 60, "the requeue of the last")
    ended(bench, array)
    ended(bench, jobs["report"])

    logs = bench.runs / ".slurm"
    assert "athanor: killed by signal 9; going on (1 of 1)" in (logs / f"{array}_1.txt").read_text()
    assert "trying again (1 of 1)" in (logs / f"{array}_2.txt").read_text()
    assert bench.statuses() == {1: "finished", 2: "failed", 3: "finished", 4: "finished", 5: "finished", 6: "finished"}
    done = bench.executions
    assert [line[0] for line in done].count("data") == 1
    begun = {number: [int(line[1]) for line in done if line[-1] == str(number)] for number in range(1, 7)}
    assert begun[1][0] == 0
    assert begun[1][1] >= 5, "it went on where it was"
    assert begun[2] == [0, 0]
    assert begun[6][0] == 0
    assert begun[6][1] >= 3
    assert [len(begun[number]) for number in (1, 3, 4, 5, 6)] == [2, 1, 1, 1, 2], "nobody else began again"
    page = (bench.runs / "ablations/size/report.md").read_text()
    assert "2.0" in page
    values = (bench.runs / "ablations/size/members.csv").read_text().splitlines()
    assert [line for line in values if ",1.35" in line], "size 1, seed 1"
    (run,) = [path for path in bench.runs.glob("walk/tiny/*/manifest.json") if read_json(path)["science"]["seed"] == 2
              and read_json(path)["science"]["job"]["size"] == 3.0]  # fmt: skip
    attempts = [attempt["slurm"] for attempt in read_json(run)["attempts"]]
    assert [(a["job"], a["restarts"], a["cluster"], a["script"]) for a in attempts] == [
        (f"{array}_6", restart, "local-slurm", "slurm/sweep.sbatch") for restart in (0, 1)
    ]  # fmt: skip

    (bench.folder / "raise/2-1").unlink()
    third = bench.submit()
    assert "5 of 6 members are finished, 0 in the queue already" in third.out
    jobs = numbers_of(third.out)
    assert list(jobs) == ["members", "report"]
    assert f"job {jobs['members']}_[2] " in third.out
    ended(bench, jobs["report"])
    assert set(bench.statuses().values()) == {"finished"}
    assert len(bench.executions) == len(done) + 1
    last = bench.submit()
    assert last.code == 0
    assert last.out.splitlines()[0] == "already done"


def test_cancelled_by_the_ablation_nothing_of_it_is_left(bench: Bench, cluster: Cluster) -> None:
    long = "+job.steps=4000"
    jobs = numbers_of(bench.submit("--at-once", "1", long).out)
    wait_until(lambda: bench.step(1) >= 1, 120, "the first member")
    one = bench.run("cancel", f"{jobs['members']}_3")
    assert one.out == f"cancelled {jobs['members']}_3  walk/tiny\n", one.err
    cancelled = bench.run("cancel", "size").out.splitlines()
    assert f"cancelled {jobs['members']}_1  walk/tiny" in cancelled
    assert f"cancelled {jobs['members']}_[2,4-6]  walk/tiny" in cancelled
    assert f"cancelled {jobs['report']}  ablations/size: report" in cancelled
    for number in (jobs["members"], jobs["report"]):
        ended(bench, number)
    assert bench.statuses(long)[1] == "interrupted", "it was told, not killed"
    assert 0 < bench.step(1) < 4000
    assert [line[0] for line in bench.executions] == ["data", "1-1"], "and nobody began after it"


@pytest.fixture
def guarded(bench: Bench, tmp_path: Path) -> dict[str, str]:
    """An sbatch that tells on whoever calls it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\necho 1\n")
    (folder / "sbatch").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("words", "factors", "said"),
    [
        (["job.sise=3"], None, ["did you mean 'job.size'?"]),
        ([], {"job.size": [1.0, "wide", "long"]}, ["wide: walk/tiny cannot run: job.size", "long: walk/tiny cannot"]),
        (["cluster.slurm.memory=lots"], None, ["cluster.slurm.memory=lots is not as SLURM writes it"]),
        (["cluster=cpu"], None, ["is not one of SLURM; say cluster=local-slurm"]),
        ([], {"job.size": {"a": [], "b": ["job.size=2.0", "cluster.slurm.memory=3G"]}}, ["elements of an array are"]),
        (["--at-once", "0"], None, ["--at-once 0 must be at least 1"]),
    ],
)
def test_a_broken_one_is_refused_before_sbatch(
    bench: Bench, guarded: dict[str, str], words: list[str], factors: dict | None, said: list[str]
) -> None:
    if factors:
        path = bench.folder / "experiments/ablations/size.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "factors": factors}))
    outcome = bench.submit(*words, **guarded)
    assert outcome.code == 2
    for sentence in said:
        assert sentence in outcome.err
    assert "Traceback" not in outcome.err
    assert not (bench.folder / "called").exists()


def test_a_broken_base_of_24_members_is_refused_within_two_seconds(bench: Bench, guarded: dict[str, str]) -> None:
    """Seconds of this process alone: other jobs of the machine are not its fault."""
    path = bench.folder / "experiments/ablations/size.yaml"
    path.write_text(path.read_text().replace("walk/tiny", "pretrain/demo").replace("job.size", "model.layers")
                    .replace("- 1\n- 2\n", "- 1\n- 2\n- 3\n- 4\n- 5\n- 6\n- 7\n- 8\n")
                    .replace("1.0", "1").replace("2.0", "2").replace("3.0", "3"))  # fmt: skip
    words = ["submit", "sweep", "ablation=size", "cluster=local-slurm", "model.width=wide"]
    code = (
        f"import resource, sys; from athanor import cli; assert cli.main({words!r}) == 2; "
        "assert not {'torch', 'lightning'} & set(sys.modules); u = resource.getrusage(resource.RUSAGE_SELF); "
        "print(u.ru_utime + u.ru_stime)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**bench.environment, **guarded}, cwd=bench.folder, text=True,
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stderr.count("model.width") == 1, "of all members, once"
    assert float(done.stdout) < 2.0
