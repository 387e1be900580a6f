"""Two processes on the CPU (gloo) train as one does: the same run by its fingerprint, the same losses to rounding."""

from pathlib import Path
from typing import Any

import pytest
from furnace_project import PROGRESS, Furnace, only, read_lines

# Single precision and AdamW, so that only the order of sums differs: Muon's bfloat16 iterations magnify a rounding.
SETTINGS = ["precision=32-true", "optimizer=adamw", "~optimizer.matrix_lr", "max_steps=12", "validate_every_n_steps=6"]
DDP = ["cluster.accelerator=cpu", "cluster.devices=2", "strategy=ddp"]
TOLERANCE = {"loss": 1e-5, "preference_loss": 1e-5, "chosen_nll": 1e-5, "grad_norm": 1e-3, "lr": 0, "accuracy": 0}


@pytest.mark.slow
@pytest.mark.parametrize("step", ["pretrain", "dpo"])
def test_two_processes_log_what_one_does(furnace: Furnace, bench: Any, tmp_path: Path, step: str) -> None:
    """One command that starts the other process, as for pretraining here; or two, as torchrun starts them."""

    def words(name: str, *execution: str) -> list[str]:
        return furnace.command(step, tmp_path / name / "runs", *SETTINGS, "logger.every_n_steps=1", *execution)

    ended = bench.launch(words("one"), 1, tmp_path / "one")
    assert ended["codes"] == [0], (tmp_path / "one/said-0.txt").read_text()
    if step == "pretrain":
        outcome = furnace.run(*words("two", *DDP))
        assert outcome.code == 0, outcome.err
        assert outcome.out.count("finished") == 1, "rank 1 says nothing"
        assert [line for line in outcome.err.splitlines() if not PROGRESS.fullmatch(line)] == []
    else:
        ended = bench.launch(words("two", *DDP), 2, tmp_path / "two")
        first, second = ((tmp_path / f"two/said-{rank}.txt").read_text() for rank in range(2))
        assert ended["codes"] == [0, 0], first + second
        assert first.count("finished after") == 1
        assert second == "", "rank 1 says nothing"
    one, two = runs = [only(tmp_path / name / "runs") for name in ("one", "two")]
    assert one.name == two.name

    expected, found = (
        {
            (line["step"], name): value
            for line in read_lines(run / "metrics.jsonl")
            for name, value in line.items()
            if name.partition("/")[2] in TOLERANCE
        }
        for run in runs
    )
    assert found.keys() == expected.keys()
    assert {(1, "train/loss"), (12, "train/loss"), (6, "validation/loss"), (12, "train/grad_norm")} <= found.keys()
    far = {
        key: (value, found[key])
        for key, value in expected.items()
        if found[key] != pytest.approx(value, rel=TOLERANCE[key[1].partition("/")[2]], abs=0)
    }
    assert far == {}
    assert (one / "samples.jsonl").exists() == (two / "samples.jsonl").exists()
    assert one.joinpath("tokenizer.model").read_bytes() == two.joinpath("tokenizer.model").read_bytes()
