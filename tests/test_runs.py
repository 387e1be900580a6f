"""Runs: made once, skipped, resumed, refused when damaged; their manifests, locks and references."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest

from athanor import config
from athanor.errors import UserError
from athanor.runs import store
from athanor.runs.context import RunContext
from athanor.runs.lock import is_locked, locked
from athanor.runs.run import Run, list_runs, open_run


def make(name, *overrides, **keywords):
    return store.execute(config.load(name, overrides), **keywords)


def both(**keywords):
    return make("documents/tiny", **keywords), make("repeat/tiny", **keywords)


def test_a_run_leaves_its_files_and_a_manifest_of_all_that_went_in(project):
    documents, run = both()
    assert run.directory == project.folder / "runs/repeat/tiny" / run.fingerprint
    assert (run.directory / "documents.txt").read_text() == "one two one two "
    manifest = json.loads((run.directory / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert (manifest["status"], manifest["metrics"]) == ("finished", {"characters": 16.0, "times": 2.0})
    assert manifest["inputs"]["documents"] == {
        "kind": "run",
        "fingerprint": documents.fingerprint,
        "name": "documents/tiny",
        "directory": str(documents.directory),
        "outputs": documents.outputs_digest,
    }
    assert list(manifest["outputs"]) == ["documents.txt"]
    assert manifest["outputs"]["documents.txt"]["bytes"] == 16
    assert manifest["science"]["job"]["documents"] == documents.fingerprint
    assert manifest["config"]["job"]["documents"] == str(documents.directory)
    assert manifest["finished"] >= manifest["started"] > 1.7e9
    assert manifest["packages"]["torch"].startswith("2.")
    assert manifest["hardware"]["cores"] >= 1
    assert os.uname().nodename not in json.dumps(manifest["hardware"])
    raw = documents.manifest["inputs"]["raw"]
    assert [file["path"].rpartition("/")[2] for file in raw["files"]] == ["a.txt", "b.txt"]
    assert {len(file["sha256"]) for file in raw["files"]} == {64}
    assert (documents.directory / "config.yaml").read_text().startswith("cluster:")
    event = json.loads((documents.directory / "metrics.jsonl").read_text())
    assert (event["step"], event["characters"]) == (1, 8.0)
    assert (documents.directory / "metrics.csv").read_text().splitlines()[0] == "step,time,characters"
    assert not list(run.directory.rglob("*.partial"))


def test_the_same_again_is_skipped_and_force_makes_it_anew(project):
    both()
    both()
    assert project.executions == ["join", "repeat"]
    make("repeat/tiny", force=True)
    assert project.executions == ["join", "repeat", "repeat"]
    make("repeat/tiny", "cluster.num_workers=3", "logger=wandb")
    assert len(project.executions) == 3
    make("repeat/tiny", "job.times=3")
    assert len(project.executions) == 4


def test_an_unfinished_input_is_named_with_the_command_that_makes_it(project, refused):
    text = refused(make, "repeat/tiny")
    assert "athanor prepare experiment=documents/tiny" in text
    project.experiment("repeat/twice", "defaults: [/repeat/tiny@_global_, _self_]\ninputs: {documents: repeat/tiny}")
    text = refused(make, "repeat/twice")
    assert text.index("experiment=documents/tiny") < text.index("experiment=repeat/tiny")
    assert not (project.folder / "runs/repeat").exists()


def test_nothing_is_made_from_a_wrong_config(project, refused):
    assert "job.times is 'two'" in refused(make, "repeat/tiny", "job.times=two")
    assert not (project.folder / "runs/repeat").exists()


# Damage


@pytest.mark.parametrize("harm", ["byte", "cut", "gone"])
def test_a_damaged_output_is_refused_by_its_reader(project, refused, harm):
    documents = make("documents/tiny")
    path = documents.directory / "documents.txt"
    if harm == "byte":
        path.write_text("One two ")
    elif harm == "cut":
        path.write_text("one ")
    else:
        path.unlink()
    text = refused(make, "repeat/tiny")
    assert str(path) in text
    assert text.endswith("remake it with `athanor prepare experiment=documents/tiny --force`")
    assert not (project.folder / "runs/repeat/tiny").exists()
    make("documents/tiny", force=True)
    make("repeat/tiny")


def test_a_finished_run_that_lost_an_output_is_not_skipped_silently(project, refused):
    run = make("documents/tiny")
    (run.directory / "documents.txt").unlink()
    assert "its documents.txt is missing or cut short; remake it with `athanor" in refused(make, "documents/tiny")


def test_a_run_of_an_input_that_was_remade_otherwise_is_not_skipped_silently(project, refused):
    documents, _ = both()
    manifest = documents.manifest
    (documents.directory / "documents.txt").write_text("three four")
    manifest["outputs"]["documents.txt"] = {"sha256": "0" * 64, "bytes": 10}
    (documents.directory / "manifest.json").write_text(json.dumps(manifest))
    assert "was made from an earlier documents/tiny/" in refused(make, "repeat/tiny")


def test_verification_sees_a_change_behind_restored_times(project, refused):
    run = make("documents/tiny")
    path = run.directory / "documents.txt"
    os.utime(path, ns=(10**18, 10**18))
    run.path("documents.txt")
    path.write_text("onE two ")
    os.utime(path, ns=(10**18, 10**18))
    assert "was changed" in refused(run.path, "documents.txt")
    assert run.path("documents.txt", verify=False) == path
    assert "did you mean 'documents.txt'?" in refused(run.path, "document.txt")


def test_a_damaged_manifest_is_named(project, refused):
    run = make("documents/tiny")
    (run.directory / "manifest.json").write_text("{")
    assert "manifest.json is damaged" in refused(make, "repeat/tiny")


# Failure and interruption


def test_a_refusal_leaves_nothing_half_written(project, refused):
    make("documents/tiny")
    text = refused(make, "repeat/tiny", "+job.stop=user")
    assert text == "the text is no good; bring another"
    assert not (project.folder / "runs/repeat").exists()


def test_an_exception_is_kept_in_the_log(project):
    make("documents/tiny")
    with pytest.raises(store.RunFailedError, match=r"RuntimeError: the furnace went out; .*log\.txt"):
        make("repeat/tiny", "+job.stop=fail")
    (run,) = (run for run in list_runs() if run.name == "repeat/tiny")
    assert run.status == "failed"
    log = (run.directory / "log.txt").read_text()
    assert "Traceback (most recent call last)" in log
    assert 'RuntimeError("the furnace went out")' in log


def test_an_interrupted_run_says_so_and_is_taken_up_again(project, monkeypatch):
    make("documents/tiny")
    with pytest.raises(KeyboardInterrupt):
        make("repeat/tiny", "+job.stop=interrupt")
    (run,) = (run for run in list_runs() if run.name == "repeat/tiny")
    assert run.status == "interrupted"
    assert (run.directory / "half-written.txt").exists()
    monkeypatch.setenv("GO_ON", "1")
    run = make("repeat/tiny", "+job.stop=interrupt")
    assert run.status == "finished"
    assert list(run.manifest["outputs"]) == ["documents.txt"]
    assert [attempt["status"] for attempt in run.manifest["attempts"]] == ["interrupted", "finished"]


def test_a_killed_run_is_seen_as_interrupted_and_taken_up_again(project, monkeypatch):
    make("documents/tiny")
    code = "from athanor import config; from athanor.runs import store\n"
    code += "store.execute(config.load('repeat/tiny', ['+job.stop=kill']))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == -9
    (run,) = (run for run in list_runs() if run.name == "repeat/tiny")
    assert run.manifest["status"] == "running"
    assert run.status == "interrupted"
    monkeypatch.setenv("GO_ON", "1")
    run = make("repeat/tiny", "+job.stop=kill")
    assert not (run.directory / "half-written.txt").exists()
    assert [attempt["status"] for attempt in run.manifest["attempts"]] == ["interrupted", "finished"]


class Training:
    """Stands for athanor.train: counts to max_steps, keeps a checkpoint at each step, may be stopped at one."""

    def __init__(self):
        self.stop = None

    def fit(self, experiment, run):
        folder = run.directory / "checkpoints"
        folder.mkdir(exist_ok=True)
        start = max((int(path.name) for path in folder.iterdir()), default=0)
        for step in range(start, experiment.config["max_steps"]):
            if step == self.stop:
                (run.directory / "model.partial").write_text("half")
                raise KeyboardInterrupt
            run.log({"loss": 10 - step}, step)
            (folder / str(step + 1)).touch()
        with run.temporary("model.safetensors") as path:
            path.write_text("weights")
        return {"validation/loss": 1, "resumed": start}


@pytest.fixture
def training(project, monkeypatch):
    stand_in = Training()
    monkeypatch.setitem(sys.modules, "athanor.train", stand_in)
    project.experiment("pretrain/tiny", TRAINING)
    return stand_in


TRAINING = """
# Train.
defaults: [/train, _self_]
allowed_targets: [tiny]
seed: 1
max_steps: 6
global_batch_size: 8
validate_every_n_steps: 5
model: {_target_: tiny.Model, width: 4}
data: {_target_: tiny.chain, parts: []}
algorithm: {_target_: tiny.chain, parts: []}
optimizer: {_target_: torch.optim.AdamW, _partial_: true, lr: 1e-3}
schedule: {_target_: tiny.schedule, _partial_: true, warmup_steps: 2}
"""


def test_a_training_keeps_its_checkpoints_and_goes_on_from_them(training):
    training.stop = 4
    with pytest.raises(KeyboardInterrupt):
        make("pretrain/tiny")
    training.stop = None
    run = make("pretrain/tiny", "cluster.devices=2")
    assert run.metrics == {"validation/loss": 1.0, "resumed": 4.0}
    assert list(run.manifest["outputs"]) == ["model.safetensors"]
    steps = [json.loads(line)["step"] for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3, 4, 5]
    assert [attempt["cluster"]["devices"] for attempt in run.manifest["attempts"]] == [1, 2]
    assert make("pretrain/tiny", force=True).metrics["resumed"] == 0


def test_a_refusal_keeps_a_trainings_checkpoints(training, monkeypatch, refused):
    training.stop = 4
    with pytest.raises(KeyboardInterrupt):
        make("pretrain/tiny")

    def refuse(experiment, run):
        raise UserError("the checkpoint is cut short")

    monkeypatch.setattr(training, "fit", refuse)
    refused(make, "pretrain/tiny")
    (run,) = list_runs()
    assert run.status == "failed"
    assert len(list((run.directory / "checkpoints").iterdir())) == 4


def test_other_ranks_train_and_write_nothing(training, project, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(training, "fit", lambda experiment, run: run.log({"x": 1}, 1) or {})
    make("pretrain/tiny")
    assert not (project.folder / "runs/pretrain").exists()
    make("documents/tiny")  # rank 0 makes it alone
    assert project.executions == []


# Locks


def test_a_second_process_is_refused(project):
    experiment = config.load("documents/tiny")
    code = textwrap.dedent(
        """
        from athanor import config, errors
        from athanor.runs import store
        try:
            store.execute(config.load("documents/tiny"))
        except errors.UserError as error:
            print(error)
        """
    )

    def other():
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
        ).stdout

    with locked(experiment.directory):
        assert is_locked(experiment.directory)
        assert f"process {os.getpid()} is working on {experiment.directory}" in other()
        assert is_locked(experiment.directory), "asking must not let go of it"
        assert f"process {os.getpid()}" in other()
    assert not is_locked(experiment.directory)
    assert other() == ""
    assert project.executions == ["join"]


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    code = textwrap.dedent(
        f"""
        import os, pathlib, time
        from athanor.runs.lock import locked
        with locked(pathlib.Path({str(tmp_path)!r})):
            if os.fork() == 0:
                time.sleep(30)
            os.kill(os.getpid(), 9)
        """
    )
    subprocess.run([sys.executable, "-c", code], check=False, timeout=20)
    assert not is_locked(tmp_path)


# References


def test_a_run_is_found_by_folder_by_id_by_its_beginning_and_by_its_only_name(project, refused):
    _, run = both()
    for reference in (run.directory, run.id, run.id[:-12], "repeat/tiny", f"runs/{run.id}"):
        assert open_run(reference).directory == run.directory
    other = make("repeat/tiny", "job.times=3")
    text = refused(open_run, "repeat/tiny")
    assert run.id in text
    assert other.id in text
    assert "did you mean 'repeat/tiny'?" in refused(open_run, "repeat/tinny")
    assert "has no manifest.json" in refused(open_run, "data")
    beginnings = {run.fingerprint[0], other.fingerprint[0]}
    if len(beginnings) == 1:
        assert "begins several runs" in refused(open_run, f"repeat/tiny/{run.fingerprint[0]}")
    else:
        assert open_run(f"repeat/tiny/{other.fingerprint[0]}").directory == other.directory


def test_a_beginning_of_two_runs_is_refused(project, refused):
    run = make("documents/tiny")
    shutil.copytree(run.directory, run.directory.with_name(run.fingerprint[:4] + "0" * 12))
    assert "begins several runs" in refused(open_run, run.id[:-12])


def test_a_run_may_be_an_input(project):
    documents = make("documents/tiny")
    for reference in (documents.id, documents.id[:-8], str(documents.directory)):
        experiment = config.load("repeat/tiny", [f"inputs.documents={reference}"])
        assert experiment.fingerprint == config.load("repeat/tiny").fingerprint
    assert "has no manifest.json" in "".join(config.load("repeat/tiny", ["inputs.documents=/nowhere"]).problems)


def test_runs_are_listed_without_hidden_folders(project):
    both()
    shutil.copytree(project.folder / "runs/repeat", project.folder / "runs/.reproduce/repeat")
    assert [(run.name, run.status) for run in list_runs()] == [
        ("documents/tiny", "finished"),
        ("repeat/tiny", "finished"),
    ]


def test_a_temporary_is_whole_or_absent(tmp_path):
    context = RunContext(tmp_path, experiment=None)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError), context.temporary("deep/x.bin") as path:
        path.write_text("half" * (1 // (len(path.name) * 0)))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    with context.temporary("deep/x.bin") as path:
        path.write_text("whole")
        assert not (tmp_path / "deep/x.bin").exists()
    assert (tmp_path / "deep/x.bin").read_text() == "whole"


def test_a_run_knows_itself(project):
    run = make("documents/tiny", "+job.upper=true")
    assert run.root == project.folder / "runs"
    assert run.command == "athanor prepare experiment=documents/tiny +job.upper=true"
    assert Run(run.directory).outputs_digest == run.outputs_digest
