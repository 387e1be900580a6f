"""A sweep of real trainings, tiny: from raw files to a report, a worker killed on the way."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "furnace"))
from furnace_project import SHAPE, TASKS, Furnace, end

EXPERIMENTS = {
    "tasks/small": {
        "defaults": ["/tasks/demo@_global_", "_self_"],
        "job": {k: int(n) for k, n in (w.lstrip("+").split("=") for w in TASKS.split())},
    },
    "documents/small": {
        "defaults": ["/documents/demo@_global_", "_self_"],
        "inputs": {"stdlib": {"files": "raw/*.py"}, "tasks": "tasks/small"},
    },
    "tokenizer/small": {
        "defaults": ["/tokenizer/demo@_global_", "_self_"],
        "inputs": {"documents": "documents/small"},
        "job": {"vocabulary_size": 600},
    },
    "shards/small": {
        "defaults": ["/shards/demo@_global_", "_self_"],
        "inputs": {"documents": "documents/small", "tokenizer": "tokenizer/small"},
        "job": {"validation_fraction": 0.1},
    },
    "pretrain/small": {
        "defaults": ["/pretrain/demo@_global_", "_self_"],
        "inputs": {"shards": "shards/small", "tokenizer": "tokenizer/small"},
        "max_steps": 12,
        "validate_every_n_steps": 4,
        "global_batch_size": 4,
        "precision": "32-true",
        "model": SHAPE,
        "data": {"sequence_length": 64, "validation_samples": 8},
        "schedule": {"warmup_steps": 2},
        "logger": {"every_n_steps": 1},
        "checkpoint": {"every_n_steps": 2},
    },
    "ablations/small": {
        "base": "pretrain/small",
        "factors": {"optimizer": {"muon": [], "adamw": ["optimizer=adamw", "~optimizer.matrix_lr"]}},
        "seeds": [1, 2],
        "metric": {"name": "validation/loss", "better": "lower"},
    },
}


@pytest.mark.slow
def test_from_raw_files_to_a_verdict(tmp_path: Path) -> None:
    furnace = Furnace(tmp_path)
    for name, text in EXPERIMENTS.items():
        scope = "" if name == "ablations/small" else "# @package _global_\n"
        (path := tmp_path / f"experiments/{name}.yaml").parent.mkdir(exist_ok=True)
        path.write_text(f"# Small.\n{scope}{yaml.safe_dump(text, sort_keys=False)}")
    sweep = furnace.start("sweep", "ablation=small")
    try:
        deadline, killed = time.monotonic() + 500, None
        while sweep.poll() is None and killed is None and time.monotonic() < deadline:
            for lock in tmp_path.glob("runs/pretrain/small/*/.lock"):
                if list((lock.parent / "checkpoints").glob("step-*.ckpt")):
                    killed = int(lock.read_text())
                    os.kill(killed, signal.SIGKILL)
            time.sleep(0.005)
        out, err = sweep.communicate(timeout=500)
    finally:
        end(sweep)
    assert killed, f"no worker was caught in the middle: {err}"
    assert sweep.returncode == 0, err
    assert "4 of 4 members finished, 0 of them before" in out
    attempts = [
        [attempt["status"] for attempt in json.loads(path.read_text())["attempts"]]
        for path in tmp_path.glob("runs/pretrain/small/*/manifest.json")
    ]
    assert sorted(attempts) == [["finished"]] * 3 + [["interrupted", "finished"]]

    report = furnace.run("report", "ablation=small")
    assert report.code == 0, report.err
    rows = list(csv.DictReader((tmp_path / "runs/ablations/small/report.csv").open()))
    assert [(row["level"], row["seeds"]) for row in rows] == [("muon", "2"), ("adamw", "2")]
    assert all(4 < float(row["mean"]) < 8 for row in rows)  # log 600 is 6.4
    page = (tmp_path / "runs/ablations/small/report.html").read_text()
    assert page.count('class="band') == 4  # validation and training loss of two levels
    assert "no verdict" not in page
