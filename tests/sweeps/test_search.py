"""Searches in real processes: workers that are killed, trials that die, and none of them lost or counted twice."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
import yaml
from search_bench import SPACE, look_for

from athanor import catalog, cli, config
from athanor.errors import UserError
from athanor.runs.run import Run
from athanor.sweeps import found, search, searching
from athanor.sweeps.file import SweepFile
from athanor.sweeps.trials import BEGUN, JOURNAL, PRUNED_AT, Trials

SECONDS = 240  # for any process to end, however busy the machine


def start(project, *words):
    """`athanor sweep search=valley words` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "athanor", "sweep", "search=valley", *words], cwd=project.folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def finish(process):
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


def until(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def trials(create=False):
    return Trials(search.load("valley"), create=create)


def states():
    return [trial.state.name for trial in trials().all()]


def loss(point):
    return (point["job.x"] - 0.3) ** 2 + {"flat": 0.1, "deep": 0.0}[point["job.kind"]] + 0.01 + 0.01


@pytest.fixture
def inside(monkeypatch):
    """Workers and their trials in this process, which spares the imports; returns the command."""

    def process(composed, number, file, told):
        return cli.main(["sweep", f"search={composed.name}", f"trial={number}", "display.progress=quiet"])

    def run(*words):
        return cli.main(["sweep", "search=valley", "worker=1", *words])

    monkeypatch.setattr(searching, "_process", process)
    return run


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"trails": 3}, "unknown key 'trails'; did you mean 'trials'?"),
        ({"trials": None}, "say `trials: ...`"),
        ({"trials": 0}, "`trials` must be a whole number above 0"),
        ({"space": None}, "is no experiment"),
        ({"metric": {"name": "loss"}}, "`metric` must be"),
        ({"sampler": "tpee"}, "there is no sampler 'tpee'; did you mean 'tpe'?"),
        ({"sampler": {"name": "tpe", "sead": 1}}, "sampler has no 'sead'; did you mean 'seed'?"),
        ({"pruner": "mean"}, "there is no pruner 'mean'; did you mean 'median'?"),
        ({"pruner": "median"}, "looks at a training's validations, and valley/tiny is none"),
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"budget": {"members": 5}}, "`trials` says how many"),
        ({"sampler": "grid"}, "a grid needs `step` or `points` in space.job.x"),
        ({"space": {"job.x": {"float": [0.9, 0.1]}}}, "0.9 must be below 0.1"),
        ({"space": {"job.x": {"float": ["1e-4", 0.1]}}}, "write 1.0e-4"),
        ({"space": {"job.x": {"float": [0.0, 0.1], "log": True}}}, "needs bounds above 0"),
        ({"space": {"job.layers": {"int": [1, 2.5]}}}, "two whole numbers"),
        ({"space": {"job.x": {"float": [0.0, 1.0], "setp": 0.1}}}, "has no 'setp'; did you mean 'step'?"),
        ({"space": {"job.kind": ["flat"]}}, "at least two different levels"),
        ({"space": {"job.y": {"float": [0.0, 1.0]}}}, "valley/tiny has no 'job.y'"),
        ({"space": {"job.layers": {"float": [0.5, 1.5]}}}, "job.layers"),
        ({"space": {"job.x": {"float": [0.0, 1.0]}, "job.kind": ["flat", 3]}}, "job.kind=3"),
        ({"base": "valley/tony"}, "did you mean 'valley/tiny'?"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence_before_anything_starts(valley, capsys, changed, said):
    look_for(valley, **changed)
    assert cli.main(["sweep", "search=valley"]) == 2
    assert said in capsys.readouterr().err
    assert not (valley.folder / "runs/search").exists()
    assert valley.executions == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep", "search=valey"], "did you mean 'search/valley'?"),
        (["sweep", "search=valley", "trial=x"], "trial=x must be a number"),
        (["sweep", "search=valley", "worker=1"], "has no trials yet; begin with `athanor sweep search=valley`"),
        (["sweep", "search=valley", "--workers", "0"], "at least 1"),
        (["sweep", "search=valley", "job.z=3"], "job.z"),
        (["report", "search=valley"], "has no trials yet"),
    ],
)
def test_a_wrong_command_is_refused_in_a_sentence(valley, capsys, words, said):
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err


def test_a_broken_search_is_refused_within_two_seconds(valley):
    """Seconds of the process alone: other work of the machine is not its fault."""
    look_for(valley, space=SPACE | {"job.layers": {"float": [0.5, 1.5]}})
    code = (
        "import resource; from athanor import cli; assert cli.main(['sweep', 'search=valley', '--workers', '4']) == 2; "
        "u = resource.getrusage(resource.RUSAGE_SELF); print(u.ru_utime + u.ru_stime)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=SECONDS)
    assert float(done.stdout) < 2


@pytest.mark.parametrize("name", [entry.name for entry in catalog.entries("sweep") if entry.name.startswith("search/")])
def test_a_search_of_the_repository_composes_at_every_end(name):
    composed = search.load(name)
    composed.validate()
    assert composed.description


def test_without_the_library_the_extra_is_named(valley, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert cli.main(["sweep", "search=valley"]) == 2
    assert "pip install 'athanor[search]'" in capsys.readouterr().err


def test_another_space_is_another_search_and_more_trials_are_not(valley):
    directory = search.load("valley").directory
    look_for(valley, trials=9)
    assert search.load("valley").directory == directory
    look_for(valley, sampler={"name": "random", "seed": 1})
    assert search.load("valley").directory != directory
    look_for(valley, space={"job.x": {"float": [0.0, 0.8]}, "job.kind": ["flat", "deep"]})
    assert search.load("valley").directory != directory
    look_for(valley)
    assert search.load("valley", ["seed=2"]).directory != directory
    assert search.load("valley", ["cluster.threads=1"]).directory == directory


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ({"float": [0.0, 1.0], "points": 3}, [0.0, 0.5, 1.0]),
        ({"float": [0.1, 0.4], "step": 0.1}, [0.1, 0.2, 0.1 + 2 * 0.1, 0.4]),
        ({"float": [1e-4, 1e-2], "log": True, "points": 3}, [1e-4, 1e-3, 1e-2]),
        ({"int": [2, 8], "step": 3}, [2, 5, 8]),
        ({"int": [1, 3]}, [1, 2, 3]),
        ({"int": [1, 100], "log": True, "points": 3}, [1, 10, 100]),
        ({"float": [0.0, 1.0]}, None),
    ],
)
def test_the_values_of_a_range_in_a_grid(given, values):
    part = search._part(SweepFile("experiments/search/x.yaml", "", {}), "key", given)
    made = part.grid()
    assert made == (None if values is None else pytest.approx(values, rel=1e-12))
    if made and part.whole:
        assert all(type(value) is int for value in made)


# --- running ----------------------------------------------------------------------------------------------------------


def test_it_runs_all_once_then_nothing_then_only_what_is_more(valley):
    code, out, err = finish(start(valley, "--workers", "2"))
    assert code == 0, err
    assert "valley: 4 of 4 trials finished, 0 of them pruned; 0 before" in out
    assert len(valley.executions) == len(set(valley.executions)) == 4
    done = trials().all()
    assert [trial.number for trial in done] == [0, 1, 2, 3]
    for trial in done:
        assert trial.value == pytest.approx(loss(trial.params), rel=1e-12)
    code, out, err = finish(start(valley, "--workers", "2"))
    assert code == 0, err
    assert "4 before" in out
    assert len(valley.executions) == 4
    look_for(valley, trials=5)
    code, out, err = finish(start(valley))
    assert code == 0, err
    assert "5 of 5 trials finished, 0 of them pruned; 4 before" in out
    assert len(valley.executions) == 5
    best = min(loss(trial.params) for trial in trials().all())
    assert f"best: loss {best:.4g}, trial " in out


@pytest.mark.slow
def test_two_of_four_workers_are_killed_and_no_trial_is_lost_or_counted_twice(valley):
    """Nobody watches them. One dies with its trial's process; of another the process lives on and is waited for."""
    look_for(valley, trials=8)
    trials(create=True)
    valley.write("trouble/hold", "")
    workers = [start(valley, f"worker={number}") for number in (1, 2, 3, 4)]
    until(lambda: len(valley.executions) == 4)
    journal = search.load("valley").directory / JOURNAL
    os.killpg(workers[0].pid, signal.SIGKILL)
    workers[1].kill()
    workers[0].communicate()
    assert [trials().lost(trial) for trial in trials().all()].count(True) >= 1
    with journal.open("a") as file:
        file.write('{"op_code":6,"worker_id":"the-dead')  # what it had written of a line
    (valley.folder / "trouble/hold").unlink()
    for worker in workers[2:]:
        code, _, err = finish(worker)
        assert code == 0, err
    workers[1].communicate()
    done = trials().all()
    assert [trial.number for trial in done] == list(range(8))
    assert {trial.state.name for trial in done} == {"COMPLETE"}
    for trial in done:
        assert trial.value == pytest.approx(loss(trial.params), rel=1e-12)
    assert len({trial.params["job.x"] for trial in done}) == 8
    counts = {name: valley.executions.count(name) for name in valley.executions}
    assert sorted(counts.values()) == [1, 1, 1, 1, 1, 1, 1, 2], "the one whose process died began again, no other"
    assert sorted(trial.user_attrs[BEGUN] for trial in done) == [1, 1, 1, 1, 1, 1, 2, 2]
    code, out, err = finish(start(valley))
    assert code == 0, err
    assert "8 before" in out
    assert sum(counts.values()) == len(valley.executions)


@pytest.mark.slow
def test_the_command_replaces_a_worker_that_is_killed(valley):
    look_for(valley, trials=2)
    valley.write("trouble/hold", "")
    whole = start(valley, "--workers", "1")
    until(lambda: len(valley.executions) == 1)
    children = subprocess.run(["pgrep", "-P", str(whole.pid)], capture_output=True, text=True, check=True)
    (worker,) = map(int, children.stdout.split())
    os.kill(worker, signal.SIGKILL)
    (valley.folder / "trouble/hold").unlink()
    code, out, err = finish(whole)
    assert code == 0, err
    assert "2 of 2 trials finished" in out
    assert len(valley.executions) == 2


def test_a_worker_told_to_stop_leaves_its_trial_to_the_next_and_that_is_no_failure(valley):
    look_for(valley, trials=1)
    trials(create=True)
    valley.write("trouble/hold", "")
    for count in (1, 2):  # more often than a trial may fail
        worker = start(valley, "worker=1", "--retries", "0")
        until(lambda count=count: len(valley.executions) == count)
        worker.send_signal(signal.SIGTERM)
        code, _, err = finish(worker)
        assert code == 143, err
        assert states() == ["RUNNING"]
        assert trials().all()[0].user_attrs[BEGUN] == 0
    (valley.folder / "trouble/hold").unlink()
    assert finish(start(valley, "worker=1", "--retries", "0"))[0] == 0
    assert states() == ["COMPLETE"]
    assert len(set(valley.executions)) == 1


@pytest.mark.slow
def test_a_trial_that_dies_is_begun_again_a_bounded_number_of_times(valley):
    look_for(valley, trials=2)
    valley.write("trouble/any", "kill 2")
    code, out, err = finish(start(valley, "--retries", "1"))
    assert code == 1, err
    assert "1 of 2 trials finished" in out
    assert "failed, or its process died, 2 times" in out
    assert len(valley.executions) == 3
    assert valley.executions[0] == valley.executions[1]
    code, out, err = finish(start(valley))
    assert code == 0, err
    assert "2 of 2 trials finished, 0 of them pruned; 1 before" in out
    assert valley.executions[3:] == valley.executions[:1], "the failed point again, and nothing else"
    assert sorted(states()) == ["COMPLETE", "COMPLETE"]


def test_what_a_user_has_to_correct_fails_at_once(valley, inside):
    trials(create=True)
    valley.write("trouble/any", "user 1")
    (valley.folder / "trouble/hold").unlink(missing_ok=True)
    log = search.load("valley").directory / "log"
    log.mkdir()
    (log / "0.txt").write_text("athanor: the coal is wet; bring another\n")
    assert inside() == 0
    assert states() == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert trials().all()[0].user_attrs["note"] == "the coal is wet; bring another"


def test_a_metric_that_is_not_there_ends_the_search_with_a_sentence(valley, inside, capsys):
    look_for(valley, metric={"name": "losss", "better": "lower"})
    trials(create=True)
    assert inside() == 2
    assert "has no metric 'losss'; did you mean 'loss'?" in capsys.readouterr().err
    assert len(valley.executions) == 1


def test_a_diverged_trial_counts_as_pruned_and_is_never_the_best(valley, inside):
    look_for(valley, space={"job.x": [0.96, 0.3]}, sampler="grid", trials=None)
    trials(create=True)
    assert inside() == 0
    assert states() == ["PRUNED", "COMPLETE"]
    assert trials().all()[0].user_attrs["note"] == "diverged: loss is nan"
    assert trials().best().params == {"job.x": "0.3"}


def test_a_grid_is_walked_once_and_grows(valley, inside):
    space = {"job.x": {"float": [0.0, 0.9], "points": 2}, "job.layers": {"int": [1, 2]}, "job.kind": ["flat", "deep"]}
    look_for(valley, space=space, sampler="grid", trials=5)
    trials(create=True)
    assert inside() == 0
    assert len(valley.executions) == 5
    look_for(valley, space=space, sampler="grid", trials=None)
    trials().renew()
    assert inside() == 0
    assert sorted(valley.executions) == sorted(
        f"{x}-{kind}-{layers}-1" for x in (0.0, 0.9) for layers in (1, 2) for kind in ("flat", "deep")
    )
    assert states() == ["COMPLETE"] * 8


def test_the_value_is_the_mean_over_seeds_each_an_ordinary_run(valley, inside):
    look_for(valley, seeds=[1, 3], trials=2)
    trials(create=True)
    assert inside() == 0
    assert len(valley.executions) == 4
    for trial in trials().all():
        members = trials().members(trial)
        values = [Run(member.target.directory).metrics["loss"] for member in members]
        assert values[1] - values[0] == pytest.approx(0.02)
        assert trial.value == pytest.approx(sum(values) / 2, rel=1e-15)
    point = trials().all()[0].params
    before = len(valley.executions)
    words = [f"job.x={point['job.x']!r}", f"job.kind={point['job.kind']}", "seed=3"]
    assert cli.main(["prepare", "experiment=valley/tiny", *words]) == 0
    assert len(valley.executions) == before, "it is the run that its command makes"


def test_the_budget_ends_a_search_between_trials(valley, inside, capsys):
    look_for(valley, budget={"hours": 1e-9})
    trials(create=True)
    assert inside() == 0
    assert len(valley.executions) == 1
    assert cli.main(["sweep", "search=valley"]) == 1
    assert "not begun: 3; " in capsys.readouterr().out


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "cmaes"])
def test_a_sampler_keeps_to_the_space_and_a_serial_search_is_reproducible(valley, sampler):
    look_for(
        valley,
        space={
            "job.x": {"float": [1e-3, 0.9], "log": True},
            "job.layers": {"int": [1, 5], "step": 2},
            "job.kind": ["flat", "deep"],
        },
        sampler={"name": sampler, "seed": 7, "startup": 3} if sampler != "random" else {"name": sampler, "seed": 7},
        trials=6,
    )

    def propose(times):
        found = trials(create=True)
        for _ in range(times):
            with ExitStack() as held:
                trial = found.claim(held, 1)
                found.tell(trial, value=loss(trial.params))
        return [trial.params for trial in found.all()]

    points = propose(3) and propose(3)  # what a second process goes on with
    assert len({point["job.x"] for point in points}) == 6
    for point in points:
        assert 1e-3 <= point["job.x"] <= 0.9
        assert point["job.layers"] in (1, 3, 5)
    (valley.folder / "runs/search").rename(valley.folder / "runs/before")
    assert propose(6) == points
    assert trials().claim(ExitStack(), 1) is None


def test_tpe_learns_where_the_valley_is(valley):
    """Of random trials the mean distance is 0.25, and five of ten are of the better kind."""
    look_for(valley, sampler={"name": "tpe", "seed": 1, "startup": 8}, trials=40)
    found = trials(create=True)
    for _ in range(40):
        with ExitStack() as held:
            trial = found.claim(held, 1)
            found.tell(trial, value=loss(trial.params))
    last = [trial.params for trial in found.all()][-10:]
    assert sum(abs(point["job.x"] - 0.3) for point in last) / 10 < 0.16
    assert [point["job.kind"] for point in last].count("deep") >= 7
    assert next(iter(found.importance())) == "job.x"


# --- what it found ----------------------------------------------------------------------------------------------------


def test_the_best_trial_is_an_experiment_that_comes_to_the_same_value(valley, inside, capsys):
    """A choice that deletes a key, an upstream with overrides, and a changed base do not matter to it."""
    valley.experiment(
        "valley/read",
        """
        # A valley that reads.
        defaults: [/prepare, _self_]
        allowed_targets: [search_jobs, tiny]
        inputs: {documents: {experiment: documents/tiny, overrides: [job.upper=true]}}
        seed: 1
        job: {_target_: search_jobs.Valley, seed: "${seed}", x: 0.5, kind: flat, layers: 1}
        """,
    )
    kinds = {"as it is": [], "deep": ["job.kind=deep", "~job.layers"]}
    valley.write("experiments/documents/tiny.yaml", (valley.folder / "experiments/documents/tiny.yaml").read_text()
                 .replace("files: ${inputs.raw}", "files: ${inputs.raw}\n  upper: false"))  # fmt: skip
    look_for(valley, base="valley/read", space={"job.x": {"float": [0.0, 0.9]}, "kind": kinds})
    assert cli.main(["sweep", "search=valley", "--inputs"]) == 0
    trials(create=True)
    assert inside() == 0
    assert cli.main(["report", "search=valley"]) == 0
    out = capsys.readouterr().out
    best = trials().best()
    assert "again: athanor prepare experiment=valley/valley-best" in out
    assert f"loss {best.value!r}" in out
    assert best.params["kind"] == "deep"
    written = valley.folder / "experiments/valley/valley-best.yaml"
    text = yaml.safe_load(written.read_text())
    assert text["inputs"] == {"documents": {"experiment": "documents/tiny", "overrides": ["job.upper=true"]}}
    assert "layers" not in text["job"]
    assert str(valley.folder) not in written.read_text()
    valley.write("experiments/valley/read.yaml", (valley.folder / "experiments/valley/read.yaml").read_text()
                 .replace("seed: 1", "seed: 5"))  # fmt: skip
    before = len(valley.executions)
    assert cli.main(["prepare", "experiment=valley/valley-best"]) == 0
    assert len(valley.executions) == before + 1, "another name is another run"
    again = config.load("valley/valley-best")
    assert Run(again.directory).metrics["loss"] == best.value


def test_the_page_and_the_table_show_every_trial(valley, inside):
    look_for(valley, trials=8, sampler={"name": "random", "seed": 3})
    trials(create=True)
    valley.write("trouble/any", "raise 2")
    assert inside("--retries", "1") == 0
    results = found.gather(trials())
    from athanor.report import search as page

    html, table = page.write(results, results.search.directory)
    rows = list(csv.DictReader(table.open()))
    assert [row["state"] for row in rows] == ["fail", *["complete"] * 7]
    assert math.isclose(min(float(row["loss"]) for row in rows[1:]), results.best.value)
    text = html.read_text()
    for outcome in results.outcomes:
        assert all(run in text for run in outcome.runs)
    assert text.count('<circle class="point') == 3 * 7, "history and two slices, each with every complete trial"
    assert sum(results.importance.values()) == pytest.approx(1)
    assert "1 trials failed" in text or "1 trial failed" in text
    assert "http" not in text.replace("http://www.w3.org", "").replace("https://", ""), "it loads nothing"


def test_listed_as_lines_for_scripts(valley, inside, capsys):
    trials(create=True)
    inside()
    capsys.readouterr()
    assert cli.main(["sweep", "search=valley", "--list", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["trial"] for line in lines] == [0, 1, 2, 3]
    assert all(line["value"] == pytest.approx(loss(line["point"])) for line in lines)


# --- pruning, where no training is needed to see it -------------------------------------------------------------------


def test_hyperband_prunes_most_of_what_is_worse_and_never_the_best(valley):
    look_for(valley, trials=18)
    composed = search.load("valley")
    composed.pruner.update(name="hyperband")
    composed.first.config.update(validate_every_n_steps=10, max_steps=90)
    shown = Trials(composed, create=True)
    for quality in range(18):  # the later, the worse
        with ExitStack() as held:
            trial = shown.claim(held, 1)
            if not any(searching.judge(shown, trial, step, quality + 1 / step) for step in range(10, 91, 10)):
                shown.tell(trial, value=float(quality))
            else:
                shown.settle(trial)
    ends = [trial.state.name for trial in shown.all()]
    assert ends[0] == "COMPLETE"
    assert ends.count("PRUNED") >= 6
    assert shown.best().value == 0.0


def test_the_judge_writes_down_what_it_sees_and_prunes_what_is_worse_than_the_median(valley, monkeypatch):
    look_for(valley, trials=6)
    composed = search.load("valley")
    composed.pruner.update(name="median", startup=2)
    composed.first.config["max_steps"] = 30
    shown = Trials(composed, create=True)
    for value in (1.0, 2.0, 3.0):
        with ExitStack() as held:
            trial = shown.claim(held, 1)
            for step in (10, 20, 30):
                assert not searching.judge(shown, trial, step, value + 1 / step) or value > 2
            shown.tell(trial, value=value)
    with ExitStack() as held:
        bad = shown.claim(held, 1)
        assert searching.judge(shown, bad, 10, 9.0)
        assert shown.one(bad.number).user_attrs[PRUNED_AT] == 10
        shown.settle(bad)
        assert shown.one(bad.number).state.name == "PRUNED"
        assert shown.one(bad.number).intermediate_values == {10: 9.0}
    with ExitStack() as held:
        late = shown.claim(held, 1)
        assert not searching.judge(shown, late, 10, 1.0)
        assert not searching.judge(shown, late, 30, 99.0), "after the last step there is nothing to save"
        assert not searching.judge(shown, late, 10, 99.0), "a resumed training has been there before"
    with pytest.raises(UserError):
        shown.one(77)
