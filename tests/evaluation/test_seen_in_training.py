"""Of the items of a score, those that the model has read in training, found through the manifests alone."""

import hashlib
import json

import pytest

from athanor.corpus.contamination import Runs
from athanor.corpus.documents import Document, write_documents
from athanor.corpus.shards import WriteShards
from athanor.errors import UserError
from athanor.evaluation.contamination import Contamination, training_bytes, training_texts, trainings
from athanor.evaluation.evaluate import Evaluation
from athanor.evaluation.exact_match import ExactMatch
from athanor.evaluation.measurement import Measurement
from athanor.runs.files import write_json
from athanor.runs.run import Run

WORDS = [f"word{letter}" for letter in "abcdefghijklmno"]


def text(number: int) -> str:
    """Fifteen words that no other number's text has in a row."""
    return " ".join(f"{word}{number}" for word in WORDS)


@pytest.fixture
def trained(tmp_path):
    """A model fine-tuned on records from one that was pretrained on shards of eight documents."""

    def finish(name, kind, config, inputs=(), outputs=()):
        directory = tmp_path / name / "00000000000000aa"
        directory.mkdir(parents=True, exist_ok=True)
        entries = {
            key: {"kind": "run", "name": run.name, "fingerprint": run.fingerprint, "directory": str(run.directory)}
            for key, run in inputs
        }
        manifest = {"name": name, "kind": kind, "fingerprint": "00000000000000aa", "status": "finished"}
        write_json(
            directory / "manifest.json", manifest | {"config": config, "inputs": entries, "outputs": dict(outputs)}
        )
        return Run(directory)

    path = tmp_path / "documents" / "00000000000000aa"
    path.mkdir(parents=True)
    write_documents(path / "documents.jsonl.zst", [Document(str(n), text(n), "s", "en") for n in range(8)])
    data = (path / "documents.jsonl.zst").read_bytes()
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    documents = finish("documents", "prepare", {}, outputs=[("documents.jsonl.zst", entry)])
    job = {"_target_": "athanor.corpus.shards.WriteShards", "documents": str(path), "tokenizer": "t"}
    shards = finish("shards", "prepare", {"job": job | {"validation_fraction": 0.5}}, [("documents", documents)])
    base = finish("pretrain", "train", {"data": {"shards": str(shards.directory)}}, [("shards", shards)])
    records, held = tmp_path / "sft_train.jsonl", tmp_path / "sft_validation.jsonl"
    records.write_text(json.dumps({"messages": [{"role": "user", "content": text(100)}]}) + "\n")
    held.write_text(json.dumps({"prompt": text(200)}) + "\n")
    return finish("sft", "train", {"data": {"train": [str(records)], "validation": [str(held)]}}, [("model", base)])


def test_the_training_text_is_found_through_all_trainings_and_without_what_was_held_out(trained):
    assert [run.name for run in trainings(trained)] == ["sft", "pretrain"]
    split = WriteShards("d", "t", 0.5).split_of
    read = {n for n in range(8) if split(Document(str(n), text(n), "s")) == "train"}
    assert 0 < len(read) < 8
    assert set(training_texts(trained)) - {"user"} == {text(n) for n in read} | {text(100)}
    assert training_bytes(trained) > 0


def test_share_and_the_score_of_the_rest(trained):
    split = WriteShards("d", "t", 0.5).split_of
    seen = next(n for n in range(8) if split(Document(str(n), text(n), "s")) == "train")
    held = next(n for n in range(8) if split(Document(str(n), text(n), "s")) == "validation")
    items = [
        {"id": "a", "language": "en", "texts": [f"Say {text(seen)} please", "b"]},
        {"id": "b", "language": "en", "texts": [text(100)]},
        {"id": "c", "language": "en", "texts": [text(held)]},
        {"id": "d", "language": "zh", "texts": [text(200)]},
        {"id": "e", "language": "zh", "texts": ["too short"]},
    ]
    measured = Measurement("exact_match", items, [1, 1, 1, 0, 1], "fraction", "higher")
    found = Contamination(trained, items, Runs())
    of_all = found.of(measured, {})
    assert (of_all["share"], of_all["judged"]) == (0.5, 4)
    assert (of_all["clean"]["value"], of_all["clean"]["n"]) == (0.5, 2)
    assert found.of(measured, {"language": "en"})["share"] == pytest.approx(2 / 3)
    assert found.of(measured, {"language": "zh"}) == {"share": 0.0, "judged": 1, "clean": None}
    assert found.of(measured, {"family": "x"}) is None


def test_the_job_attaches_it_to_each_score(world, policy, tmp_path, monkeypatch):
    """An evaluation of a model whose manifest names no text says nothing; of one that does, it is in results.json."""
    items = [text(1), text(2), "short"]
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps({"prompt": item[:60], "answer": item}) + "\n" for item in items))
    tasks = [ExactMatch([str(path)], max_new_tokens=2)]
    monkeypatch.setattr(type(policy), "fitting", lambda self, lengths, names, room: [*range(len(lengths))])
    monkeypatch.setattr(type(policy), "answers", lambda self, prompts, **_: [[5] for _ in prompts])

    def results(name):
        Evaluation(world.policy, tasks).run(world.runs.context(name))
        return json.loads(next((world.runs.root / name).glob("*/results.json")).read_text())

    silent = results("evaluate-silent")
    assert "contamination" not in silent["metrics"][0]
    assert "texts" not in json.dumps(silent)
    read = tmp_path / "read.jsonl"
    read.write_text(json.dumps({"text": f"so {text(1)}"}) + "\n")
    directory = next((world.runs.root / "policy").iterdir())
    manifest = Run(directory).manifest
    write_json(directory / "manifest.json", manifest | {"config": {"data": {"files": [str(read)]}}})
    try:
        told = results("evaluate-told")["metrics"][0]["contamination"]
    finally:
        write_json(directory / "manifest.json", manifest)
    assert (told["share"], told["judged"]) == (0.5, 2)
    assert told["clean"]["n"] == 1


def test_training_text_that_is_gone_does_not_stop_an_evaluation(world, policy, tmp_path, monkeypatch, caplog):
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps({"prompt": "2 + 3 = ?", "answer": "5"}) + "\n")
    directory = next((world.runs.root / "policy").iterdir())
    manifest = Run(directory).manifest
    gone = {"kind": "run", "name": "shards", "fingerprint": "f" * 16, "directory": str(tmp_path / "gone")}
    tasks = [ExactMatch([str(path)], max_new_tokens=2)]
    write_json(directory / "manifest.json", manifest | {"inputs": {"shards": gone}})
    try:
        Evaluation(world.policy, tasks).run(world.runs.context("evaluate-gone"))
        assert "contamination is not measured: the run shards/" in caplog.text
        with pytest.raises(UserError, match=r"the run shards/f+ is gone"):
            Evaluation(world.policy, tasks, contamination=True).run(world.runs.context("evaluate-insist"))
    finally:
        write_json(directory / "manifest.json", manifest)
