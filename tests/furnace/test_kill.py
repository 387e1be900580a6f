"""SIGKILL, SIGTERM and Ctrl-C at moments of their own choosing: the same command again ends where it would have ended.

An interrupted run and an uninterrupted one are made from the same inputs in two runs roots, by the same command, and
compared bit by bit: weights, samples, and metrics, each of which is there once and in order.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from furnace_project import TRAINED, Furnace, end, only, read_json, read_lines
from safetensors.torch import load_file

STEPS, EVERY = 60, 3
TIMED = {"train/tokens_per_second", "train/data_wait", "train/mfu", "train/seconds"}
SLOW = [f"max_steps={STEPS}", f"checkpoint.every_n_steps={EVERY}", "logger.every_n_steps=1"]
SLOW += ["validate_every_n_steps=9", "schedule.warmup_steps=2"]  # every validation falls on a checkpoint


def saved(run: Path) -> int:
    """The step of the newest checkpoint, 0 before the first."""
    found = [path.stem.removeprefix("step-") for path in (run / "checkpoints").glob("step-*.ckpt")]
    return max(map(int, found), default=0)


def begun(run: Path) -> int:
    """The last step of metrics.jsonl."""
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def started(runs: Path) -> list[Path]:
    """The folders of the runs below a runs root."""
    return [manifest.parent for manifest in runs.glob("*/*/*/manifest.json")]


def wait(process: subprocess.Popen[str], runs: Path, reached: Callable[[Path], bool]) -> Path:
    """The folder of the one run, as soon as it is where it should be."""
    while process.poll() is None:
        for run in started(runs):
            if reached(run):
                return run
        time.sleep(0.002)
    pytest.fail(f"it ended by itself: {process.communicate()}")


def stop(furnace: Furnace, words: list[str], runs: Path, reached: Callable[[Path], bool], number: int) -> str:
    """Start, wait, and send the signal; returns what it said on stderr."""
    process = furnace.start(*words)
    try:
        run = wait(process, runs, reached)
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), err
    finally:
        end(process)
    assert not (run / "model.safetensors").exists()
    return err


def lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock says."""
    kept = [
        {k: v for k, v in line.items() if k != "time" and k not in TIMED} for line in read_lines(run / "metrics.jsonl")
    ]
    return [line for line in kept if len(line) > 1]


def assert_same(run: Path, reference: Path) -> None:
    assert run.name == reference.name, "the fingerprint"
    weights, expected = load_file(run / "model.safetensors"), load_file(reference / "model.safetensors")
    assert weights.keys() == expected.keys()
    different = [name for name in weights if not torch.equal(weights[name], expected[name])]
    assert different == []
    assert lines(run) == lines(reference)
    assert (run / "samples.jsonl").exists() == (reference / "samples.jsonl").exists()
    if (run / "samples.jsonl").exists():
        assert read_lines(run / "samples.jsonl") == read_lines(reference / "samples.jsonl")
    outputs, before = (read_json(path / "manifest.json")["outputs"] for path in (run, reference))
    assert outputs == before


def finish(bench: Any, words: list[str], folder: Path) -> str:
    """Trains to the end; returns what it said, all attempts together."""
    ended = bench.launch(words, 1, folder)
    said = (folder / "said-0.txt").read_text()
    assert ended["codes"] == [0], said
    return said


@pytest.fixture(scope="module")
def reference(furnace: Furnace, bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The uninterrupted run of a step."""
    made: dict[str, Path] = {}

    def make(step: str) -> Path:
        if step not in made:
            folder = tmp_path_factory.mktemp(f"reference-{step}")
            finish(bench, furnace.command(step, folder / "runs", *SLOW), folder)
            made[step] = only(folder / "runs")
            steps = [line["step"] for line in lines(made[step]) if "train/loss" in line]
            assert steps == list(range(1, STEPS + 1))
        return made[step]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("step", TRAINED)
def test_killed_again_and_again_it_ends_the_same(
    furnace: Furnace, bench: Any, here: Any, reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Before the first checkpoint, and at a random moment after a random one; PPO, whose rollouts last 4 steps, within
    one, and where one begins.
    """
    chance = random.Random(f"killed {step}")
    runs = tmp_path / "runs"
    words = furnace.command(step, runs, *SLOW, *(["cluster.num_workers=1"] if step == "dpo" else []))

    def newest() -> int:
        return max(map(saved, started(runs)), default=0)

    bench.killed(words, tmp_path, lambda: any(begun(run) for run in started(runs)))
    run = only(runs)
    assert saved(run) == 0
    moments = [chance.choice([s for s in range(EVERY, STEPS // 2, EVERY) if s % 4])]
    moments += [chance.choice(range(36, STEPS - 6, 12))] if step == "ppo" else []
    for moment in moments:
        late = chance.uniform(0, 0.02)

        def reached(moment: int = moment, late: float = late) -> bool:
            if newest() < moment:
                return False
            time.sleep(late)
            return True

        bench.killed(words, tmp_path, reached)
        assert moment <= saved(run) < STEPS
        steps = [line["step"] for line in read_lines(run / "metrics.jsonl", whole=False) if "train/loss" in line]
        assert saved(run) in steps, "what is known of a step was written before its checkpoint"
    monkeypatch.setenv("ATHANOR_RUNS", str(runs))
    assert '"status": "interrupted"' in here("runs", "--json").out
    finish(bench, words, tmp_path)
    assert_same(run, reference(step))
    attempts = [attempt["status"] for attempt in read_json(run / "manifest.json")["attempts"]]
    assert attempts == [*["interrupted"] * (1 + len(moments)), "finished"]
    assert not (run / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_told_to_stop_it_says_so_and_goes_on_later(
    furnace: Furnace, bench: Any, reference: Any, tmp_path: Path, number: int, code: int
) -> None:
    """A process of its own, as a shell starts it."""
    words = furnace.command("sft", tmp_path / "runs", *SLOW)
    said = stop(furnace, words, tmp_path / "runs", lambda run: saved(run) >= 6, number)
    run = only(tmp_path / "runs")
    assert said.splitlines()[-1] == "athanor: interrupted; the same command goes on"
    assert "Traceback" not in said
    assert "KeyboardInterrupt" not in said
    manifest = read_json(run / "manifest.json")
    assert [manifest["status"], *(attempt["status"] for attempt in manifest["attempts"])] == ["interrupted"] * 2
    finish(bench, words, tmp_path)
    assert_same(run, reference("sft"))


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(furnace: Furnace, bench: Any, reference: Any, tmp_path: Path) -> None:
    """For the one before it, with a warning; where there is none before, for a sentence."""
    runs = tmp_path / "runs"
    words = furnace.command("sft", runs, *SLOW, "checkpoint.keep=2")
    bench.killed(words, tmp_path, lambda: any(saved(run) >= 9 for run in started(runs)))
    run = only(runs)
    older, newer = sorted((run / "checkpoints").glob("step-*.ckpt"))[-2:]
    os.truncate(newer, newer.stat().st_size - 1)

    alone = tmp_path / "alone"
    shutil.copytree(run, alone / run.relative_to(tmp_path))
    for path in (alone / older.relative_to(tmp_path)).parent.glob("step-*.ckpt"):
        if path.name != newer.name:  # one more than are kept, where the kill came before the oldest went
            path.unlink()
    refused = bench.launch(furnace.command("sft", alone / "runs", *SLOW), 1, alone)
    said = (alone / "said-0.txt").read_text()
    assert refused["codes"] == [2], said
    assert said.splitlines()[-1].startswith(f"athanor: {alone / newer.relative_to(tmp_path)} is damaged")
    assert "Traceback" not in said
    assert read_json(alone / run.relative_to(tmp_path) / "manifest.json")["status"] == "failed"

    said = finish(bench, words, tmp_path)
    assert f"athanor: {newer} is damaged; resuming from {older.name} instead\n" in said
    assert_same(run, reference("sft"))
