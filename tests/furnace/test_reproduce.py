"""`athanor reproduce` on real trainings: bit for bit the same, and what it says once a document has changed."""

from pathlib import Path

import pytest
from furnace_project import Furnace, read_json


@pytest.mark.parametrize("step", ["pretrain", "dpo", "ppo"])
def test_a_training_is_reproduced_bit_for_bit(furnace: Furnace, step: str) -> None:
    run = furnace.directory(step)
    outcome = furnace.run("reproduce", str(run))
    assert outcome.code == 0, outcome.err
    told = outcome.out.splitlines()
    assert told[0] == f"{run.relative_to(furnace.runs)}: bit-identical"
    assert any(line.startswith("  model.safetensors: bit-identical, all ") for line in told)
    assert any(line.startswith("  rerun in ") for line in told)
    result = read_json(run / "reproduce.json")
    assert {output["name"] for output in result["outputs"]} >= {"model.safetensors", "model.json", "tokenizer.model"}
    assert {output["verdict"] for output in result["outputs"]} == {"bit-identical"}
    assert not list((furnace.runs / ".reproduce").rglob("model.safetensors")), "what is the same is not kept"


@pytest.fixture
def changed(furnace: Furnace):
    """One character of a raw document is another, for as long as the test lasts."""
    path = furnace.folder / "raw/heapq.py"
    before = path.read_bytes()
    assert before.count(b"priority queue")
    path.write_bytes(before.replace(b"priority queue", b"priority quene", 1))
    yield path
    path.write_bytes(before)


def test_after_a_change_of_one_character_it_says_what_differs(furnace: Furnace, changed: Path) -> None:
    run = furnace.directory("dpo")
    outcome = furnace.run("reproduce", str(run))
    assert outcome.code == 1
    told = outcome.out.splitlines()
    assert told[0] == f"{run.relative_to(furnace.runs)}: inputs changed"
    for reader in ("documents/demo", "questions/demo"):
        assert f"  changed since: {reader}, input stdlib: {changed} was changed: it has as many bytes as before" in (
            outcome.out
        )
    assert any(line.startswith("  not rerun: ") for line in told)

    anyway = furnace.run("reproduce", str(run), "--anyway")
    assert anyway.code == 1, "the weights are the same, and yet not what the documents would give today"
    assert "model.safetensors: bit-identical" in anyway.out

    composed = furnace.run("pipeline", "experiment=pipelines/tiny", "--check")
    now = {line.split()[1]: line.split()[3] for line in composed.out.splitlines()}
    then = {step: furnace.directory(step).name for step in now}
    assert {step for step in now if now[step] == then[step]} == {"tasks"}


def test_other_weights_are_told_from_the_same(furnace: Furnace, tmp_path: Path) -> None:
    """The stored run is made to look like one of another seed: the first tensor that differs is named."""
    outcome = furnace.run(*furnace.command("pretrain", tmp_path, "seed=2"))
    assert outcome.code == 0, outcome.err
    (manifest,) = tmp_path.glob("pretrain/demo/*/manifest.json")
    text = manifest.read_text()
    manifest.write_text(text.replace('"seed": 2,', '"seed": 3,'))
    again = furnace.run("reproduce", str(manifest.parent))
    assert again.code == 1
    assert again.out.splitlines()[0].endswith(": different")
    assert "first differing tensor" in again.out
    assert (tmp_path / ".reproduce").is_dir(), "the other weights are kept to look at"
