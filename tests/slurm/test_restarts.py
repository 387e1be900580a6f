"""What a restart of a job means for its run, in real processes that are told by their environment that they are in a
job.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from slurm_project import begun, wait_for_step, wait_until

from athanor import signals, slurm
from athanor.callbacks.preemption import Preemption
from athanor.runs.context import rank

JOB = {"SLURM_JOB_ID": "7", "SLURM_CLUSTER_NAME": "none"}


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


@pytest.mark.slow
@pytest.mark.slurm
def test_an_attempt_that_a_lost_node_still_runs_gives_way_to_the_restart(
    rehearsal: Any, undisturbed: Any, tmp_path: Path
) -> None:
    """SLURM takes a node for dead that only cannot be reached, and starts the job again elsewhere."""
    from slurm_project import assert_same

    words = ["train", *rehearsal.words(tmp_path, "checkpoint.every_n_steps=20")]
    lost = rehearsal.start(*words, **JOB)
    run = wait_for_step(tmp_path, 25)
    again = rehearsal.run(*words, **JOB, SLURM_RESTART_COUNT="1", timeout=500)
    _, err = lost.communicate(timeout=60)
    assert lost.returncode == 128 + signal.SIGTERM, err
    assert "athanor: this job has been restarted elsewhere; leaving the run to it" in err
    assert again.code == 0, again.err
    assert_same(run, undisturbed(1))


@pytest.mark.slow
@pytest.mark.slurm
def test_another_job_on_the_same_run_does_not_push_it_out(rehearsal: Any, tmp_path: Path) -> None:
    words = ["train", *rehearsal.words(tmp_path)]
    first = rehearsal.start(*words, **JOB)
    run = wait_for_step(tmp_path, 5)
    second = rehearsal.run(*words, SLURM_JOB_ID="8")
    assert second.code == 2
    assert f"process {first.pid} is working on {run}" in second.err
    assert first.wait(timeout=120) == 0


@pytest.mark.slow
@pytest.mark.slurm
def test_a_job_that_always_dies_at_the_same_step_is_stopped(rehearsal: Any, tmp_path: Path) -> None:
    words = ["train", *rehearsal.words(tmp_path)]
    for restart in range(slurm.DEATHS):
        process = rehearsal.start(*words, **JOB, SLURM_RESTART_COUNT=str(restart))
        if restart == 0:
            run = wait_for_step(tmp_path, 2)
        else:
            known = len(list(tmp_path.glob("*/*/*/manifest.json")))
            wait_until(lambda: known > 0 and _restarts(tmp_path) == restart, 60, "the attempt")  # noqa: B023
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    last = rehearsal.run(*words, **JOB, SLURM_RESTART_COUNT=str(slurm.DEATHS))
    assert last.code == 2
    assert "job 7 has died 3 times in a row without a step after 0, and would again" in last.err
    fresh = rehearsal.start(*words, SLURM_JOB_ID="9")
    wait_until(lambda: begun(run) >= 1 and _restarts(tmp_path, "9") == 0, 60, "a new job")
    fresh.terminate()
    fresh.communicate(timeout=60)


def _restarts(runs: Path, job: str = "7") -> int | None:
    from furnace_project import read_json

    (path,) = runs.glob("*/*/*/manifest.json")
    last = read_json(path)["attempts"][-1]["slurm"]
    return last["restarts"] if last["job"] == job else None


def test_restarts_are_bounded(monkeypatch: pytest.MonkeyPatch, refused: Any) -> None:
    monkeypatch.setenv("ATHANOR_REQUEUES", "3")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "4")
    slurm.check_restarts([], step=0)  # not in a job
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert "has been restarted 4 times, and cluster.slurm.requeues allows 3" in refused(
        slurm.check_restarts, [], step=0
    )
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    slurm.check_restarts([], step=0)


@pytest.mark.parametrize(
    ("died", "steps", "stops"),
    [
        ([True, True, True], [4, 4, 4], True),
        ([True, True], [4, 4], False),
        ([True, False, True], [4, 4, 4], False),  # one of them was told to stop
        ([True, True, True], [2, 4, 4], False),  # the first of them got somewhere
        ([True, True, True, True], [2, 4, 4, 4], True),
    ],
)
def test_only_deaths_in_a_row_at_one_step_count(
    monkeypatch: pytest.MonkeyPatch, refused: Any, died: list[bool], steps: list[int], stops: bool
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    made = [{"slurm": {"job": "7"}, "died": d, "from_step": step} for d, step in zip(died, steps)]
    if stops:
        assert "without a step after 4" in refused(slurm.check_restarts, made, step=4)
        slurm.check_restarts(made, step=6)
        slurm.check_restarts([{**attempt, "slurm": {"job": "6"}} for attempt in made], step=4)
    else:
        slurm.check_restarts(made, step=4)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"), ("gpu[07-09,12],cpu1", "gpu07"), ("a100-[3,5]", "a100-3"), ("x,y", "x"),
        ("r1[01-02]-ib0,z", "r101-ib0"), ("dgx-01.site.org", "dgx-01.site.org"),
    ],
)  # fmt: skip
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    assert slurm.first_node(nodes) == first


def test_neighbours_and_restarts_meet_at_different_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that starts again where its last processes still hold the port, and tasks of an array on one node."""

    def port(job: int, restart: int, step: int) -> int:
        monkeypatch.setenv("SLURM_JOB_ID", str(job))
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        monkeypatch.setenv("SLURM_STEP_ID", str(step))
        return slurm.port()

    near = {(job, restart, step) for job in range(90_000, 90_100) for restart in range(3) for step in range(3)}
    ports = [port(*one) for one in near]
    assert len(set(ports)) == len(near)
    assert 12_000 <= min(ports) <= max(ports) < 32_768, "below those that the kernel hands out"


def test_ranks_of_a_step_and_not_of_a_batch_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch script hands SLURM_PROCID=0 to all it starts, Lightning's own second process too."""
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert rank() == 1
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert rank() == 3


@pytest.fixture
def handled() -> Iterator[None]:
    with signals.handled(note=False):
        yield


def test_what_cannot_save_ends_on_sigterm_and_goes_on_after_sigusr1(handled: None, capfd: Any) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    assert "nothing to save half-way" in capfd.readouterr().err
    with pytest.raises(SystemExit) as ended:
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143


def test_a_training_takes_note_and_what_follows_it_acts(handled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with signals.noting(True):
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.noted() == signal.SIGTERM
        with pytest.raises(SystemExit) as ended, signals.noting(False):
            pytest.fail("a job that cannot save began after the signal")
    assert ended.value.code == signals.REQUEUE


class TwoRanks:
    """The all-reduce of two ranks, each of which is a `Preemption`, without processes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ranks = [Preemption(SimpleNamespace(), Path()) for _ in range(2)]  # type: ignore[arg-type]
        self.sent: list[torch.Tensor] = []
        for one in self.ranks:
            one.group = "two"
        monkeypatch.setattr("athanor.callbacks.preemption.dist.all_reduce", self.all_reduce)

    def all_reduce(self, number: torch.Tensor, op: Any, group: Any, async_op: bool) -> Any:
        assert async_op
        self.sent.append(number)
        return SimpleNamespace(wait=lambda: None)

    def step(self, *said: int) -> list[int]:
        agreed = [one.agreed(number) for one, number in zip(self.ranks, said)]
        for number in self.sent:  # what the collective gives to both, once both have called it
            number.fill_(max(said))
        self.sent = []
        return agreed


def test_ranks_agree_on_the_step_though_one_hears_of_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    two = TwoRanks(monkeypatch)
    assert two.step(0, 0) == [0, 0]
    assert two.step(0, 10) == [0, 0], "the one that heard waits for the other"
    assert two.step(10, 10) == [10, 10]
