"""Jobs that are told to stop, preempted, cancelled, or lose their node: trainings end as if nothing had happened.

Each of the ways in which Lightning's own requeuing goes wrong (a signalled data worker, one signalled rank, a signal
before training begins, a silent end on SIGTERM, shared checkpoints, processes that do not fit the config) is here.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_project import (
    STEPS,
    TWO_NODES,
    Cluster,
    Rehearsal,
    assert_same,
    attempts,
    begun,
    quoted,
    run_of,
    together,
    wait_for_step,
    wait_until,
)

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_signalled_preempted_and_a_node_lost_it_ends_with_the_same_weights(
    rehearsal: Rehearsal, healthy: Cluster, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    """Of two nodes. USR1 to one rank alone and its data-loading workers; then SIGTERM, because a job of a higher
    partition wants the nodes; then one of them is without power, which costs only what came after the last checkpoint.
    It is called bash, as an interactive job is.
    """
    more = [*TWO_NODES, "cluster.num_workers=1", "checkpoint.every_n_steps=20", "cluster.slurm.partition=low"]
    more += ["cluster.hang_seconds=60", "cluster.slurm.requeues=3"]  # a hang ends it, and leaves its stacks
    more += ["cluster.slurm.options=['--exclusive','--job-name=bash']"]
    sent = rehearsal.run("submit", "train", *rehearsal.words(tmp_path, *more))
    assert sent.code == 0, sent.err
    number = sent.out.split()[1]
    run = wait_for_step(tmp_path, 5)
    for process in healthy.processes(number, rank=1):
        os.kill(process, signal.SIGUSR1)
    log = tmp_path / f".slurm/{number}.txt"
    wait_until(lambda: int(healthy.job(number)["Restarts"]) == 1, 120, "the requeue after USR1 to rank 1")

    def goes_on(attempt: int, steps: int) -> int:
        """The step at which that attempt has done so many."""
        wait_until(lambda: len(attempts(run)) == attempt, 120, f"attempt {attempt}")
        first = attempts(run)[-1]["from_step"]
        wait_until(lambda: begun(run) >= first + steps, 120, f"steps of attempt {attempt}")
        return begun(run)

    goes_on(2, 1)
    rival = rehearsal.sbatch("--exclusive", "--nodes=2", "--wrap=sleep 1")
    healthy.wait(rival)
    wait_until(lambda: int(healthy.job(number)["Restarts"]) == 2, 120, "the requeue after SIGTERM")

    goes_on(3, 25)
    healthy.kill_node("node2")
    before = begun(run)
    wait_until(lambda: int(healthy.job(number)["Restarts"]) == 3, 120, "the requeue after the loss of node 2")
    assert healthy("up", "2").returncode == 0
    job = healthy.wait(number)
    assert job["JobState"] == "COMPLETED", "\n".join(p.read_text() for p in (log, *sorted(run.glob("watch/*.txt"))))
    assert healthy.job(number)["Restarts"] == "3"

    assert_same(run, undisturbed(2))
    made = attempts(run)
    assert [attempt["slurm"]["restarts"] for attempt in made] == [0, 1, 2, 3]
    assert [attempt["status"] for attempt in made[:2]] == ["interrupted"] * 2
    assert made[3]["status"] == "finished"
    assert 0 < made[1]["from_step"] < made[2]["from_step"] < made[3]["from_step"] < STEPS
    assert made[3]["from_step"] in (before // 20 * 20, before // 20 * 20 - 20)
    said = log.read_text()
    assert said.count("athanor: SIGUSR1: saved at step") == 1, "one rank speaks"
    assert said.count("athanor: SIGTERM: saved at step") == 1


def test_a_rank_that_is_stopped_is_named_and_the_job_goes_back_into_the_queue(
    rehearsal: Rehearsal, cluster: Cluster, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    """Though a task of it had to be killed, of which alone srun tells."""
    two = ["strategy=ddp", "cluster.devices=2", "cluster.hang_seconds=6", "checkpoint.every_n_steps=20"]
    number = rehearsal.sbatch(
        "slurm/train.sbatch", *rehearsal.words(tmp_path, *two), flags=("--nodes=1", "--ntasks-per-node=2")
    )
    run = wait_for_step(tmp_path, 45)
    for process in cluster.processes(number, rank=1):
        os.kill(process, signal.SIGSTOP)
    wait_until(lambda: int(cluster.job(number)["Restarts"]) == 1, 60, "the requeue")
    assert cluster.wait(number)["JobState"] == "COMPLETED", rehearsal.said(number)
    assert "athanor: no progress for 6 s: rank 1 does not answer (stopped)" in rehearsal.said(number)
    assert_same(run, undisturbed(2))
    hung, last = attempts(run)
    assert hung["died"]
    assert last["from_step"] >= 20


@together
def test_cancelled_it_saves_itself_and_stays_cancelled(
    rehearsal: Rehearsal, cluster: Cluster, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    """`scontrol requeue` would bring it back to life."""
    words = rehearsal.words(tmp_path)
    sent = rehearsal.run("submit", "train", *words)
    assert sent.code == 0, sent.err
    number = sent.out.split()[1]
    run = wait_for_step(tmp_path, 5)
    cancelled = rehearsal.run("cancel", number, ATHANOR_RUNS=str(tmp_path))
    assert cancelled.out == f"cancelled {number}  pretrain/demo\n", cancelled.err
    wait_until(lambda: not cluster.ask("squeue", "--noheader", f"--jobs={number}"), 60, "its end")
    assert cluster.job(number)["JobState"] == "CANCELLED"
    (saved,) = (run / "checkpoints").glob("step-*.ckpt")
    assert int(saved.stem[5:]) == begun(run)
    again = rehearsal.run("submit", "train", *words)
    assert cluster.wait(again.out.split()[1])["JobState"] == "COMPLETED"
    assert_same(run, undisturbed(1))


@together
def test_signals_before_the_first_step_do_not_kill_it(rehearsal: Rehearsal, cluster: Cluster, tmp_path: Path) -> None:
    """USR1 twenty times a second, from the moment that the job step begins: before Python handles it, while it imports,
    while it builds.
    """
    words = rehearsal.words(tmp_path, "max_steps=20", "validate_every_n_steps=10")
    number = rehearsal.sbatch("slurm/train.sbatch", *words, ATHANOR_REQUEUES="2")
    cluster.wait(number, "RUNNING")
    until = time.monotonic() + 180
    while cluster.job(number)["Restarts"] == "0":
        assert cluster.job(number)["JobState"] in ("RUNNING", "COMPLETING"), rehearsal.said(number)
        assert time.monotonic() < until
        with contextlib.suppress(subprocess.TimeoutExpired):  # of a job that is ending, scancel tries again in 5 s
            environment = {**os.environ, **cluster.conf}
            subprocess.run(["scancel", "--signal=USR1", number], env=environment, check=False, timeout=2)
        time.sleep(0.05)
    assert "athanor: back in the queue" in rehearsal.said(number)
    assert cluster.wait(number)["JobState"] == "COMPLETED", rehearsal.said(number)


@together
def test_killed_by_a_notice_it_goes_back_into_the_queue(rehearsal: Rehearsal, cluster: Cluster, tmp_path: Path) -> None:
    """As where the signal comes before the task's first command, which ignores it, has run."""
    real = rehearsal.environment["ATHANOR_PYTHON"]
    killed = "import os, signal; signal.signal(signal.SIGUSR1, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGUSR1)"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ -n "$SLURM_RESTART_COUNT" ] || exec {real} -c "{killed}"\nexec {real} "$@"\n')
    python.chmod(0o755)
    words = rehearsal.words(tmp_path, "max_steps=2", "validate_every_n_steps=2")
    number = rehearsal.sbatch("slurm/train.sbatch", *words, ATHANOR_PYTHON=str(python), ATHANOR_RETRIES="2")
    wait_until(lambda: int(cluster.job(number)["Restarts"]) == 1, 120, "the requeue")
    job = cluster.wait(number)
    said = rehearsal.said(number)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), said
    assert "User defined signal 1" in said
    assert "going on (1 of 2)" not in said, "in a job that ends, tasks must not begin again"


@together
def test_requeues_are_bounded_and_it_says_so(rehearsal: Rehearsal, cluster: Cluster, tmp_path: Path) -> None:
    number = rehearsal.sbatch("slurm/train.sbatch", *rehearsal.words(tmp_path), ATHANOR_REQUEUES="0")
    run = wait_for_step(tmp_path, 5)
    cluster.ask("scancel", "--signal=USR1", number)
    job = cluster.wait(number)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "75:0", "0")
    assert "athanor: this job has been restarted 0 times, as often as it may (cluster.slurm.requeues)" in (
        rehearsal.said(number)
    )
    assert attempts(run)[-1]["status"] == "interrupted"


@together
def test_members_of_an_array_share_nothing(
    rehearsal: Rehearsal, cluster: Cluster, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    """Two seeds in two tasks; one of them is signalled and starts again, the other one never notices."""
    reference = undisturbed(1)
    members = tmp_path / "members.txt"
    lines = [rehearsal.words(tmp_path / "runs"), rehearsal.words(tmp_path / "runs", "seed=2")]
    members.write_text("".join(f"{quoted(line)}\n" for line in lines))
    output = f"--output={rehearsal.folder}/%A_%a.txt"
    number = rehearsal.sbatch("slurm/sweep.sbatch", str(members), flags=("--array=1-2", output))
    first = tmp_path / "runs/pretrain/demo" / reference.name
    wait_until(lambda: begun(first) >= 5, 120, "the first member")
    cluster.ask("scancel", "--signal=USR1", f"{number}_1")
    for task in ("1", "2"):
        assert cluster.wait(f"{number}_{task}")["JobState"] == "COMPLETED", rehearsal.said(f"{number}_{task}")
    assert_same(first, reference)
    (second,) = [path for path in first.parent.iterdir() if path != first]
    assert [attempt["slurm"]["job"] for attempt in attempts(first)] == [f"{number}_1"] * 2
    assert [attempt["slurm"]["job"] for attempt in attempts(second)] == [f"{number}_2"]


@together
def test_processes_that_do_not_fit_the_config_are_refused(
    rehearsal: Rehearsal, cluster: Cluster, tmp_path: Path
) -> None:
    """And not trained as two runs, or as one on half the data."""
    wrong = [
        (("--ntasks-per-node=2",), [], "--nodes=1 --ntasks-per-node=1", "cluster.nodes=1 cluster.devices=2"),
        ((), ["cluster.devices=2"], "--nodes=1 --ntasks-per-node=2", "cluster.nodes=1 cluster.devices=1"),
        (("--nodes=2",), ["cluster.devices=2"], "--nodes=1 --ntasks-per-node=2", "cluster.nodes=2 cluster.devices=1"),
    ]
    numbers = [
        rehearsal.sbatch("slurm/train.sbatch", *rehearsal.words(tmp_path / str(one), *more), flags=flags)
        for one, (flags, more, _, _) in enumerate(wrong)
    ]
    for one, (number, (_, _, submit, say)) in enumerate(zip(numbers, wrong)):
        job = cluster.wait(number)
        assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0")
        assert rehearsal.said(number).count(f"submit with {submit}, or say {say}") == 1
        assert run_of(tmp_path / str(one)) is None


@together
def test_without_srun_it_is_refused_and_does_not_hang(rehearsal: Rehearsal, cluster: Cluster, tmp_path: Path) -> None:
    command = quoted([rehearsal.environment["ATHANOR_PYTHON"], "-m", "athanor", "train", *rehearsal.words(tmp_path)])
    number = rehearsal.sbatch("--ntasks-per-node=2", f"--wrap={command}")
    assert cluster.wait(number)["ExitCode"] == "2:0"
    assert "put `srun` before `athanor`, as slurm/train.sbatch does" in rehearsal.said(number)
