"""Real runs of two processes under each strategy: killed and started again they end with the same bits, what one
strategy has saved another takes up, and the finished model is whole.
"""

import signal
from pathlib import Path
from typing import Any

import pytest
from furnace_project import Furnace, only, read_json, read_lines
from safetensors.torch import load_file
from test_kill import assert_same, saved, stop

pytestmark = [pytest.mark.strategies, pytest.mark.slow]

ADAMW = ["optimizer=adamw", "~optimizer.matrix_lr"]
SETTINGS = [*ADAMW, "max_steps=14", "checkpoint.every_n_steps=4", "logger.every_n_steps=1", "validate_every_n_steps=8"]
SETTINGS += ["schedule.warmup_steps=2"]
TWO = ["cluster.accelerator=cpu", "cluster.devices=2"]


def words(furnace: Furnace, step: str, runs: Path, strategy: str, *more: str) -> list[str]:
    sharded = [f"strategy={strategy}"]
    settings = [word for word in SETTINGS if step != "ppo" or word not in ADAMW]  # which PPO's experiment has already
    if strategy == "deepspeed_zero3":
        sharded.append("+strategy.persistence_threshold=0")
    return furnace.command(step, runs, *settings, *TWO, *sharded, *more)


@pytest.mark.parametrize(
    ("strategy", "step"),
    [("ddp", "dpo"), ("fsdp", "pretrain"), ("fsdp2", "dpo"), ("fsdp2", "ppo"), ("fsdp2_tp", "pretrain"),
     ("deepspeed_zero2", "dpo"), ("deepspeed_zero3", "pretrain"), ("deepspeed_zero3", "ppo")],
)  # fmt: skip
def test_killed_and_started_again_it_ends_with_the_same_bits(furnace: Furnace, tmp_path: Path, strategy, step) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    shape = ["model.kv_heads=2"] if strategy == "fsdp2_tp" else []
    outcome = furnace.run(*words(furnace, step, whole, strategy, *shape))
    assert outcome.code == 0, outcome.err
    stop(furnace, words(furnace, step, parts, strategy, *shape), parts, lambda run: saved(run) >= 4, signal.SIGKILL)
    assert saved(only(parts)) >= 4
    outcome = furnace.run(*words(furnace, step, parts, strategy, *shape))
    assert outcome.code == 0, outcome.err
    assert_same(only(parts), only(whole))


def losses(run: Path) -> list[float]:
    return [line["train/loss"] for line in read_lines(run / "metrics.jsonl") if "train/loss" in line]


def test_what_one_strategy_saved_another_takes_up(furnace: Furnace, tmp_path: Path) -> None:
    """Stopped after every fourth step and gone on with under another, the run is that of one process, to rounding."""
    precise = ["precision=32-true", "+optimizer.eps=1e-6", "model.kv_heads=2"]
    chain = ["fsdp2", "deepspeed_zero2", "fsdp2_tp", "deepspeed_zero3", "fsdp"]
    alone, relay = tmp_path / "alone", tmp_path / "relay"
    long = ["max_steps=20"]
    outcome = furnace.run(*furnace.command("pretrain", alone, *SETTINGS, *precise, *long))
    assert outcome.code == 0, outcome.err
    for turn, strategy in enumerate(chain[:-1], 1):
        more = words(furnace, "pretrain", relay, strategy, *precise, *long)
        stop(furnace, more, relay, lambda run, last=4 * turn: saved(run) >= last, signal.SIGKILL)
    outcome = furnace.run(*words(furnace, "pretrain", relay, chain[-1], *precise, *long))
    assert outcome.code == 0, outcome.err
    assert losses(only(relay)) == pytest.approx(losses(only(alone)), rel=1e-4)
    expected, found = (load_file(only(runs) / "model.safetensors") for runs in (alone, relay))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert float((found[name] - weight).norm() / weight.norm()) < 1e-3, name


@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed_zero3"])
def test_mixed_precision_is_that_of_one_process(furnace: Furnace, tmp_path: Path, strategy: str) -> None:
    """bfloat16 autocast over float32 weights: nothing but the order of sums differs."""
    found = {}
    for name, execution in (("one", []), ("two", [*TWO, f"strategy={strategy}"])):
        outcome = furnace.run(
            *furnace.command("pretrain", tmp_path / name, *SETTINGS, "precision=bf16-mixed", "max_steps=8", *execution)
        )
        assert outcome.code == 0, outcome.err
        found[name] = losses(only(tmp_path / name))
    assert found["two"] == pytest.approx(found["one"], rel=2e-3)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["strategy=single", "cluster.devices=2"], "strategy=single trains on one device, but the cluster has 1 x 2"),
        (["strategy=fsdp2_tp", "cluster.devices=3", "global_batch_size=12"],
         "strategy.tensor_parallel=2 does not divide the 3 processes"),
        (["strategy=fsdp2_tp", "cluster.devices=2"], "strategy.tensor_parallel=2 does not divide model.kv_heads=1"),
        (["strategy=hsdp", "cluster.devices=3", "global_batch_size=12"],
         "strategy.replicas=2 does not divide the 3 processes"),
        (["strategy=deepspeed_zero2", "precision=bf16-true"], "precision=bf16-true is not for ZeRO"),
        (["strategy=fsdp2", "precision=16-mixed"], "precision=16-mixed is not for FSDP2"),
        (["strategy=deepspeed_zero2", "strategy.stage=4"],
         "strategy.stage is 4 (int), but athanor.strategies.ZeRO takes one of 1, 2, 3"),
        (["strategy=zero3_offload", "strategy.stage=2"], "strategy.offload=true needs strategy.stage=3"),
        (["strategy=deepspeed_zero2", "cluster.devices=2"], "MuonWithAdamW needs whole matrices"),
        (["strategy=deepspeed_zero2", "cluster.devices=2", "optimizer=lamb", "~optimizer.matrix_lr"],
         "LAMB needs whole matrices"),
        ([*ADAMW, "strategy=fsdp2", "cluster.devices=2", "+callbacks/guard=skip"], "FSDP2 cannot leave a step out"),
        ([*ADAMW, "strategy=deepspeed_zero3", "cluster.devices=2", "+callbacks/average=ema"],
         "ZeRO cuts the weights in other places than their copy that ExponentialAverage keeps"),
        (["strategy=zero2"], "configs/strategy has no 'zero2'"),
        (["~optimizer.matrix_lr"],
         "missing 1 required positional argument: 'matrix_lr'; give it a value, as optimizer.NAME=VALUE"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_sentence(furnace: Furnace, here: Any, tmp_path: Path, more, sentence):
    outcome = here(*furnace.command("pretrain", tmp_path, "cluster.accelerator=cpu", *more))
    assert outcome.code == 2
    assert sentence in " ".join(outcome.err.split()), outcome.err
    assert not list(tmp_path.glob("*/*/*/checkpoints/*"))


def test_prove_says_how_far_apart_they_are(furnace: Furnace, tmp_path: Path) -> None:
    """One strategy that trains the same model, and one that refuses."""
    given = furnace.command("pretrain", tmp_path, *ADAMW, "precision=32-true", "schedule.warmup_steps=1", *TWO)
    outcome = furnace.run("prove", *given[1:], "strategies=fsdp2,fsdp2_tp", "steps=3")
    assert outcome.code == 1, outcome.err
    (found,) = tmp_path.glob(".prove/*/*/*/prove.json")
    result = read_json(found)
    good, refused = result["trainings"]
    assert 0 < good["loss"] < 1e-5
    assert good["weights"] < 1e-3
    assert "strategy.tensor_parallel=2 does not divide model.kv_heads=1" in refused["error"]
    assert f"| fsdp2 | {good['loss']:.1e} |" in outcome.out
    assert (found.parent / "prove.md").read_text() in outcome.out
