"""Sweeps in real processes: members that fail, are killed, meet; sweeps that are killed; nothing is done twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from sweep_bench import SMALL, ablate

from athanor import cli, config
from athanor.progress import Progress
from athanor.runs import store
from athanor.runs.run import list_runs
from athanor.sweeps import ablation, local, members, results

SECONDS = 240  # for any process to end, however busy the machine


def start(project, *words, **environment):
    """`athanor words` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "athanor", *words], cwd=project.folder, env=os.environ | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def sweep(project, *words):
    """`athanor sweep ablation=size words`, to its end."""
    words = ("sweep", "ablation=size", *words)
    return subprocess.run(
        [sys.executable, "-m", "athanor", *words], cwd=project.folder, capture_output=True, text=True, timeout=SECONDS,
        check=False,
    )  # fmt: skip


def until(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def statuses():
    return [member.status() for member in ablation.load("size").members]


def counted(project, what):
    return sum(name == what for name in project.executions)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_members_are_numbered_seed_by_seed_and_a_seed_more_adds_only_its_own(bench):
    before = ablation.load("size").members
    assert [(m.number, m.seed, *m.cell) for m in before] == [
        (1, 1, "1.0", "plain"), (2, 1, "2.0", "plain"), (3, 1, "1.0", "bold"),
        (4, 2, "1.0", "plain"), (5, 2, "2.0", "plain"), (6, 2, "1.0", "bold"),
    ]  # fmt: skip
    assert [m.experiment.config["job"]["size"] for m in before[:3]] == [1.0, 2.0, 1.0]
    assert before[2].experiment.config["job"]["mode"] == "bold"
    assert before[5].experiment.config["job"]["seed"] == 2
    assert len({m.experiment.directory for m in before}) == 6
    ablate(bench, seeds=[1, 2, 7])
    after = ablation.load("size").members
    assert [m.experiment.directory for m in after[:6]] == [m.experiment.directory for m in before]
    assert [m.seed for m in after[6:]] == [7, 7, 7]


def test_a_member_is_the_run_that_its_command_makes(bench, capsys):
    member = ablation.load("size").member(5)
    assert cli.main(["prepare", "experiment=guess/tiny", "job.size=2.0", "seed=2"]) == 0
    assert member.status() == "finished"
    assert list_runs()[0].directory == member.experiment.directory


def test_a_departure_may_delete_what_another_factors_baseline_sets(bench):
    ablate(bench, factors={"job.size": [1.0, 2.0], "sized": {"yes": [], "no": ["~job.size", "+job.size=5.0"]}})
    assert [m.experiment.config["job"]["size"] for m in ablation.load("size").members[:3]] == [1.0, 2.0, 5.0]


@pytest.fixture
def chained(bench):
    """`last/tiny` reads `middle/tiny`, which reads `guess/tiny`; it and its measurement read `slow/tiny`."""
    job = 'job: {_target_: sweep_jobs.Guess, seed: "${seed}", size: 1.0}\nallowed_targets: [sweep_jobs]\nseed: 1'
    bench.experiment("middle/tiny", f"defaults: [/prepare, _self_]\ninputs: {{start: guess/tiny}}\n{job}")
    inputs = "inputs: {start: middle/tiny, text: slow/tiny}"
    bench.experiment("last/tiny", f"defaults: [/prepare, _self_]\n{inputs}\n{job}")
    score = "job: {_target_: sweep_jobs.Score, model: '${inputs.model}'}\nallowed_targets: [sweep_jobs]"
    inputs = "inputs: {model: last/tiny, judge: middle/tiny, text: slow/tiny}"
    bench.experiment("score/chain", f"defaults: [/evaluate, _self_]\n{inputs}\n{score}")
    return bench


def test_a_level_may_change_what_a_member_reads_and_all_between(chained):
    factors = {"size": {"usual": [], "large": [{"guess/tiny": "job.size=3.0"}]}}
    ablate(chained, base="last/tiny", factors=factors, measure={"experiment": "score/chain", "input": "model"})
    usual, large = ablation.load("size").members[:2]
    assert usual.experiment.directory == config.load("last/tiny", ["seed=1"]).directory
    assert large.experiment.config["job"]["size"] == 1.0
    deepest = large.experiment.inputs["start"].experiment.inputs["start"].experiment
    assert deepest.directory == config.load("guess/tiny", ["job.size=3.0"]).directory
    for member, other in ((usual, large), (large, usual)):
        read, measured = member.experiment.inputs, member.measured.inputs
        assert measured["model"].paths == [member.experiment.directory]
        assert measured["judge"].paths == read["start"].paths != other.experiment.inputs["start"].paths
        assert measured["text"].paths == read["text"].paths == other.experiment.inputs["text"].paths


def test_the_seed_may_be_of_what_a_member_reads_too(chained):
    settings = {"base": "last/tiny", "measure": {"experiment": "score/chain", "input": "model"}}
    ablate(chained, **settings)
    assert {m.experiment.inputs["start"].experiment.config["seed"] for m in ablation.load("size").members} == {1}
    ablate(chained, **settings, seed_inputs=True)
    for member in ablation.load("size").members:
        middle, own = member.experiment.inputs["start"].experiment, f"seed={member.seed}"
        start = f"inputs.start={{experiment: guess/tiny, overrides: ['{own}']}}"
        assert middle.directory == config.load("middle/tiny", [own, start]).directory
        assert member.measured.inputs["judge"].paths == [middle.directory]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed_inputs": "yes"}, "`seed_inputs` must be true or false"),
        ({"also": "accuracy"}, "`also` must be a list of metrics"),
        (
            {"factors": {"m": {"a": [], "b": [{"slow/tony": "x=1"}]}}, "base": "guess/reads"},
            "did you mean 'slow/tiny'?",
        ),
        ({"bse": 1}, "unknown key 'bse'; did you mean 'base'?"),
        ({"seeds": None}, "say `seeds: ...`"),
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"design": "gird"}, "there is no design 'gird'; did you mean 'grid'?"),
        ({"metric": {"name": "loss"}}, "`metric` must be"),
        ({"metric": {"name": "loss", "better": "lower", "resolve": -1}}, "above 0"),
        ({"factors": {"job.size": [1.0]}}, "at least two different levels"),
        ({"factors": {"job.size": [1.0, 1.0]}}, "at least two different levels"),
        ({"design": "listed"}, "goes with `combinations"),
        ({"combinations": [{"mode": "bold"}]}, "goes with `combinations"),
        ({"design": "listed", "combinations": [{"mod": "bold"}]}, "a factor 'mod'; did you mean 'mode'?"),
        ({"design": "listed", "combinations": [{"mode": "bald"}]}, "no level 'bald'; did you mean 'bold'?"),
        ({"budget": {"members": 5}}, "6 members are more than budget.members, 5"),
        ({"budget": {"days": 5}}, "`budget` must be"),
        ({"measure": {"experiment": "score/tiny"}}, "`measure` must be"),
        ({"factors": {"mode": {"plain": [], "same": ["cluster.threads=1"]}}}, "is the same run as"),
        ({"factors": {"job.size": [1.0, "many"]}}, "job.size"),
        ({"factors": {"job.sise": [1.0, 2.0]}}, "did you mean 'job.size'?"),
        ({"base": "guess/tony"}, "did you mean 'guess/tiny'?"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence(bench, capsys, changed, said):
    ablate(bench, **changed)
    assert cli.main(["sweep", "ablation=size", "--check"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep"], "say one ablation"),
        (["sweep", "ablation=sice"], "did you mean 'ablations/size'?"),
        (["sweep", "ablation=size", "member=7"], "has members 1 to 6, not 7"),
        (["sweep", "ablation=size", "member=x"], "must be a number from 1 to 6"),
        (["sweep", "ablation=size", "--workers", "0"], "at least 1"),
        (["report", "ablation=size", "ablation=size"], "say one ablation"),
    ],
)
def test_a_wrong_command_is_refused_in_a_sentence(bench, capsys, words, said):
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err


# --- running ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(bench):
    """Two members, where each is a process: 1.0 and 2.0 with seed 1."""
    return ablate(bench, **SMALL)


def test_a_sweep_runs_all_once_and_a_second_runs_nothing(two):
    first = sweep(two, "--workers", "2")
    assert first.returncode == 0, first.stderr
    assert "size: 2 of 2 members finished, 0 of them before" in first.stdout
    assert sorted(two.executions) == ["guess-1-1", "guess-2-1"]
    second = sweep(two, "--workers", "2")
    assert second.returncode == 0
    assert "2 of them before" in second.stdout
    assert len(two.executions) == 2
    ablate(two, **SMALL | {"seeds": [1, 2]})
    assert "4 of 4 members finished, 2 of them before" in sweep(two).stdout
    assert sorted(two.executions) == ["guess-1-1", "guess-1-2", "guess-2-1", "guess-2-2"]


def test_a_failing_member_is_tried_again_a_bounded_number_of_times_and_stops_nobody(two):
    two.write("trouble/1-1", "raise")
    outcome = sweep(two, "--retries", "1")
    assert outcome.returncode == 1
    assert "1 of 2 members finished" in outcome.stdout
    assert "failed: 1, 1.0 seed 1" in outcome.stdout
    assert sorted(two.executions) == ["guess-1-1", "guess-1-1", "guess-2-1"]
    assert "the furnace went out" in (two.folder / "runs/ablations/size/log/1.txt").read_text()
    assert statuses() == ["failed", "finished"]
    (two.folder / "trouble/1-1").unlink()
    assert sweep(two).returncode == 0
    assert sorted(two.executions) == [*["guess-1-1"] * 3, "guess-2-1"]


def test_what_a_user_has_to_correct_is_not_tried_again(two):
    two.write("trouble/1-1", "user")
    assert sweep(two, "--retries", "3").returncode == 1
    assert counted(two, "guess-1-1") == 1
    assert "the coal is wet" in (two.folder / "runs/ablations/size/log/1.txt").read_text()


@pytest.mark.parametrize(("times", "tries", "ends"), [(" 1", 2, "finished"), ("", 2, "interrupted")])
def test_killed_workers_are_replaced_a_bounded_number_of_times(two, times, tries, ends):
    two.write("trouble/1-1", f"kill{times}")
    sweep(two, "--workers", "2", "--retries", "1")
    assert counted(two, "guess-1-1") == tries
    assert statuses() == [ends, "finished"]


def test_a_sweep_killed_with_its_workers_goes_on(two):
    two.write("trouble/2-1", "wait")
    first = start(two, "sweep", "ablation=size", "--workers", "2")
    until(lambda: counted(two, "guess-2-1") == 1 and statuses()[0] == "finished")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    (two.folder / "trouble/2-1").unlink()
    assert statuses() == ["finished", "interrupted"]
    outcome = sweep(two)
    assert outcome.returncode == 0
    assert "2 of 2 members finished, 1 of them before" in outcome.stdout
    assert sorted(two.executions) == ["guess-1-1", "guess-2-1", "guess-2-1"]


def test_workers_that_outlive_their_sweep_are_waited_for_and_not_doubled(two):
    two.write("trouble/1-1", "wait")
    first = start(two, "sweep", "ablation=size")
    until(lambda: counted(two, "guess-1-1") == 1)
    first.kill()
    first.wait()
    assert statuses() == ["running", "waiting"]
    second = start(two, "sweep", "ablation=size")
    until(lambda: statuses() == ["running", "finished"])
    assert second.poll() is None
    (two.folder / "trouble/1-1").unlink()
    out, err = second.communicate(timeout=SECONDS)
    assert second.returncode == 0, err
    assert "2 of 2 members finished" in out
    assert sorted(two.executions) == ["guess-1-1", "guess-2-1"]
    first.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_stop_it_stops_its_workers(two, number, code):
    two.write("trouble/1-1", "wait")
    first = start(two, "sweep", "ablation=size")
    until(lambda: counted(two, "guess-1-1") == 1)
    first.send_signal(number)
    _, err = first.communicate(timeout=SECONDS)
    assert first.returncode == code
    assert err.splitlines()[-1] == "athanor: interrupted; the same command goes on"
    assert statuses() == ["interrupted", "waiting"]


def test_two_elements_of_an_array_make_a_common_input_once(two):
    ablate(two, **SMALL, base="guess/reads")
    pair = [start(two, "sweep", "ablation=size", f"member={number}") for number in (1, 2)]
    for process in pair:
        _, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, err
    assert sorted(two.executions) == ["guess-1-1", "guess-2-1", "slow"]


def test_an_element_of_an_array_tries_again_by_itself(two):
    two.write("trouble/2-1", "raise 2")
    outcome = sweep(two, "member=2", "--retries", "1")
    assert outcome.returncode == 1
    assert "trying again (1 of 1)" in outcome.stderr
    assert counted(two, "guess-2-1") == 2
    assert sweep(two, "member=2").returncode == 0
    assert two.executions == ["guess-2-1"] * 3


def test_inputs_are_made_before_the_members_and_alone_on_request(two):
    ablate(two, **SMALL, base="guess/reads")
    assert sweep(two, "--inputs").returncode == 0
    assert two.executions == ["slow"]
    shutil.rmtree(two.folder / "runs/slow")
    assert sweep(two, "--workers", "2").returncode == 0
    assert sorted(two.executions) == ["guess-1-1", "guess-2-1", "slow", "slow"]


def test_several_processes_for_one_member_need_their_inputs_first(two, capsys, monkeypatch):
    ablate(two, **SMALL, base="guess/reads")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["sweep", "ablation=size", "member=1"]) == 2
    assert "make the inputs first, with `--inputs`" in capsys.readouterr().err
    assert two.executions == []


def test_the_budget_ends_a_sweep_between_members(two):
    ablate(two, **SMALL, budget={"hours": 1e-9})
    outcome = sweep(two)
    assert outcome.returncode == 1
    assert len(two.executions) == 1
    assert "not begun: 1; " in outcome.stdout
    assert "1e-09 hours are spent" in outcome.stdout


def test_a_metric_measured_by_another_experiment(two):
    ablate(
        two,
        **SMALL,
        measure={"experiment": "score/tiny", "input": "model"},
        metric={"name": "score", "better": "lower"},
    )
    outcome = sweep(two, "--workers", "2")
    assert outcome.returncode == 0, outcome.stderr
    assert counted(two, "score") == 2
    found = results.gather(ablation.load("size"))
    assert found.outcomes[0].value == pytest.approx(100 * (1.0 + 0.1 + 0.01))
    assert found.outcomes[0].curves["train/loss"][0] == list(range(1, 11))
    assert "2 of them before" in sweep(two).stdout
    assert counted(two, "score") == 2


def test_each_worker_has_a_gpu_of_its_own(two):
    two.write("trouble/1-1", "wait")  # so that both run at once
    both = start(two, "sweep", "ablation=size", "--workers", "2", CUDA_VISIBLE_DEVICES="4,7")
    until(lambda: len(two.executions) == 2)
    (two.folder / "trouble/1-1").unlink()
    both.communicate(timeout=SECONDS)
    assert both.returncode == 0
    assert {(run.directory / "gpu.txt").read_text() for run in list_runs()} == {"4", "7"}


def test_a_terminal_sees_every_member_that_runs(bench):
    """The real table, drawn by hand: the sweep, a running member with its last logged step, and a failed one."""
    composed = ablation.load("size")
    progress = Progress("rich", stream=open(os.devnull, "w"))  # noqa: SIM115
    board = local.Board(progress, "size", 6, 1)
    one, two = composed.members[1:3]
    tasks = [board.begin(one), board.begin(two)]
    one.experiment.config["max_steps"] = 40
    one.experiment.directory.mkdir(parents=True)
    (one.experiment.directory / "metrics.jsonl").write_text('{"step": 30, "train/loss": 2.5}\n{"step": 31, "tr')
    board.look(tasks[0], one)
    board.end(tasks[1], "failed", done=1)
    from rich.console import Console

    console = Console(width=140, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(progress._table())
    shown = console.export_text()
    board.close()
    progress.close()
    assert "1/6" in shown
    assert "▶ 2: 2.0 plain seed 1" in shown
    assert "30/40" in shown
    assert "loss 2.5" in shown
    assert "✗ 3: 1.0 bold seed 1" in shown


def test_waiting_for_an_input_of_another_process(bench):
    """Locked by someone else, and finished meanwhile: it is waited for and then read."""
    ablate(bench, base="guess/reads")
    member = ablation.load("size").member(1)
    other = start(bench, "prepare", "experiment=slow/tiny")
    until(lambda: counted(bench, "slow") == 1)
    assert members.make_member(member, Progress(quiet=True)).status == "finished"
    assert counted(bench, "slow") == 1
    other.communicate()


def test_listing_and_repeating_import_nothing_heavy(bench, capsys):
    ablate(bench, **SMALL)
    for member in ablation.load("size").members:
        store.execute(member.experiment)
    code = """
import sys
from athanor import cli
assert cli.main(["sweep", "ablation=size"]) == 0
assert cli.main(["sweep", "ablation=size", "--list"]) == 0
heavy = {"torch", "lightning", "scipy", "statsmodels", "pandas"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=SECONDS, stdout=subprocess.DEVNULL)
    assert len(bench.executions) == 2
