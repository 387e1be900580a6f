"""Models in the directories of runs: written whole, read back the same, refused where they are not what was written."""

import hashlib
import json

import pytest
import torch

from athanor import models
from athanor.errors import UserError
from athanor.models.heads import ScalarModel
from athanor.models.transformer import Transformer

SHAPE = {"vocabulary_size": 31, "width": 24, "layers": 2, "heads": 4, "kv_heads": 2, "context": 64, "dropout": 0.25}
TOKENS = torch.tensor([[1, 5, 9, 2], [3, 3, 7, 8]])


def random(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def saved(model, folder, kind="train") -> str:
    directory = folder / "sft/tiny/0123456789abcdef"
    directory.mkdir(parents=True)
    models.save(model, directory)
    outputs = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in directory.iterdir()
    }
    manifest = {"format": 1, "name": "sft/tiny", "kind": kind, "fingerprint": directory.name, "status": "finished",
                "inputs": {}, "outputs": outputs, "overrides": [], "started": 0.0}  # fmt: skip
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return str(directory)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("kind", ["decoder", "reward", "likelihood"])
def test_a_model_comes_back_the_same(kind, tie, tmp_path):
    torch.manual_seed(1)
    model = Transformer(**SHAPE, tie_embeddings=tie)
    if kind != "decoder":
        model = ScalarModel(model, likelihood=kind == "likelihood")
    random(model).eval()
    again = models.load(saved(model, tmp_path))
    assert not again.training
    assert again.arguments == model.arguments
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    assert again.state_dict().keys() == state.keys()
    assert torch.equal(again(TOKENS), model(TOKENS))


@pytest.mark.parametrize("head", [False, True])
def test_another_dropout(head, tmp_path):
    model = Transformer(**SHAPE)
    run = saved(random(ScalarModel(model) if head else model), tmp_path)
    for dropout, expected in ((None, 0.25), (0.0, 0.0), (0.5, 0.5)):
        loaded = models.load(run, dropout=dropout)
        trunk = loaded.trunk if head else loaded
        assert {module.p for module in trunk.modules() if isinstance(module, torch.nn.Dropout)} == {expected}
        assert {block.attention.dropout for block in trunk.blocks} == {expected}


def test_a_tied_matrix_is_written_once(tmp_path):
    run = saved(Transformer(**SHAPE), tmp_path)
    from safetensors import safe_open

    with safe_open(f"{run}/model.safetensors", "pt") as file:
        assert "output.weight" not in file.keys()  # noqa: SIM118
        assert len(list(file.keys())) == 2 + 6 * 2


def test_what_is_no_model_is_refused(tmp_path):
    run = saved(Transformer(**SHAPE), tmp_path / "a", kind="prepare")
    models.load(run)  # an imported checkpoint
    path = tmp_path / "a/sft/tiny/0123456789abcdef/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"outputs": {}}))
    with pytest.raises(UserError, match="is a prepare run and holds no model"):
        models.load(run)
    run = saved(Transformer(**SHAPE), tmp_path / "b")
    path = tmp_path / "b/sft/tiny/0123456789abcdef/model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"model\.safetensors has .* bytes where"):
        models.load(run)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="changed after it was written"):
        models.load(run)
    path.write_bytes(whole)
    models.load(run)
