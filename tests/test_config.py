"""Composition, the parting of science and execution, fingerprints, and what composition says to a mistake."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from athanor import catalog, config, signatures

TRAINING = """
# Train the tiny model.
defaults: [/train, _self_]
allowed_targets: [tiny]
inputs: {documents: repeat/tiny}
seed: 1
max_steps: 10
global_batch_size: 8
validate_every_n_steps: 5
model: {_target_: tiny.Model, width: 4}
data:
  _target_: tiny.Loader
  path: ${inputs.documents}
  batch: 2
  limit: ${cluster.num_workers}
algorithm: {_target_: tiny.anything_goes, first: 1}
optimizer: {_target_: torch.optim.AdamW, _partial_: true, lr: 1e-3, betas: [0.9, 0.95]}
schedule: {_target_: tiny.schedule, _partial_: true, warmup_steps: 2}
"""


@pytest.fixture
def training(project):
    project.experiment("pretrain/tiny", TRAINING)
    return project


def load(*overrides, name="pretrain/tiny"):
    experiment = config.load(name, overrides)
    experiment.validate()
    return experiment


def test_an_experiment_resolves_its_inputs_into_run_directories(training):
    experiment = load()
    documents = config.load("repeat/tiny")
    assert experiment.kind == "train"
    assert experiment.directory == training.folder / "runs/pretrain/tiny" / experiment.fingerprint
    assert len(experiment.fingerprint) == 16
    assert experiment.inputs["documents"].experiment == documents
    assert experiment.config["data"]["path"] == str(documents.directory)
    assert experiment.science["data"]["path"] == documents.fingerprint
    assert [e.name for e in experiment.upstream()] == ["documents/tiny", "repeat/tiny"]
    raw = config.load("documents/tiny")
    assert raw.config["job"]["files"] == [str(training.folder / "data/a.txt"), str(training.folder / "data/b.txt")]


@pytest.mark.parametrize(
    "override",
    [
        "cluster.devices=4",
        "cluster.devices=auto",
        "cluster.nodes=2",
        "cluster.num_workers=3",  # though the data node takes it by interpolation
        "cluster.micro_batch_size=2",
        "cluster.accelerator=cpu",
        "cluster.threads=1",
        "cluster.compile=true",
        "cluster=gpus",
        "strategy=ddp",
        "strategy=fsdp2",
        "strategy=deepspeed_zero3",
        "logger=wandb",
        "logger.project=other",
        "checkpoint.every_n_steps=7",
        "display=quiet",
        "paths.runs=elsewhere",
        "tags=[a,b]",
    ],
)
def test_execution_leaves_the_fingerprint_alone(training, override):
    plain, changed = load(), load(override)
    assert changed.config != plain.config
    assert changed.fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    "override",
    [
        "seed=2",
        "max_steps=11",
        "global_batch_size=16",
        "validate_every_n_steps=2",
        "precision=bf16-mixed",
        "gradient_clip=0.5",
        "gradient_clip=null",
        "model.width=8",
        "+model.mode=slow",
        "data.batch=4",
        "algorithm.first=2",
        "+algorithm.second=2",
        "optimizer.lr=2e-3",
        "optimizer.betas=[0.9,0.9]",
        "optimizer._target_=torch.optim.Adam",
        "schedule.warmup_steps=3",
        "+schedule.decay=linear",
        "inputs.documents=documents/tiny",
        "inputs.documents={experiment: repeat/tiny, overrides: ['job.times=3']}",
    ],
)
def test_every_science_key_changes_the_fingerprint(training, override):
    assert load(override).fingerprint != load().fingerprint


def test_every_science_key_of_a_training_run_is_in_the_list_above(training):
    assert set(load().science) == {
        *("seed", "max_steps", "global_batch_size", "validate_every_n_steps", "precision", "gradient_clip"),
        *("model", "data", "algorithm", "optimizer", "schedule", "inputs"),
    }


def test_a_composed_override_back_to_the_same_value_is_the_same_run(training):
    assert load("seed=1", "optimizer.lr=0.001").fingerprint == load().fingerprint


def test_one_byte_of_a_raw_document_changes_every_run_after_it(training):
    before = [load(name=name).fingerprint for name in ("documents/tiny", "repeat/tiny", "pretrain/tiny")]
    training.write("data/a.txt", "onE ")
    after = [load(name=name).fingerprint for name in ("documents/tiny", "repeat/tiny", "pretrain/tiny")]
    assert not set(before) & set(after)
    training.write("data/a.txt", "one ")
    assert [load(name=name).fingerprint for name in ("documents/tiny", "repeat/tiny", "pretrain/tiny")] == before


def test_a_byte_changed_behind_restored_times_is_seen(training):
    path = training.folder / "data/a.txt"
    os.utime(path, ns=(10**18, 10**18))
    before = load().fingerprint
    path.write_text("One ")
    os.utime(path, ns=(10**18, 10**18))
    assert load().fingerprint != before


def test_a_name_counts_and_a_place_does_not(training, monkeypatch):
    before = load(name="documents/tiny").fingerprint
    (training.folder / "data").rename(training.folder / "moved")
    assert load("inputs.raw.files=moved/*.txt", name="documents/tiny").fingerprint == before
    (training.folder / "moved/a.txt").rename(training.folder / "moved/c.txt")
    assert load("inputs.raw.files=moved/*.txt", name="documents/tiny").fingerprint != before


def test_hashes_of_untouched_files_are_remembered(training, monkeypatch):
    for name in ("a", "b"):
        os.utime(training.folder / f"data/{name}.txt", ns=(10**18, 10**18))
    read = []
    monkeypatch.setattr("athanor.runs.files.sha256", lambda path: read.append(path.name) or "0" * 64)
    monkeypatch.setattr("athanor.runs.files.time.time_ns", lambda: 10**19)  # long after they were written
    load(name="documents/tiny")
    load(name="documents/tiny")
    assert read == ["a.txt", "b.txt"]


def test_the_standard_library_is_an_input(training):
    experiment = load("inputs.raw.files=python-stdlib", name="documents/tiny")
    names = {Path(path).name for path in experiment.config["job"]["files"]}
    assert {"argparse.py", "dataclasses.py"} <= names
    assert not any("/test/" in path or "site-packages" in path for path in experiment.config["job"]["files"])


def test_inputs_take_the_runs_folder_of_their_reader(training):
    experiment = load("paths.runs=elsewhere")
    assert {e.directory.parents[2].name for e in experiment.upstream()} == {"elsewhere"}


def test_stand_ins_reach_inputs_of_inputs(training):
    other = (
        config.load("documents/tiny", ["job.upper=true"])
        if False
        else config.load("documents/tiny", ["+job.upper=true"])
    )
    experiment = config.load("pretrain/tiny", stand_ins={"documents/tiny": other})
    assert next(experiment.upstream()) == other
    assert experiment.fingerprint != load().fingerprint
    given = config.load("repeat/tiny", inputs={"documents": other})
    assert given.inputs["documents"].fingerprint == other.fingerprint


def test_an_experiment_may_build_on_another(training):
    training.experiment("pretrain/wide", "# Wider.\ndefaults: [/pretrain/tiny@_global_, _self_]\nmodel: {width: 9}")
    experiment = load(name="pretrain/wide")
    assert experiment.config["model"] == {"_target_": "tiny.Model", "width": 9}
    assert experiment.config["seed"] == 1
    assert catalog.find("pretrain/wide").kind == "train"


def test_a_variable_of_the_experiments_own_is_science(training):
    training.experiment("pretrain/tiny", TRAINING.replace("width: 4", 'width: "${size}"') + "size: 4\n")
    assert load("size=5").fingerprint != load().fingerprint
    assert load("size=5").config["model"]["width"] == 5


# What is said to a mistake


def test_an_unknown_experiment_names_the_nearest(training, refused):
    assert "did you mean 'pretrain/tiny'?" in refused(config.load, "pretrain/tinny")
    training.experiment("pretrain/base", "model: {}")
    assert "defaults name none of /prepare, /train, /evaluate" in refused(config.load, "pretrain/base")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lrr=1", "pretrain/tiny has no 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
        ("max_step=1", "pretrain/tiny has no 'max_step'; did you mean 'max_steps'?"),
        ("clutser.devices=2", "did you mean 'cluster.devices'?"),
        ("strategy=fdsp2", "configs/strategy has no 'fdsp2'; did you mean 'fsdp2'?"),
        ("stratgy=ddp", "did you mean 'strategy'?"),
        ("+seed=2", "seed exists already; drop the +"),
        ("model/norm=post", "pretrain/tiny has no 'model/norm'; to add it, write +model/norm=post"),
        ("seed", "'seed' is no override; write key=value"),
        ("optimizer.betas=[0.9", "is no override; write key=value"),
        ("~model.depth", "pretrain/tiny has no 'model.depth'"),
    ],
)
def test_a_wrong_override_is_one_sentence(training, refused, override, said):
    text = refused(config.load, "pretrain/tiny", [override])
    assert said in text
    assert len(text.splitlines()) == 1


def test_all_wrong_overrides_are_named_at_once(training, refused):
    text = refused(config.load, "pretrain/tiny", ["seed=2", "optimizer.lrr=1", "strategy=fdsp2", "x y=1"])
    assert [said in text for said in ("optimizer.lrr", "fdsp2", "'x y=1'", "seed=2")] == [True, True, True, False]
    assert len(text.splitlines()) == 4


def test_a_broken_file_is_named_with_its_line(training, refused):
    training.experiment("pretrain/broken", "defaults: [/train, _self_]\nseed: 1\nmodel: {width: [1\ndata: 2")
    assert "experiments/pretrain/broken.yaml, line 4" in refused(config.load, "pretrain/broken")
    training.experiment("pretrain/broken", "defaults: [/train, override /strategy: dpp, _self_]\nseed: 1")
    text = refused(config.load, "pretrain/broken")
    assert (
        "experiments/pretrain/broken.yaml does not compose: configs/strategy has no 'dpp'; did you mean 'ddp'?" in text
    )


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ("{raw: {files: data/*.md}}", "inputs.raw: no file matches 'data/*.md'"),
        ("{raw: {files: data}}", "inputs.raw: 'data' is a folder; say which of its files"),
        ("{raw: {file: data/*.txt}}", "inputs.raw: must name an experiment or a run"),
        ("{raw: {files: data/*.txt, overrides: [], sorted: true}}", "inputs.raw: has no 'sorted'"),
        ("{raw: document/tiny}", "inputs.raw: there is no experiment 'document/tiny'; did you mean 'documents/tiny'?"),
        ("{raw: '???'}", "inputs.raw: unset"),
        ("{row: {files: data/*.txt}}", "${inputs.raw} refers to nothing; did you mean 'inputs.row'?"),
        ("{raw: '${paths.data}/x'}", "${paths.data} refers to nothing; did you mean 'paths.data_root'?"),
        ("{raw: other/loop}", "lead back to itself: other/loop <- other/loop"),
    ],
)
def test_a_wrong_input_is_one_sentence(project, refused, inputs, said):
    project.experiment(
        "other/loop",
        f"# x\ndefaults: [/prepare, _self_]\nallowed_targets: [tiny]\ninputs: {inputs}\n"
        "job: {_target_: tiny.Join, files: '${inputs.raw}'}",
    )
    text = refused(lambda: config.load("other/loop").validate())
    assert said in text
    assert len(text.splitlines()) <= 3


def test_problems_of_the_config_and_of_its_inputs_come_together(project, refused):
    project.experiment(
        "other/bad",
        """
        defaults: [/prepare, _self_]
        allowed_targets: [tiny]
        inputs: {raw: {files: data/*.md}}
        seeed: 3
        job: {_target_: tiny.Join, files: "${inputs.raw}", uper: true, upper: 1}
        """,
    )
    text = refused(config.load("other/bad").validate)
    for said in ("no file matches", "has no 'seeed'", "tiny.Join has no 'uper'", "job.upper is 1 (int)"):
        assert said in text


def test_a_mistake_in_an_input_experiment_is_told_with_its_name(project, refused):
    project.write("data/a.txt", "x")
    text = refused(
        lambda: config.load(
            "repeat/tiny", ["inputs.documents={experiment: documents/tiny, overrides: ['job.uper=1']}"]
        ).validate()
    )
    assert "inputs.documents: documents/tiny does not take these overrides: job.uper=1" in text


def test_applicable_overrides_are_those_whose_key_exists(training):
    texts = ["seed=2", "job.times=3", "cluster=gpus", "cluster.devices=2", "strategy=ddp", "optimizer.betas.1=0.5"]
    assert config.applicable("pretrain/tiny", texts) == [t for t in texts if t != "job.times=3"]
    assert config.applicable("repeat/tiny", texts) == ["job.times=3", "cluster=gpus", "cluster.devices=2"]


def test_build_makes_objects_of_plain_values_and_passes_on_refusals(refused):
    built = config.build({"_target_": "collections.Counter", "a": [1, {"b": 2}]})
    assert type(built["a"]) is list
    assert type(built["a"][1]) is dict
    assert "fractions.Fraction: " in refused(config.build, {"_target_": "fractions.Fraction", "numerator": "x"})
    with pytest.raises(TypeError):
        config.build({"_target_": "fractions.Fraction", "numerator": None, "denominator": []})


def test_commands_can_be_pasted(training):
    assert config.load("repeat/tiny", ["job.times=3"]).command == "athanor prepare experiment=repeat/tiny job.times=3"
    listed = config.load("pretrain/tiny", ["optimizer.betas=[0.9, 0.9]"]).command
    assert listed == "athanor train experiment=pretrain/tiny 'optimizer.betas=[0.9, 0.9]'"


def test_a_class_tells_by_its_version_that_it_computes_something_else(training, tmp_path, monkeypatch):
    source = tmp_path / "somebody" / "jobs.py"
    source.parent.mkdir()
    (source.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    target = ["allowed_targets=[tiny,somebody]", "schedule._target_=somebody.jobs.slow"]
    found = []
    for text in ("class slow: pass", "class slow:\n    # said better\n    pass", "class slow:\n    version = 2",
                 "class slow:\n    version: int = 3", "class slow:\n    version = 3"):  # fmt: skip
        source.write_text(text)
        for cache in (signatures._module, signatures.signature):
            cache.cache_clear()
        found.append(config.load("pretrain/tiny", target).fingerprint)
    assert found[0] == found[1]
    assert len(set(found)) == 3
    assert found[3] == found[4]
