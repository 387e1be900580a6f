"""Real runs that save in shares: killed, damaged, gone on with by others, and consolidated."""

from pathlib import Path
from typing import Any

import pytest
import torch
from furnace_project import only, read_json, read_lines
from safetensors.torch import load_file
from test_kill import assert_same

from athanor import shares
from athanor.callbacks.checkpoints import newest

pytestmark = [pytest.mark.strategies, pytest.mark.slow]
SHARED = "checkpoint.sharded=true"
KILLED = {"kind": "kill_all", "rank": 0, "place": "forward", "step": 8, "micro": 0}  # of step 6, at least of step 4


def said(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("said-*.txt")))


def killed(bench: Any, folder: Path, algorithm: str, strategy: str = "fsdp2") -> Path:
    ended = bench.launch(bench.words(algorithm, strategy, folder / "runs", SHARED), 2, folder, KILLED)
    assert set(ended["codes"]) == {-9}, said(folder)
    return only(folder / "runs")


@pytest.mark.parametrize(("algorithm", "strategy"), [("dpo", "fsdp2"), ("ppo", "fsdp2"), ("dpo", "deepspeed_zero3")])
def test_killed_and_gone_on_with_it_ends_with_the_bits_of_an_undisturbed_run(
    bench, here, tmp_path, algorithm, strategy
):
    """Which had gathered its checkpoints. Two are in shares when it is killed; of the newest then a bit is flipped."""
    run = killed(bench, tmp_path, algorithm, strategy)
    *_, before, last = sorted((run / "checkpoints").glob("step-*.ckpt"))
    assert before.is_dir()
    assert last.is_dir()
    assert len(list(last.glob("__*.distcp"))) == 2

    outcome = here("consolidate", str(run), str(tmp_path / "model"))
    assert outcome.code == 0, outcome.err
    state = shares.load(last)["state_dict"]
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert [name for name, weight in weights.items() if not torch.equal(weight, state[f"model.{name}"])] == []

    part = last / "__1_0.distcp"
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 1
    part.write_bytes(content)
    again = bench.launch(bench.words(algorithm, strategy, tmp_path / "runs", SHARED), 2, tmp_path)
    assert again["codes"] == [0, 0], said(tmp_path)
    assert f"{last.name} is damaged; resuming from {before.name} instead" in said(tmp_path)
    assert_same(run, only(bench.reference(algorithm, strategy) / "runs"))
    assert not list((run / "checkpoints").glob("*")), "nothing stays of a finished run"


def test_others_go_on_with_it(bench, tmp_path):
    """One process, by the end within rounding of the run that two have finished."""
    run = killed(bench, tmp_path, "sft")
    assert newest(run / "checkpoints").is_dir()
    again = bench.launch(bench.words("sft", "single", tmp_path / "runs"), 1, tmp_path)
    assert again["codes"] == [0], said(tmp_path)
    reference = only(bench.reference("sft", "fsdp2") / "runs")
    expected, found = (load_file(one / "model.safetensors") for one in (reference, run))
    for name, weight in expected.items():
        assert float((found[name] - weight).norm() / weight.norm()) < 1e-3, name
    losses = [
        [line["train/loss"] for line in read_lines(one / "metrics.jsonl") if "train/loss" in line]
        for one in (reference, run)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert read_json(run / "manifest.json")["attempts"][-1]["from_step"] >= 4


def test_a_read_only_folder_is_told_of_by_one_sentence(bench, tmp_path):
    fault = {"kind": "readonly", "rank": 0, "step": 4}
    ended = bench.launch(bench.words("sft", "fsdp2", tmp_path / "runs", SHARED), 2, tmp_path, fault)
    assert ended["codes"] == [2, 2], said(tmp_path)
    assert said(tmp_path).count("The checkpoint of step 4 cannot be written to") == 1
    assert "Permission denied" in said(tmp_path)
    (only(tmp_path / "runs") / "checkpoints").chmod(0o755)
    again = bench.launch(bench.words("sft", "fsdp2", tmp_path / "runs", SHARED), 2, tmp_path)
    assert again["codes"] == [0, 0], said(tmp_path)
    assert_same(only(tmp_path / "runs"), only(bench.reference("sft", "fsdp2") / "runs"))


def test_a_strategy_that_gathers_refuses(furnace, here, tmp_path):
    more = ["optimizer=adamw", "~optimizer.matrix_lr", "strategy=fsdp", "cluster.accelerator=cpu", SHARED]
    outcome = here(*furnace.command("sft", tmp_path, *more))
    assert outcome.code == 2
    assert "FSDP gathers its checkpoints; leave checkpoint.sharded out" in outcome.err
