"""Recorded results of real trainings: made again on a fresh clone from the file alone, or told from what they were."""

import json
import shutil
from pathlib import Path

import pytest
from furnace_project import REPOSITORY, Furnace, Outcome, read_json

pytestmark = pytest.mark.slow
SEEDS = ("1", "2")


@pytest.fixture(scope="module")
def recorded(furnace: Furnace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of the tiny pretraining, both seeds."""
    _, name, _, *words = furnace.command("pretrain", furnace.runs)
    plain = [word for word in words if not word.startswith("inputs.")]
    pins = [word for word in read_json(furnace.directory("pretrain") / "manifest.json")["overrides"]
            if word.startswith("inputs.")]  # fmt: skip
    done = furnace.run("train", name, *plain, *pins, "seed=2")
    assert done.code == 0, done.err
    outcome = furnace.run("record", name, *plain, *pins, "--seeds", *SEEDS)
    assert outcome.code == 0, outcome.err
    path = furnace.folder / "experiments/pretrain/demo.result.json"
    kept = tmp_path_factory.mktemp("recorded") / "demo.result.json"
    shutil.move(path, kept)
    return kept


@pytest.fixture(scope="module")
def aligned(furnace: Furnace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The results of what the pipeline has made of the pretrained model, by the step."""
    kept = {}
    for step in ("sft", "dpo", "ppo"):
        overrides = read_json(furnace.directory(step) / "manifest.json")["overrides"]
        outcome = furnace.run("record", f"{step}/demo", *overrides)
        assert outcome.code == 0, outcome.err
        kept[step] = tmp_path_factory.mktemp(step) / "demo.result.json"
        shutil.move(furnace.folder / f"experiments/{step}/demo.result.json", kept[step])
    return kept


@pytest.fixture
def clone(furnace: Furnace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here) -> Path:
    """A checkout with raw data and configs, no runs, and experiments that have gone on since."""
    folder = tmp_path / "clone"
    folder.mkdir()
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    shutil.copytree(furnace.folder / "raw", folder / "raw")
    (folder / "experiments/pretrain").mkdir(parents=True)
    (folder / "experiments/pretrain/demo.yaml").write_text("# Not what it was.\ndefaults: [/train, _self_]\n")
    monkeypatch.setenv("ATHANOR_HOME", str(folder))
    monkeypatch.chdir(folder)
    return folder


def test_a_result_holds_what_it_takes_and_nothing_of_the_machine(furnace: Furnace, recorded: Path) -> None:
    text = recorded.read_text()
    assert str(furnace.folder) not in text
    assert str(Path.home()) not in text
    result = json.loads(text)
    run = read_json(furnace.directory("pretrain") / "manifest.json")
    assert result["runs"][0]["fingerprint"] == run["fingerprint"]
    assert [run["seed"] for run in result["runs"]] == [1, 2]
    loss = result["metrics"]["validation/loss"]
    values = [one["metrics"]["validation/loss"] for one in result["runs"]]
    assert loss["mean"] == pytest.approx(sum(values) / 2)
    assert loss["high"] - loss["low"] == pytest.approx(abs(values[0] - values[1]) * 12.706, rel=1e-3)
    assert loss["seeds"] == 2
    assert not any("second" in name for name in result["metrics"])
    assert [step for step, _ in result["runs"][0]["steps"]][-1] == 24


def test_on_a_fresh_clone_the_file_alone_gives_the_same_bits(clone: Path, recorded: Path, here) -> None:
    path = clone / "experiments/pretrain/demo.result.json"
    shutil.copy(recorded, path)
    outcome: Outcome = here("verify")
    assert outcome.code == 0, outcome.err + outcome.out
    (row,) = outcome.out.splitlines()[1:]
    assert row.split()[:2] == ["pretrain/demo", "bit-identical"]
    made = [path.parts[-4] for path in (clone / "runs").glob("*/*/*/manifest.json")]
    assert sorted(made) == ["documents", "shards", "tasks", "tokenizer"]
    assert not list((clone / "runs/.reproduce").rglob("model.safetensors")), "what is the same is not kept"

    result = json.loads(recorded.read_text())
    tensors = result["runs"][0]["tensors"]["model.safetensors"]
    name = list(tensors)[2]
    tensors[name] = "0" * 64
    path.write_text(json.dumps(result))
    outcome = here("reproduce", "pretrain/demo.result.json", "--first")
    assert outcome.code == 1
    assert f"every step is the same, yet first differing tensor {name}, likely because the weights" in outcome.out
    assert list((clone / "runs/.reproduce").rglob("model.safetensors")), "what differs is kept to look at"

    result = json.loads(recorded.read_text())
    one = result["runs"][0]
    result["environment"]["packages"]["torch"] = "2.12.0"
    at = next(i for i, (step, _) in enumerate(one["steps"]) if step == 10)
    for later in one["steps"][at:]:
        later[1] = "0" * 12
    for point in one["values"]["train/loss"]:
        point[1] *= 1.5 if point[0] >= 10 else 1
    one["tensors"]["model.safetensors"] = dict.fromkeys(tensors, "0" * 64)
    path.write_text(json.dumps(result))
    outcome = here("reproduce", "pretrain/demo.result.json", "--first")
    assert outcome.code == 1
    first = next(iter(tensors))
    assert f"different from step 10: first differing tensor {first}, likely because torch 2.12.0 -> " in outcome.out
    outcome = here("reproduce", "pretrain/demo.result.json", "--first", "--tolerance", "0.6")
    assert outcome.code == 3
    assert "same within " in outcome.out


def test_other_raw_data_are_named_and_nothing_is_rerun(clone: Path, recorded: Path, here) -> None:
    shutil.copy(recorded, clone / "experiments/pretrain/demo.result.json")
    path = clone / "raw/heapq.py"
    path.write_text(path.read_text().replace("priority queue", "priority quene", 1))
    outcome: Outcome = here("reproduce", "experiments/pretrain/demo.result.json")
    assert outcome.code == 1
    assert outcome.out.splitlines()[0] == "pretrain/demo: inputs changed"
    assert "the files raw/*.py that documents/demo reads are others: " in outcome.out
    assert not (clone / "runs").exists() or not list((clone / "runs").glob("*/*/*/manifest.json"))


def test_sft_dpo_and_ppo_too_from_their_files_alone(clone: Path, aligned: dict[str, Path], here) -> None:
    """The models that they start from, are held to and are judged by are made on the way, each once."""
    for step, path in aligned.items():
        (clone / "experiments" / step).mkdir()
        shutil.copy(path, clone / "experiments" / step / "demo.result.json")
    outcome: Outcome = here("verify")
    assert outcome.code == 0, outcome.err + outcome.out
    rows = {tuple(line.split()[:2]) for line in outcome.out.splitlines()[1:]}
    assert rows == {(f"{step}/demo", "bit-identical") for step in aligned}
    made = [path.parts[-4] for path in (clone / "runs").glob("*/*/*/manifest.json")]
    data = ["documents", "questions", "shards", "tasks", "tokenizer"]
    assert sorted(made) == sorted([*data, "pretrain", "reward", "sft"])
    for step, path in aligned.items():
        assert str(clone) not in path.read_text()
        assert len(json.loads(path.read_text())["runs"][0]["tensors"]["model.safetensors"]) > 10, step
