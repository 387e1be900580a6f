"""Where metrics go: Weights & Biases offline, read back from its own file; CSV and JSON Lines always; TensorBoard."""

import csv
import importlib.util
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from furnace_project import Furnace, end, only, read_json, read_lines

from athanor.callbacks import weights_and_biases
from athanor.runs.run import Run
from wandb_files import items, stored


def test_wandb_offline_holds_config_names_and_losses(furnace: Furnace, tmp_path: Path) -> None:
    words = furnace.command(
        "sft", tmp_path, "logger=wandb", "logger.every_n_steps=4", 'tags=[tiny,"真"]', "logger.upload=true"
    )
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    outcome = furnace.run(*words, **nowhere)
    assert outcome.code == 0, outcome.err
    run = only(tmp_path)
    (file,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    records = stored(file)

    (started,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (started.project, started.job_type, started.run_group) == ("athanor", "sft", "demo")
    assert started.run_id == run.name
    assert started.display_name == f"sft/demo/{run.name[:8]}"
    assert list(started.tags) == ["tiny", "真"]
    config = items(started.config.update)
    for record in records:
        if record.WhichOneof("record_type") == "config":
            config |= items(record.config.update)
    assert config["fingerprint"] == run.name
    manifest = read_json(run / "manifest.json")
    assert config["science"] == manifest["science"]
    assert config["resolved"]["cluster"] == manifest["config"]["cluster"]
    assert config["code"] == {**manifest["code"], "diff_sha256": manifest["code"].get("diff_sha256")}
    kept = file.parent / "files/code.diff"
    assert kept.exists() == bool(manifest["code"].get("diff_sha256"))
    if kept.exists():
        assert kept.read_bytes() == (run / "code.diff").read_bytes()
    assert any(record.WhichOneof("record_type") == "stats" for record in records), "what the machine did"

    history = [items(record.history.item) for record in records if record.WhichOneof("record_type") == "history"]
    logged = {}
    for line in history:
        logged |= {
            (line["trainer/global_step"], name): value
            for name, value in line.items()
            if name.startswith(("train/", "valid"))
        }
    expected = {
        (line["step"], name): value
        for line in read_lines(run / "metrics.jsonl")
        for name, value in line.items()
        if name not in ("step", "time")
    }
    assert {(4, "train/loss"), (16, "train/loss"), (16, "validation/loss")} <= expected.keys()
    assert logged == expected
    summary: dict[str, Any] = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            summary |= items(record.summary.update)
    assert summary["train/loss"] == expected[16, "train/loss"]
    assert any(record.WhichOneof("record_type") == "exit" for record in records), "it was closed"
    assert all(name.split("/")[0] != "wandb" for name in read_json(run / "manifest.json")["outputs"])
    assert "error" not in outcome.err.lower()

    tables = [line["samples/path"] for line in history if "samples/path" in line]
    shown = [read_json(file.parent / "files" / table) for table in tables]
    said = read_lines(run / "samples.jsonl")
    assert [row for table in shown for row in table["data"]] == [[one["prompt"], one["response"]] for one in said]
    assert {one["step"] for one in said} == {8, 16}

    artifacts = {
        record.artifact.name: record.artifact for record in records if record.WhichOneof("record_type") == "artifact"
    }
    read = {artifact.name for artifact in artifacts.values() if artifact.use_after_commit}
    assert read == {
        f"{entry['name'].replace('/', '-')}-{entry['fingerprint']}" for entry in manifest["inputs"].values()
    }
    parent = manifest["inputs"]["parent"]
    held = artifacts[f"{parent['name'].replace('/', '-')}-{parent['fingerprint']}"]
    assert held.type == "model"
    outputs = read_json(Path(parent["directory"]) / "manifest.json")["outputs"]
    models = ("model.json", "model.safetensors", "tokenizer.model")
    assert content(held) == {"outputs.json": {name: outputs[name] for name in models}}
    made = artifacts[f"sft-demo-{run.name}"]
    assert not made.use_after_commit
    assert set(made.aliases) == {"latest", "final"}
    assert content(made) == {"outputs.json": {name: manifest["outputs"][name] for name in models}}
    uploaded = artifacts[f"sft-demo-{run.name}-files"]
    assert {entry.path for entry in uploaded.manifest.contents} == {"outputs.json", *models}
    assert all(Path(entry.local_path).is_file() for entry in uploaded.manifest.contents)

    ours = read_json(run / "manifest.json")
    again = weights_and_biases.of_run(Run(run))
    again.finalize()
    assert (again.name.partition(":")[0], again.digest) == (made.name, made.digest), "as the next training will name it"
    assert ours == manifest


def content(artifact: Any) -> dict[str, Any]:
    """The JSON files of an artifact that waits to be sent."""
    return {entry.path: read_json(Path(entry.local_path)) for entry in artifact.manifest.contents}


@pytest.mark.slow
def test_a_requeued_training_of_two_processes_is_one_wandb_run(furnace: Furnace, tmp_path: Path) -> None:
    """SIGUSR1 in its midst, the same command again: one id, every step once, and `wandb-sync` would send both parts."""
    execution = ["cluster.accelerator=cpu", "cluster.devices=2", "strategy=ddp", "logger.every_n_steps=1"]
    words = furnace.command("pretrain", tmp_path, "logger=wandb", "max_steps=60", *execution)
    process = furnace.start(*words, WANDB_RUN_GROUP="ablations/size")
    try:
        until = time.monotonic() + 200
        while (
            not (lines := [path.read_text().count("train/loss") for path in tmp_path.glob("*/*/*/metrics.jsonl")])
            or lines[0] < 5
        ):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGUSR1)
        _, err = process.communicate(timeout=200)
        assert process.returncode == 75, err
    finally:
        end(process)
    outcome = furnace.run(*words, WANDB_RUN_GROUP="ablations/size")
    assert outcome.code == 0, outcome.err
    run = only(tmp_path)
    files = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2, "one for each attempt, none of rank 1"
    seen, kinds = [], []
    for file in files:
        records = stored(file)
        (started,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
        assert (started.run_id, started.run_group, started.resume) == (run.name, "ablations/size", True)
        kinds.append({record.WhichOneof("record_type") for record in records})
        lines = [items(record.history.item) for record in records if record.WhichOneof("record_type") == "history"]
        seen += [(line["trainer/global_step"], line["train/loss"]) for line in lines if "train/loss" in line]
        codes = [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"]
        assert codes == ([75] if file == files[0] else [0])
    assert "preempting" in kinds[0]
    assert "preempting" not in kinds[1]
    expected = [
        (line["step"], line["train/loss"]) for line in read_lines(run / "metrics.jsonl") if "train/loss" in line
    ]
    assert [step for step, _ in expected] == list(range(1, 61))
    assert seen == expected

    listed = furnace.run("wandb-sync", "--dry-run", str(run))
    assert listed.code == 0, listed.err
    assert [Path(line).name for line in listed.out.splitlines()] == [file.parent.name for file in files]
    refused = furnace.run("wandb-sync", str(run), WANDB_API_KEY="", NETRC=str(tmp_path / "none"), HOME=str(tmp_path))
    assert (refused.code, refused.out.count("offline-run-")) == (2, 2)
    assert "set WANDB_API_KEY" in refused.err
    for file in files:
        file.with_name(f"{file.name}.synced").touch()
    assert furnace.run("wandb-sync", str(run)).out == "nothing to send\n"


def test_the_table_has_every_event(furnace: Furnace) -> None:
    run = furnace.directory("ppo")
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = read_lines(run / "metrics.jsonl")
    assert [{k: float(v) for k, v in row.items() if v} for row in rows] == lines
    assert {"ppo/reward", "ppo/kl", "train/loss", "validation/reward", "train/tokens_per_second"} <= set(rows[0])


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="the extra is installed")
def test_tensorboard_without_its_extra(furnace: Furnace, here: Any, tmp_path: Path) -> None:
    outcome = here(*furnace.command("sft", tmp_path, "logger=tensorboard", "display=quiet"))
    assert outcome.code == 2
    assert outcome.err == "athanor: logger.tensorboard needs an extra: pip install 'athanor[tensorboard]'.\n"
    assert not list(tmp_path.glob("sft/*"))


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="the extra is not installed")
def test_tensorboard(furnace: Furnace, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    outcome = furnace.run(*furnace.command("sft", tmp_path, "logger=tensorboard", "logger.every_n_steps=4"))
    assert outcome.code == 0, outcome.err
    events = EventAccumulator(str(only(tmp_path) / "tensorboard"))
    events.Reload()
    expected = [line for line in read_lines(only(tmp_path) / "metrics.jsonl") if "train/loss" in line]
    found = events.Scalars("train/loss")
    assert [(event.step, event.value) for event in found] == [(line["step"], line["train/loss"]) for line in expected]
