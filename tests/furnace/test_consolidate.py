"""`athanor consolidate`: the model of a training that was killed, out of its checkpoint; and what has none to give."""

from pathlib import Path
from typing import Any

import pytest
import torch
from furnace_project import Furnace, only, read_json
from hydra.utils import instantiate
from safetensors.torch import load_file, load_model

from athanor.callbacks.checkpoints import newest

KILLED = {"kind": "kill_all", "rank": 0, "place": "forward", "step": 7, "micro": 0}  # of step 4, at least of step 2


def killed(bench: Any, folder: Path, strategy: str, *more: str, **fault: Any) -> Path:
    """A run that ended at a step."""
    words = bench.words("sft", strategy, folder / "runs", *more)
    ended = bench.launch(words, 2 if strategy == "fsdp2" else 1, folder, KILLED | fault)
    assert set(ended["codes"]) == {-9}
    return only(folder / "runs")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["single", "fsdp2"])
def test_it_writes_the_weights_of_the_newest_checkpoint(bench, here, furnace, tmp_path, strategy) -> None:
    run = killed(bench, tmp_path, strategy)
    found = newest(run / "checkpoints")
    outcome = here("consolidate", str(run))
    assert outcome.code == 0, outcome.err
    folder = run / "checkpoints" / found.stem
    assert outcome.out.strip().endswith(f"checkpoints/{found.stem}")
    weights = load_file(folder / "model.safetensors")
    state = torch.load(found, weights_only=True)["state_dict"]
    expected = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    assert [name for name, value in weights.items() if not torch.equal(value, expected[name])] == []
    model = instantiate(read_json(folder / "model.json"), _convert_="all")
    assert load_model(model, folder / "model.safetensors") == (set(), []), "none missing, none too many"
    tokenizer = furnace.directory("tokenizer") / "tokenizer.model"
    assert (folder / "tokenizer.model").read_bytes() == tokenizer.read_bytes()

    again = here("train", *bench.words("sft", strategy, tmp_path / "runs")[1:]) if strategy == "single" else None
    assert again is None or again.code == 0, "the folder is in nobody's way"


@pytest.mark.slow
def test_where_an_average_is_kept_it_writes_the_average(bench, here, tmp_path) -> None:
    run = killed(bench, tmp_path, "single", "+callbacks/average=ema", "callbacks.average.decay=0.5")
    outcome = here("consolidate", str(run), str(tmp_path / "elsewhere"))
    assert outcome.code == 0, outcome.err
    weights = load_file(tmp_path / "elsewhere" / "model.safetensors")
    state = torch.load(newest(run / "checkpoints"), weights_only=True)["state_dict"]
    for name, value in weights.items():
        assert torch.equal(value, state[f"average.{name}"])
    assert not torch.equal(weights["norm.weight"], state["model.norm.weight"])


def test_a_finished_run_gives_what_it_has(furnace: Furnace, here: Any, tmp_path: Path) -> None:
    run = furnace.directory("sft")
    assert here("consolidate", str(run)).out.strip().endswith(run.name)
    outcome = here("consolidate", str(run), str(tmp_path / "copy"))
    assert outcome.code == 0, outcome.err
    for name in ("model.safetensors", "model.json", "tokenizer.model"):
        assert (tmp_path / "copy" / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.slow
def test_what_has_no_checkpoint_is_refused_in_a_sentence(bench, here, tmp_path) -> None:
    run = killed(bench, tmp_path, "single", step=1)
    outcome = here("consolidate", str(run))
    assert outcome.code == 2
    assert outcome.err.startswith(f"athanor: {run} has saved no checkpoint yet; go on with `athanor train experiment=")


def test_what_trains_nothing_is_refused_in_a_sentence(furnace: Furnace, here: Any) -> None:
    outcome = here("consolidate", str(furnace.directory("shards")))
    assert outcome.code == 2
    assert "is a prepare run and holds no model; name a training run" in outcome.err
