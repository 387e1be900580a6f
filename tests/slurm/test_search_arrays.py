"""A search as an array on a real SLURM: workers are killed and preempted, and no trial is lost or counted twice."""

import os
from pathlib import Path

import pytest
import yaml
from array_project import Bench
from furnace_project import read_json
from slurm_project import Cluster, wait_until
from test_arrays import ended, numbers_of

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SEARCH = {
    "base": "walk/tiny",
    "space": {"job.size": {"float": [1.0, 5.0]}},
    "metric": {"name": "loss", "better": "lower"},
    "sampler": "tpe",
    "trials": 8,
}


@pytest.fixture
def bench(cluster: Cluster, tmp_path: Path) -> Bench:
    bench = Bench(tmp_path, cluster)
    bench.write("search/size", f"# Which size.\n{yaml.safe_dump(SEARCH, sort_keys=False)}")
    return bench


def submit(bench: Bench, *words: str, **environment: str):
    return bench.run("submit", "sweep", "search=size", "cluster=local-slurm", *words, **environment)


def test_two_of_four_workers_are_killed_and_one_is_preempted(bench: Bench, cluster: Cluster) -> None:
    sent = submit(bench, "--workers", "4")
    assert sent.code == 0, sent.err
    jobs = numbers_of(sent.out)
    assert list(jobs) == ["inputs", "workers", "report"]
    array = jobs["workers"]
    assert f"job {array}_[1-4]" in sent.out
    again = submit(bench)
    assert again.out.startswith("4 workers are in the queue already, 8 trials to go\n")

    def at_work(number: int) -> bool:
        return any(line[-1] == str(number) for line in bench.executions)

    wait_until(lambda: at_work(1) and at_work(2), 240, "the first two workers")
    bench.kill(f"{array}_1")
    bench.kill(f"{array}_2")
    wait_until(lambda: at_work(3), 240, "the third worker")
    cluster.ask("scancel", "--signal=USR1", f"{array}_3")
    for job in (array, jobs["report"]):
        ended(bench, job)

    logs = bench.runs / ".slurm"
    for number in (1, 2):
        assert "athanor: killed by signal 9; going on (1 of 1)" in (logs / f"{array}_{number}.txt").read_text()
    told = bench.run("sweep", "search=size", "cluster=local-slurm", "--list", "--json").out.splitlines()
    trials = [yaml.safe_load(line) for line in told]
    assert [trial["trial"] for trial in trials] == list(range(8))
    assert {trial["status"] for trial in trials} == {"complete"}
    for trial in trials:
        assert trial["value"] == pytest.approx(trial["point"]["job.size"] + 0.1 + 0.25)
    finished = [
        path for path in bench.runs.glob("walk/tiny/*/manifest.json") if read_json(path)["status"] == "finished"
    ]
    assert len(finished) == 8
    names = {line[0] for line in bench.executions} - {"data"}
    assert len(names) == 8
    assert [line[0] for line in bench.executions].count("data") == 1
    assert len(bench.executions) <= 1 + 8 + 3, "begun again only where a worker was killed or preempted"
    page = (next(bench.runs.glob("search/size/*")) / "report.html").read_text()
    assert "8</dd>" in page
    before = len(bench.executions)
    last = submit(bench)
    assert last.out.splitlines()[0] == "already done"
    assert len(bench.executions) == before


@pytest.mark.parametrize(
    ("words", "changed", "said"),
    [
        (["--workers", "0"], {}, "--workers 0 must be at least 1"),
        (["--at-once", "2"], {}, "a search has --workers N"),
        ([], {"space": {"job.sise": {"float": [1.0, 2.0]}}}, "walk/tiny has no 'job.sise'"),
        (["cluster=cpu"], {}, "is not one of SLURM"),
        (["cluster.slurm.memory=lots"], {}, "is not as SLURM writes it"),
    ],
)
def test_a_broken_one_is_refused_before_sbatch(
    bench: Bench, tmp_path: Path, words: list[str], changed: dict, said: str
) -> None:
    (folder := tmp_path / "bin").mkdir()
    (folder / "sbatch").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\necho 1\n")
    (folder / "sbatch").chmod(0o755)
    bench.write("search/size", yaml.safe_dump(SEARCH | changed, sort_keys=False))
    outcome = submit(bench, *words, PATH=f"{folder}:{os.environ['PATH']}")
    assert outcome.code == 2
    assert said in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "called").exists()
    assert not (bench.runs / "search").exists()
