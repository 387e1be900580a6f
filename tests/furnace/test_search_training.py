"""A search of real trainings: a bad one is pruned, and the best one's experiment comes to the same weights."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from furnace_project import Furnace, read_json, read_lines
from safetensors.torch import load_file

from athanor.sweeps import search
from athanor.sweeps.trials import Trials

pytestmark = pytest.mark.slow


@pytest.fixture
def rate(furnace: Furnace, tmp_path: Path):
    """`search/rate` over learning rates: two good ones, then one that hardly learns. Its runs are of its own."""
    _, name, runs, *words = furnace.command("pretrain", tmp_path / "runs", "validate_every_n_steps=8")
    kept = [word for word in words if not word.startswith(("optimizer.lr", "optimizer.matrix_lr"))]
    speeds = {key: [f"optimizer.lr={a}", f"optimizer.matrix_lr={b}"] for key, a, b in
              (("good", 2e-3, 0.02), ("better", 4e-3, 0.04), ("idle", 1e-9, 1e-9))}  # fmt: skip
    text = {
        "base": name.partition("=")[2], "overrides": [runs, *kept], "space": {"speed": speeds}, "sampler": "grid",
        "metric": {"name": "validation/loss", "better": "lower"}, "pruner": {"name": "median", "startup": 2},
    }  # fmt: skip
    path = furnace.folder / "experiments/search/rate.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"# Which rate.\n{yaml.safe_dump(text, sort_keys=False)}")
    yield path
    path.unlink()
    (furnace.folder / "experiments/pretrain/rate-best.yaml").unlink(missing_ok=True)


def test_the_idle_training_is_pruned_and_the_best_one_comes_again(furnace: Furnace, rate: Path, here, tmp_path) -> None:
    outcome = furnace.run("sweep", "search=rate", "--workers", "1")
    assert outcome.code == 0, outcome.err
    assert "3 of 3 trials finished, 1 of them pruned" in outcome.out
    trials = Trials(search.load("rate")).all()
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert [list(trial.intermediate_values) for trial in trials] == [[8, 16, 24], [8, 16, 24], [8]]
    runs = {path.parent: read_json(path) for path in (tmp_path / "runs/pretrain/demo").glob("*/manifest.json")}
    assert sorted(manifest["status"] for manifest in runs.values()) == ["finished", "finished", "interrupted"]
    (idle,) = [folder for folder, manifest in runs.items() if manifest["status"] == "interrupted"]
    assert max(event["step"] for event in read_lines(idle / "metrics.jsonl")) == 8
    for trial, manifest in zip(trials, sorted(runs.values(), key=lambda m: m["started"])):
        if manifest["status"] == "finished":
            assert trial.value == manifest["metrics"]["validation/loss"]
        assert "pruning" not in str(manifest["config"]), "the pruner is no part of the run"

    reported = here("report", "search=rate")
    assert reported.code == 0, reported.err
    best = min(trials[:2], key=lambda trial: trial.value)
    assert f"validation/loss {best.value!r}, trial {best.number} of 3" in reported.out
    written = (furnace.folder / "experiments/pretrain/rate-best.yaml").read_text()
    assert str(furnace.folder) not in written
    for kind in ("tasks", "questions", "documents", "tokenizer", "shards"):  # what it reads, in another runs root
        shutil.copytree(furnace.runs / kind, tmp_path / "again" / kind)
    again = here("train", "experiment=pretrain/rate-best", f"paths.runs={tmp_path}/again")
    assert again.code == 0, again.err
    (rerun,) = (tmp_path / "again/pretrain/rate-best").glob("*/manifest.json")
    assert read_json(rerun)["metrics"]["validation/loss"] == best.value
    (first,) = [folder for folder in runs if folder.name == rerun.parent.name]
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (first, rerun.parent))
    assert all(torch.equal(ours[name], theirs[name]) for name in {**ours, **theirs})
