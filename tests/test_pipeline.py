"""Pipelines: order, overrides, what is redone after a change and what is not, their folder and report."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from athanor import cli, pipeline
from athanor.runs.run import Run, list_runs


@pytest.fixture
def chain(project):
    """documents -> repeat -> twice, and wide from the documents."""
    project.experiment("repeat/twice", "defaults: [/repeat/tiny@_global_, _self_]\ninputs: {documents: repeat/tiny}")
    project.experiment(
        "pipelines/tiny",
        """
        # Documents, repeated.
        steps:
          documents: {experiment: documents/tiny}
          repeat: {experiment: repeat/tiny}
          twice: {experiment: repeat/twice}
          wide: {experiment: repeat/tiny, overrides: [job.times=9]}
        """,
    )
    return project


def run(*overrides, **keywords):
    return pipeline.run(pipeline.load("pipelines/tiny", overrides), **keywords)


def test_steps_run_in_order_and_once(chain):
    runs = run()
    assert chain.executions == ["join", "repeat", "repeat", "repeat"]
    assert (runs["twice"].directory / "documents.txt").read_text() == "one two " * 4
    assert runs["wide"].metrics["times"] == 9
    assert run()["twice"].directory == runs["twice"].directory
    assert len(chain.executions) == 4
    described = json.loads((chain.folder / "runs/pipelines/tiny/pipeline.json").read_text())
    assert list(described["steps"]) == ["documents", "repeat", "twice", "wide"]
    assert described["steps"]["twice"] == f"../../{runs['twice'].id}"


def test_editing_a_step_redoes_it_and_what_follows(chain):
    before = run()
    chain.experiment(
        "repeat/tiny", (chain.folder / "experiments/repeat/tiny.yaml").read_text().replace("times: 2", "times: 3")
    )
    after = run()
    assert [before[step].id == after[step].id for step in before] == [True, False, False, True]
    assert chain.executions[4:] == ["repeat", "repeat"]


def test_an_override_of_a_step_propagates_to_its_readers(chain):
    before, after = run(), run("repeat.job.times=5")
    assert [before[step].id == after[step].id for step in before] == [True, False, False, True]
    assert after["twice"].metrics["characters"] == 8 * 5 * 2
    assert (chain.folder / "runs/pipelines/tiny,repeat.job.times=5/pipeline.json").is_file()


def test_a_stood_in_step_can_be_made_and_told_by_itself(chain):
    runs = run("repeat.job.times=5")
    words = runs["twice"].command.split()
    assert words[-1] == f"inputs.documents={runs['repeat'].id}"
    assert cli.main(words[1:]) == 0
    assert len(chain.executions) == 4, "the command names the run that is there already"


def test_an_override_without_a_step_goes_to_every_step_that_has_its_key(chain):
    runs = run("job.times=4", "cluster.num_workers=2")
    assert [runs[step].metrics.get("times") for step in runs] == [None, 4, 4, 4]
    assert {r.manifest["config"]["cluster"]["num_workers"] for r in runs.values()} == {2}
    assert (chain.folder / "runs/pipelines/tiny,job.times=4").is_dir()


def test_steps_can_be_named_as_inputs(chain):
    chain.experiment(
        "pipelines/tiny",
        """
        steps:
          documents: documents/tiny
          two: {experiment: repeat/tiny}
          three: {experiment: repeat/tiny, overrides: [job.times=3]}
          last: {experiment: repeat/twice, inputs: {documents: two}}
        """,
    )
    runs = run()
    assert runs["last"].metrics["characters"] == 8 * 2 * 2


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["twise.job.times=2"], "no step has 'twise.job.times'"),
        (["jop.times=2"], "no step has 'jop.times'"),
        (["twice.job.tims=2"], "step twice: repeat/twice has no 'job.tims'; did you mean 'job.times'?"),
        (["twice.job.times"], "is no override"),
    ],
)
def test_a_wrong_override_is_one_sentence(chain, refused, overrides, sentence):
    text = refused(run, *overrides)
    assert sentence in text.replace("does not take these overrides: job.tims=2: repeat/twice ", "")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("steps: {a: {experiment: documents/tinny}}", "did you mean 'documents/tiny'?"),
        ("steps: {a: {experimant: documents/tiny}}", "step a: say which, `{experiment: ...}`"),
        ("steps: {a: {experiment: documents/tiny, override: []}}", "unknown key 'override'; did you mean 'overrides'?"),
        (
            "steps: {a: {experiment: repeat/tiny, inputs: {documents: b}}}",
            "step a, input documents: no earlier step 'b'",
        ),
        ("steps: {a: documents/tiny, b: {experiment: repeat/tiny, inputs: {document: a}}}", "has no input 'document'"),
        ("steps: {a: documents/tiny}\nreprot: x", "unknown key 'reprot'; did you mean 'report'?"),
        ("steps: {}", "`steps` must map names of steps to experiments"),
        ("steps: {a: [}", "experiments/pipelines/tiny.yaml, line 1"),
        ("steps: {a: {experiment: pipelines/tiny}}", "use `athanor pipeline experiment=pipelines/tiny`"),
    ],
)
def test_a_wrong_pipeline_is_one_sentence(chain, refused, text, sentence):
    chain.experiment("pipelines/tiny", text)
    assert sentence in refused(run)


def test_the_mistakes_of_all_steps_are_told_before_the_first_runs(chain, refused):
    text = refused(run, "repeat.job.times=x", "+documents.job.uper=1")
    assert "job.uper" in text
    assert "repeat: repeat/tiny cannot run: job.times is 'x'" in text
    assert chain.executions == []


def test_a_failing_step_stops_the_pipeline_and_the_same_command_goes_on(chain, capsys, monkeypatch):
    words = ["pipeline", "experiment=pipelines/tiny", "+repeat.job.stop=fail"]
    assert cli.main(words) == 1
    assert "repeat/tiny failed: RuntimeError" in capsys.readouterr().err
    assert chain.executions == ["join"]
    monkeypatch.setenv("GO_ON", "1")
    assert cli.main(words) == 0
    assert chain.executions == ["join", "repeat", "repeat", "repeat"]
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out] == ["step", "documents", "repeat", "twice", "wide"]
    assert "already done" in out[1]


def test_check_prints_every_step_and_force_reruns_all(chain, capsys):
    assert cli.main(["pipeline", "experiment=pipelines/tiny", "--check"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["ok", step] for step in ("documents", "repeat", "twice", "wide")
    ]
    assert list_runs() == []
    run()
    run(force=True)
    assert len(chain.executions) == 8


def test_the_report_is_written_again_only_if_something_is_new(chain, monkeypatch):
    text = (chain.folder / "experiments/pipelines/tiny.yaml").read_text()
    chain.experiment("pipelines/tiny", text + "report: Tiny")
    written = []

    def write(source, path, title=None):
        written.append((source, title))
        path.write_text("page")

    monkeypatch.setattr("athanor.report.write", write)
    run()
    run()
    assert written == [(chain.folder / "runs/pipelines/tiny", "Tiny")]
    (chain.folder / "runs/pipelines/tiny/report.html").unlink()
    run()
    assert len(written) == 2
    run("wide.job.times=8")
    assert len(written) == 3


def test_the_real_report_takes_what_a_pipeline_leaves(chain, capsys):
    text = (chain.folder / "experiments/pipelines/tiny.yaml").read_text()
    chain.experiment("pipelines/tiny", text + "report: Tiny pipeline\nnote: What a reader must know.")
    assert cli.main(["pipeline", "experiment=pipelines/tiny"]) == 0
    assert "report: runs/pipelines/tiny/report.html" in capsys.readouterr().out
    page = (chain.folder / "runs/pipelines/tiny/report.html").read_text()
    assert "Tiny pipeline" in page
    assert "What a reader must know." in page
    for source in ("pipelines/tiny", "tiny", "runs/pipelines/tiny", "repeat/twice"):
        assert cli.main(["report", source]) == 0
    assert Run(list_runs()[-1].directory).directory.joinpath("report.html").is_file()


def test_a_second_call_skips_without_torch(chain):
    run()
    code = """
import sys
from athanor import cli
assert cli.main(["pipeline", "experiment=pipelines/tiny"]) == 0
heavy = {"torch", "lightning"} & set(sys.modules)
assert not heavy, heavy
"""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert time.perf_counter() - started < 15
    assert len(chain.executions) == 4
