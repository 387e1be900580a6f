"""The checker against constructors: every kind of problem, every kind of annotation, and nothing imported for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from athanor import config, signatures
from athanor.signatures import signature

COMMON = {
    "kind": "prepare",
    "name": "x",
    "tags": [],
    "inputs": {},
    "allowed_targets": ["tiny"],
    "cluster": {
        "accelerator": "cpu",
        "devices": 1,
        "nodes": 1,
        "micro_batch_size": None,
        "num_workers": 0,
        "threads": None,
        "compile": False,
    },
    "logger": {"wandb": False, "tensorboard": False, "project": "x", "every_n_steps": 1},
    "paths": {"runs": "runs", "data_root": "data"},
    "display": {"progress": "auto"},
}


def problems(job, **others):
    return config.check({**COMMON, "job": job, **others})


def loader(**keywords):
    return problems({"_target_": "tiny.Loader", "path": "x", "batch": 1, **keywords})


def test_a_right_config_has_no_problem():
    assert loader() == []


@pytest.mark.parametrize(
    ("key", "right", "wrong", "takes"),
    [
        ("batch", [1, -3], [1.0, "1", True, None, [1]], "int"),
        ("rate", [0.5, 1, float("inf")], ["0.1", True, None], "float"),
        ("shuffle", [True, False], [1, "true", None], "bool"),
        ("path", ["a", ""], [1, None, ["a"]], "str or Path"),
        ("limit", [1, None], [1.5, "1", False], "int or null"),
        ("names", [["a", "b"], []], ["a", ["a", 1], None, {"a": 1}], "a list of str"),
        ("betas", [[0.9, 1]], [[0.9], [0.9, 0.9, 0.9], [0.9, "x"], 0.9], "a list of 2: float, float"),
        ("sizes", [[], [1, 2, 3]], [[1, "2"], 1], "a list of int"),
        ("weights", [{"a": 1, "b": 0.5}, None], [{"a": "x"}, [1]], "a mapping or null"),
        ("extra", [{"a": [1]}, None], [{"a": [1.5]}, {"a": 1}], "a mapping or null"),
        ("mode", ["fast", "slow", 3], ["fsat", 4, None], "'fast'"),
        ("hook", [None, {"_target_": "tiny.chain", "_partial_": True}], ["f", 1], "a node with _target_"),
        ("start", [None], [1, "x", [1]], "a node with _target_ (Tensor) or null"),
        ("inner", [None, {"_target_": "tiny.Model", "width": 1}], [1, {"width": 1}], "a node with _target_ (Model)"),
        ("colour", ["red"], [], ""),
        ("anything", [1, "x", None, [1], {"a": 1}], [], ""),
        ("implicit", [1, None], ["x"], "int or null"),
    ],
)
def test_each_annotation_takes_the_right_and_refuses_the_wrong(key, right, wrong, takes):
    for value in right:
        assert loader(**{key: value}) == [], value
    for value in wrong:
        found = loader(**{key: value})
        assert len(found) == 1, (value, found)
        assert found[0].startswith(f"job.{key} is ")
        assert "tiny.Loader takes " in found[0]
        assert takes in found[0]


def test_all_problems_are_found_at_once_with_the_nearest_key():
    found = problems(
        {
            "_target_": "tiny.Loader",
            "bacth": 3,
            "rate": "fast",
            "inner": {"_target_": "tiny.Model", "wdith": 3, "width": "3"},
            "anything": [{"_target_": "tiny.Nothing"}, {"deep": {"_target_": "os.system", "command": "true"}}],
            "limit": "???",
        },
        seeed=1,
    )
    expected = [
        "seeed: the experiment has no 'seeed'",
        "job.bacth: tiny.Loader has no 'bacth'; did you mean 'batch'?",
        "job.rate is 'fast' (str), but tiny.Loader takes float",
        "job.limit is unset (???): give it a value, `job.limit=...`",
        "job.path is missing: tiny.Loader needs it (str or Path)",
        "job.batch is missing: tiny.Loader needs it (int)",
        "job.inner.wdith: tiny.Model has no 'wdith'",
        "job.inner.width is '3' (str), but tiny.Model takes int",
        "job.anything.0: there is no tiny.Nothing: tiny has no 'Nothing'",
        "job.anything.1.deep: os.system lies outside the allowed packages",
    ]
    assert len(found) == len(expected), found
    for said in expected:
        assert any(problem.startswith(said) for problem in found), (said, found)


def test_a_partial_node_may_lack_keys_and_not_invent_them():
    node = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-3}
    assert loader(hook=node) == []
    assert loader(hook={**node, "learning_rate": 1}) != []
    assert "did you mean 'weight_decay'?" in loader(hook={**node, "weight_decy": 0.1})[0]
    assert "takes float or a node with _target_ (Tensor)" in loader(hook={**node, "lr": "1e-3"})[0]
    assert any("params is missing" in problem for problem in loader(hook={**node, "_partial_": False}))


def test_unset_values_in_lists_and_plain_mappings_are_found():
    found = problems({"_target_": "tiny.chain", "parts": [1, "???", {"a": "???"}]})
    assert [problem.partition(" ")[0] for problem in found] == ["job.parts.1", "job.parts.2.a"]


def test_positional_arguments_count_as_given():
    assert problems({"_target_": "tiny.Point", "_args_": [1], "y": 2}) == []
    assert "job.x is missing" in problems({"_target_": "tiny.Point", "y": 2})[0]


def test_what_the_program_supplies_may_be_absent_and_must_not_be_given():
    train = {
        **dict.fromkeys(("seed", "max_steps", "global_batch_size", "validate_every_n_steps"), 1),
        **{"precision": "32-true", "gradient_clip": None, "strategy": "auto"},
        "checkpoint": {"every_n_steps": 1, "keep": 1},
        **{key: {"_target_": "tiny.chain", "parts": []} for key in ("model", "data", "optimizer", "schedule")},
        "algorithm": {"_target_": "tiny.anything_goes", "first": 1},
    }
    assert config.check({**COMMON, **train, "kind": "train"}) == []
    train["algorithm"] = {"_target_": "torch.optim.lr_scheduler.LinearLR"}  # needs `optimizer`, which is supplied
    assert config.check({**COMMON, **train, "kind": "train"}) == []
    train["algorithm"]["optimizer"] = 1
    assert "is given 'optimizer' by the program" in config.check({**COMMON, **train, "kind": "train"})[0]
    del train["seed"]
    train |= {"precision": "bf16", "max_steps": 10.5, "model": "decoder"}
    found = "\n".join(config.check({**COMMON, **train, "kind": "train"}))
    for said in ("seed is missing", "precision is 'bf16' (str)", "max_steps is 10.5", "model is 'decoder' (str)"):
        assert said in found


def test_execution_groups_are_checked_too():
    cluster = {**COMMON["cluster"], "devices": None, "treads": 1}
    found = "\n".join(problems({"_target_": "tiny.chain", "parts": []}, cluster=cluster, display={"progress": "loud"}))
    for said in (
        "cluster.treads: cluster has no 'treads'",
        "cluster.devices is null",
        "display.progress is 'loud' (str), but display takes one of 'auto', 'rich', 'plain', 'quiet'",
    ):
        assert said in found


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("torch.optim.AdamWW", "did you mean 'AdamW'?"),
        ("torch.optm.AdamW", "did you mean 'optim'?"),
        ("tiny.Loader.defalt", "did you mean 'default'?"),
        ("tiny", "tiny is a module and cannot be called"),
        ("subprocess.run", "outside the allowed packages"),
        ("torch.os.system", "outside the allowed packages"),
        ("athanor.config.os.system", "outside the allowed packages"),
        ("???", "job._target_ is unset"),
        (3, "job._target_ is unset"),
    ],
)
def test_a_wrong_target_is_told(target, said):
    found = problems({"_target_": target})
    assert len(found) == 1
    assert said in found[0]


def test_dataclasses_named_tuples_methods_and_inheritance_are_read():
    assert list(signature("tiny.MoreSettings").parameters) == ["size", "names", "rate"]
    assert [p.required for p in signature("tiny.MoreSettings").parameters.values()] == [True, False, False]
    assert list(signature("tiny.Loader.default").parameters) == ["path"]
    assert signature("tiny.Point").parameters["y"].required is False
    assert signature("tiny.anything_goes").open
    assert list(signature("tiny.Model").parameters) == ["width", "mode"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "target",
    [
        "torch.optim.AdamW",
        "torch.optim.SGD",
        "torch.optim.Muon",
        "torch.nn.Linear",
        "torch.nn.TransformerEncoderLayer",
        "torch.nn.functional.cross_entropy",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "lightning.Trainer",
        "lightning.pytorch.strategies.FSDPStrategy",
        "lightning.pytorch.strategies.ModelParallelStrategy",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "torchmetrics.text.Perplexity",
        "tiny.Loader",
        "tiny.MoreSettings",
        "tiny.Point",
        "tiny.Model",
    ],
)
def test_what_is_read_from_source_is_what_the_import_says(target):
    read, imported = signature(target), signatures._imported(target)
    assert {n: p.required for n, p in read.parameters.items()} == {
        n: p.required for n, p in imported.parameters.items()
    }
    assert read.open == imported.open


def test_nothing_heavy_is_imported_to_check():
    code = """
import sys
from athanor import signatures
for target in ("torch.optim.AdamW", "lightning.Trainer", "torch.nn.Linear", "torchmetrics.text.Perplexity"):
    assert signatures.signature(target).parameters
heavy = {"torch", "lightning", "torchmetrics", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
