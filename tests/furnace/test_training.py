"""Optimizers, schedules and callbacks by config, in real runs: each takes two steps; lost, spiking, stopped and
interrupted trainings end as they should.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from furnace_project import REPOSITORY, Furnace, Outcome, only, read_json, read_lines
from test_kill import assert_same, saved, stop

Here = Callable[..., Outcome]

CONFIGS = REPOSITORY / "configs"
CHOICES = [
    *(f"optimizer={path.stem}" for path in sorted((CONFIGS / "optimizer").glob("*.yaml"))),
    *(f"schedule={path.stem}" for path in sorted((CONFIGS / "schedule").glob("*.yaml"))),
    *(f"+{path.relative_to(CONFIGS).parent}={path.stem}" for path in sorted((CONFIGS / "callbacks").rglob("*.yaml"))),
]
ADAMW = ["optimizer=adamw", "~optimizer.matrix_lr", "optimizer.lr=1e-3", "precision=32-true"]
OWN = ["allowed_targets=[poison]", "+callbacks.poison._target_=poison.Poison"]


def test_the_choices_are_those_that_the_documents_name():
    text = (REPOSITORY / "docs/training.md").read_text("utf-8")
    for choice in CHOICES:
        assert (choice if choice.startswith("+") else f"`{choice.partition('=')[2]}`") in text, choice


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_takes_two_steps(furnace: Furnace, here: Here, tmp_path: Path, choice: str) -> None:
    if choice == "optimizer=schedule_free":
        pytest.importorskip("schedulefree")
    overrides = ["max_steps=2", "validate_every_n_steps=1", "schedule.warmup_steps=1", "logger.every_n_steps=1"]
    if choice.startswith("optimizer=") and choice != "optimizer=muon":
        overrides += ["~optimizer.matrix_lr"]
    if choice.startswith("schedule=") and choice not in ("schedule=cosine", "schedule=linear"):
        overrides += ["~schedule.final_fraction"] if choice != "schedule=wsd" else []
    words = furnace.command("pretrain", tmp_path, *overrides)
    outcome = here(*words, choice)
    assert outcome.code == 0, outcome.err
    run = only(tmp_path)
    assert [line["step"] for line in read_lines(run / "metrics.jsonl") if "train/loss" in line] == [1, 2]
    assert run.name != furnace.directory("pretrain").name
    assert read_json(run / "diagnosis.json")["verdict"] == "too early"
    assert "diagnosis.json" not in read_json(run / "manifest.json")["outputs"], "it is no result, but a reading of them"


def test_a_warm_up_in_tokens(furnace: Furnace, here: Here, tmp_path: Path) -> None:
    """8 rows of 64 tokens a step: 1100 tokens are 3 steps. SFT's samples are of many lengths."""
    tokens = ["schedule.warmup_steps=0", "+schedule.warmup_tokens=1100", "max_steps=4", "logger.every_n_steps=1"]
    outcome = here(*furnace.command("pretrain", tmp_path / "a", *tokens, *ADAMW, "schedule=constant",
                                    "~schedule.final_fraction"))  # fmt: skip
    assert outcome.code == 0, outcome.err
    rates = [line["train/lr"] for line in read_lines(only(tmp_path / "a") / "metrics.jsonl") if "train/lr" in line]
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3])
    refused = here(*furnace.command("sft", tmp_path / "b", *tokens))
    assert refused.code == 2
    assert "schedule.warmup_tokens needs samples of one length" in refused.err
    assert list((tmp_path / "b").rglob("manifest.json")) == []


@pytest.mark.parametrize("every", [3, 100])
def test_a_lost_training_says_where_it_was_last_good(furnace: Furnace, here: Here, tmp_path: Path, every: int) -> None:
    words = furnace.command(
        "pretrain", tmp_path, *ADAMW, "max_steps=12", f"checkpoint.every_n_steps={every}", "display=quiet", *OWN,
        "+callbacks.poison.steps=[8]", "+callbacks.poison.factor=nan", "logger.every_n_steps=1",
    )  # fmt: skip
    outcome = here(*words)
    assert outcome.code == 2
    run = only(tmp_path)
    (sentence,) = outcome.err.strip().splitlines()
    assert sentence.startswith("athanor: The training is lost at step 8: loss ")
    assert "Traceback" not in (run / "log.txt").read_text()
    manifest = read_json(run / "manifest.json")
    assert manifest["status"] == "failed"
    assert "is lost at step 8" in manifest["error"]
    kept = sorted((run / "checkpoints").glob("*.ckpt"))
    if every == 3:
        assert [path.name for path in kept] == ["step-00000003.ckpt", "step-00000006.ckpt"]
        assert f"the last good checkpoint is {kept[-1]}, from which the same command goes on" in sentence
        again = here(*words)
        assert "is lost at step 8" in again.err
        assert read_json(run / "manifest.json")["attempts"][-1]["from_step"] == 6
    else:
        assert kept == []
        assert "there is no checkpoint before it" in sentence
    assert not (run / "model.safetensors").exists()


def test_a_run_that_stops_early_is_finished(furnace: Furnace, here: Here, tmp_path: Path) -> None:
    words = furnace.command(
        "sft", tmp_path, "max_steps=40", "validate_every_n_steps=2", "schedule.warmup_steps=1", "display=quiet",
        "+callbacks/stopping=early", "callbacks.stopping.patience=2", "+callbacks.stopping.least=5",
    )  # fmt: skip
    outcome = here(*words)
    assert outcome.code == 0, outcome.err
    assert "stopped early at step 6: validation/loss has been no better than its " in outcome.err
    run = only(tmp_path)
    manifest = read_json(run / "manifest.json")
    assert manifest["status"] == "finished"
    held = {
        line["step"]: line["validation/loss"] for line in read_lines(run / "metrics.jsonl") if "validation/loss" in line
    }
    assert sorted(held) == [2, 4, 6]
    assert manifest["metrics"]["validation/loss"] == pytest.approx(held[2], rel=1e-6)
    assert manifest["metrics"]["best/step"] == 2
    assert not (run / "checkpoints").exists()
    before = (run / "manifest.json").stat().st_mtime_ns
    assert here(*words).code == 0
    assert (run / "manifest.json").stat().st_mtime_ns == before, "finished is finished"


GUARDED = [
    *ADAMW, "max_steps=30", "validate_every_n_steps=10", "checkpoint.every_n_steps=4", "logger.every_n_steps=1", *OWN,
    "+callbacks.poison.steps=[19]", "+callbacks.poison.factor=1e6", "display=quiet",
]  # fmt: skip
TUNED = ["+callbacks.guard.window=16", "+callbacks.guard.least=8", "+callbacks.guard.deviations=30"]


@pytest.mark.slow
@pytest.mark.parametrize(("choice", "said"), [
    ("skip", "step 19 is left out: loss "),
    ("roll_back", "back to step 16, past the data up to here"),
])  # fmt: skip
def test_one_process_and_two_agree_on_a_spike(furnace: Furnace, tmp_path: Path, choice: str, said: str) -> None:
    runs = []
    for name, execution in (
        ("one", []), ("two", ["cluster.accelerator=cpu", "cluster.devices=2", "strategy=ddp"]),
    ):  # fmt: skip
        words = furnace.command("pretrain", tmp_path / name, *GUARDED, f"+callbacks/guard={choice}", *TUNED, *execution)
        paths = os.pathsep.join([furnace.environment["PYTHONPATH"], str(Path(__file__).parent)])
        outcome = furnace.run(*words, PYTHONPATH=paths)
        assert outcome.code == 0, outcome.err
        assert outcome.err.count(said) == 1, "rank 0 says it, once"
        runs.append(only(tmp_path / name))
    losses = [
        {line["step"]: line["train/loss"] for line in read_lines(run / "metrics.jsonl") if "train/loss" in line}
        for run in runs
    ]
    assert list(losses[0]) == list(losses[1]) == list(range(1, 31))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for run in runs:
        assert said in (run / "log.txt").read_text()
        name = {"skip": "guard/skipped", "roll_back": "guard/rolled_back"}[choice]
        assert read_json(run / "manifest.json")["metrics"][name] == 1


@pytest.mark.slow
def test_killed_with_averages_guard_and_early_stopping_it_ends_the_same(furnace: Furnace, tmp_path: Path) -> None:
    """Before the roll-back's checkpoint is the newest, and after it; the early stop comes with the last weights long
    gone and the best only in the checkpoint.
    """
    paths = os.pathsep.join([furnace.environment["PYTHONPATH"], str(Path(__file__).parent)])
    overrides = [
        *GUARDED, "max_steps=60", "validate_every_n_steps=6", "+callbacks/guard=roll_back", *TUNED,
        "+callbacks/average=ema", "callbacks.average.decay=0.9", "+callbacks/stopping=early",
        "callbacks.stopping.patience=3", "+callbacks.stopping.least=1.0",
    ]  # fmt: skip

    class Pathed(Furnace):
        environment = property(lambda self: Furnace.environment.fget(furnace) | {"PYTHONPATH": paths})

        def __init__(self) -> None:
            self.__dict__ |= vars(furnace)

    pathed = Pathed()
    outcome = pathed.run(*furnace.command("pretrain", tmp_path / "whole", *overrides))
    assert outcome.code == 0, outcome.err
    assert "stopped early at step " in outcome.err
    reference = only(tmp_path / "whole")
    last = read_json(reference / "manifest.json")["metrics"]
    assert last["guard/rolled_back"] == 1
    assert 0 < last["best/step"] < 60

    words = furnace.command("pretrain", tmp_path / "killed", *overrides)
    for moment in (12, 20):
        stop(pathed, words, tmp_path / "killed", lambda run, moment=moment: saved(run) >= moment, signal.SIGKILL)
    outcome = pathed.run(*words)
    assert outcome.code == 0, outcome.err
    run = only(tmp_path / "killed")
    assert_same(run, reference)
