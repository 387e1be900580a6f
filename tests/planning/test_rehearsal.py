"""What `--check` and `submit` refuse of a training whose keys are right: parts that do not suit each other, and a model
too large for the device.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from athanor import catalog, config
from athanor.cli import main
from athanor.errors import UserError
from athanor.planning.rehearsal import check_memory, rehearse

TRAININGS = sorted(entry.name for entry in catalog.entries("train"))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.heads=5"], r"model\.width=128 must be an even multiple of model\.heads=5"),
        (["+model/feedforward=experts", "model.feedforward.top_k=99"], r"top_k=99 exceeds model\.feedforward\.experts"),
        (
            [
                *("+model/positions=yarn", "model.positions.scaling.factor=2"),
                "model.positions.scaling.original_context=128",
            ],
            r"model\.context=512 exceeds what model\.positions\.scaling reaches",
        ),
        (["optimizer.lr=-1"], r"^optimizer\.lr=-1 must be at least 0"),
        (["optimizer=adamw", "~optimizer.matrix_lr", "optimizer.lr=-1"], "^optimizer: Invalid learning rate: -1"),
        (["schedule.warmup_steps=-1"], "schedule.*warmup_steps"),
        (["checkpoint.keep=0"], r"checkpoint\.keep must be at least 1"),
        (["validate_every_n_steps=0"], "validate_every_n_steps=0 must be at least 1"),
        (["global_batch_size=6", "cluster.devices=4", "strategy=ddp"], "the nearest that do: 4 or 8"),
        (["cluster.devices=2"], "strategy=single trains on one device"),
        (["cluster.devices=3", "strategy=fsdp2_tp", "global_batch_size=6"], "tensor_parallel=2 does not divide the 3"),
        (["cluster.devices=2", "strategy=deepspeed_zero3", "precision=16-true"], "precision=16-true is not for"),
        (["cluster.devices=2", "strategy=fsdp", "optimizer=muon"], "needs whole matrices"),
    ],
)
def test_what_does_not_suit_is_named(overrides, sentence):
    experiment = config.load("pretrain/demo", ["strategy=single", "cluster=cpu", *overrides])
    experiment.validate()  # every key by itself is right
    with pytest.raises(UserError, match=sentence):
        rehearse(experiment)


@pytest.mark.parametrize("name", TRAININGS)
def test_every_experiment_passes_with_none_of_its_inputs_made(name):
    """From the model of an experiment upstream to the files of the user, what is not there yet is no reason."""
    rehearse(config.load(name, ["cluster=cpu"]))


def test_a_model_beyond_the_device_is_refused_with_what_would_fit():
    node = ("cluster=local-slurm", "cluster.slurm.memory=4G")
    with pytest.raises(UserError, match=r"(?s)^pretrain/demo does not fit: .* has 4\.0.*micro_batch_size="):
        check_memory(config.load("pretrain/demo", [*node, "global_batch_size=1024"]))
    check_memory(config.load("pretrain/demo", list(node)))


def test_what_a_device_holds_is_asked_of_the_cluster_and_not_of_this_machine():
    check_memory(config.load("ladder/1.3b", ["cluster=slurm", "strategy=ddp", "cluster.slurm.gpu_type=unheard-of"]))


def test_the_command_line_says_it(capsys):
    assert main(["train", "experiment=pretrain/demo", "model.heads=5", "--check"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("athanor: ")
    assert "model.heads=5" in said.err
    assert main(["sweep", "ablation=positions", "model.kv_heads=3", "--check"]) == 2
    assert "model.kv_heads=3 must divide model.heads=4" in capsys.readouterr().err


def test_a_misspelt_key_is_named_before_torch_is_imported():
    check = "import sys; from athanor.cli import main; code = main(sys.argv[1:]); print(code, 'torch' in sys.modules)"
    words = ("train", "experiment=pretrain/demo", "+model.heeds=5", "--check")
    found = subprocess.run([sys.executable, "-c", check, *words], capture_output=True, text=True, check=True)
    assert found.stdout == "2 False\n"
    assert "'heads'" in found.stderr
