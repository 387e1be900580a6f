"""The model of a run that was killed, out of its newest sound checkpoint."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from furnace_project import Furnace, only
from hydra.utils import instantiate
from safetensors.torch import load_file, load_model
from test_kill import SLOW, saved, stop

from athanor.callbacks.checkpoints import newest

pytestmark = pytest.mark.slow


def test_a_killed_run_gives_the_model_of_its_newest_sound_checkpoint(furnace: Furnace, here: Any, tmp_path: Path):
    """Its average, where it would have kept that; the newest checkpoint is cut off."""
    words = furnace.command("pretrain", tmp_path / "runs", *SLOW, "+callbacks/average=ema")
    stop(furnace, words, tmp_path / "runs", lambda run: saved(run) >= 6, signal.SIGKILL)
    run = only(tmp_path / "runs")
    cut = sorted((run / "checkpoints").glob("step-*.ckpt"))[-1]
    cut.write_bytes(cut.read_bytes()[:-100])
    sound = newest(run / "checkpoints")
    assert sound is not None
    assert sound != cut

    outcome = here("consolidate", str(run))
    assert outcome.code == 0, outcome.err
    folder = sound.with_suffix("")
    assert outcome.out.strip().endswith(f"checkpoints/{folder.name}")
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors", "tokenizer.model"]
    state, found = torch.load(sound, weights_only=True)["state_dict"], load_file(folder / "model.safetensors")
    assert {f"average.{name}" for name in found} == {name for name in state if name.startswith("average.")}
    assert [name for name, weight in found.items() if not torch.equal(weight, state[f"average.{name}"])] == []
    assert not torch.equal(found["norm.weight"], state["model.norm.weight"])
    model = instantiate(json.loads((folder / "model.json").read_text()), _convert_="all")
    load_model(model, folder / "model.safetensors")


def test_a_finished_run_gives_what_it_has_and_others_are_refused(furnace: Furnace, here: Any, tmp_path: Path):
    finished = next(path.parent for path in furnace.runs.glob("pretrain/*/*/manifest.json"))
    outcome = here("consolidate", str(finished), str(tmp_path / "out"))
    assert outcome.code == 0, outcome.err
    for name in ("model.safetensors", "model.json", "tokenizer.model"):
        assert (tmp_path / "out" / name).read_bytes() == (finished / name).read_bytes()
    shards = next(path.parent for path in furnace.runs.glob("shards/*/*/manifest.json"))
    outcome = here("consolidate", str(shards))
    assert outcome.code == 2
    assert "is a prepare run and holds no model" in outcome.err
