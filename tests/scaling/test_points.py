"""Runs as points: what is read from manifests and weights, and what does not compare."""

import json

import pytest
import torch
from safetensors.torch import save_file

from athanor.errors import UserError
from athanor.scaling import points


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ATHANOR_HOME", str(tmp_path))
    monkeypatch.delenv("ATHANOR_RUNS", raising=False)

    def make(name: str, size: int, steps: int, **changes):
        folder = tmp_path / "runs" / name / f"{size:08x}{steps:08x}"
        folder.mkdir(parents=True)
        save_file({"a": torch.zeros(size, 3), "b": torch.zeros(5)}, folder / "model.safetensors")
        outputs = {"model.safetensors": {"bytes": (folder / "model.safetensors").stat().st_size, "sha256": ""}}
        manifest = {
            "name": name, "fingerprint": folder.name, "kind": "train", "status": "finished", "started": steps,
            "overrides": [], "outputs": outputs, "metrics": {"validation/loss": 3.5},
            "inputs": {"shards": {"outputs": "one"}, "tokenizer": {"outputs": "one"}},
            "config": {"max_steps": steps, "global_batch_size": 4, "data": {"sequence_length": 16}},
        }  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(manifest | changes))
        return folder

    return make


def test_parameters_tokens_and_loss_of_a_run(runs):
    folder = runs("pretrain/x", 7, 100)
    (point,) = points.read([str(folder)])
    assert (point.parameters, point.tokens, point.loss) == (7 * 3 + 5, 100 * 4 * 16, 3.5)
    assert point.name == f"pretrain/x/{folder.name}"


def test_a_folder_stands_for_its_finished_trainings(runs):
    runs("ladder/a", 1, 10)
    runs("ladder/b", 2, 20)
    runs("ladder/b", 2, 30, status="failed")
    runs("other/a", 3, 10)
    assert [p.tokens for p in points.read(["ladder/"])] == [640, 1280]
    assert len(points.read(["ladder/", "ladder/a"])) == 2
    with pytest.raises(UserError, match="ladders/ holds no finished training"):
        points.read(["ladders/"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"status": "failed", "metrics": {}}, "is failed and has no validation/loss"),
        ({"inputs": {"shards": {"outputs": "one"}, "tokenizer": {"outputs": "two"}}}, "read different tokenizer"),
        ({"inputs": {"shards": {"outputs": "two"}, "tokenizer": {"outputs": "one"}}}, "read different shards"),
        ({"config": {"max_steps": 1, "global_batch_size": 4, "data": {}}}, "is no pretraining"),
    ],
)
def test_what_does_not_compare_is_refused(runs, changes, sentence):
    folders = [runs("pretrain/x", 7, 100), runs("pretrain/x", 7, 200, **changes)]
    with pytest.raises(UserError) as caught:
        points.read([str(folder) for folder in folders])
    assert sentence in str(caught.value)
