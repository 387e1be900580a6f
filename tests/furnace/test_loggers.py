"""Where metrics go: Weights & Biases offline, read back from its own file; CSV and JSON Lines always; TensorBoard."""

import csv
import importlib.util
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from furnace_project import Furnace, only, read_json, read_lines

FRAME, BLOCK = struct.Struct("<IHB"), 32768
WHOLE, LAST = 1, 4


def stored(file: Path) -> list[Any]:
    """The records of a .wandb file: W&B's own protocol buffers in the frames of a LevelDB log, blocks of 32 KiB of
    (crc32, length, part of a record), after a head of 7 bytes.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, data, records = file.read_bytes(), 7, b"", []
    assert content[:4] == b":W&B"
    while at < len(content):
        if (rest := -at % BLOCK) and rest < FRAME.size:
            at += rest  # no frame begins so near the end of a block
            continue
        crc, length, part = FRAME.unpack_from(content, at)
        at += FRAME.size
        piece = content[at : at + length]
        assert zlib.crc32(piece, zlib.crc32(bytes([part]))) == crc
        data, at = data + piece, at + length
        if part in (WHOLE, LAST):
            records.append(Record.FromString(data))
            data = b""
    return records


def items(entries: Any) -> dict[str, Any]:
    """key -> value of a history, config or summary."""
    return {entry.key or "/".join(entry.nested_key): json.loads(entry.value_json) for entry in entries}


def test_wandb_offline_holds_config_names_and_losses(furnace: Furnace, tmp_path: Path) -> None:
    words = furnace.command("sft", tmp_path, "logger=wandb", "logger.every_n_steps=4", 'tags=[tiny,"真"]')
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
    assert config["science"] == read_json(run / "manifest.json")["science"]

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
