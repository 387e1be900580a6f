"""Listed documents leave the documents and the shards, and every model that saw them is named."""

import json

import pytest
from test_corpus_runs import raw, run  # noqa: F401 - a fixture

from athanor import cli, config
from athanor.corpus.documents import read_documents
from athanor.corpus.erase import erase
from athanor.corpus.shards import Shards
from athanor.corpus.tokenizer import Tokenizer
from athanor.errors import UserError
from athanor.runs import lineage
from athanor.runs.files import write_json
from athanor.runs.run import MANIFEST, Run
from athanor.runs.store import execute


def texts_of(shards, tokenizer):
    found = set()
    for split in (Shards(shards.directory, "train"), Shards(shards.directory, "validation")):
        found |= {tokenizer.decode(split.tokens[a:b]) for a, b in zip(split.offsets, split.offsets[1:])}
    return found


@pytest.fixture
def made(raw):  # noqa: F811
    """Documents, tokenizer, shards, and the manifest of a model that was trained on the shards."""
    runs = [run(name) for name in ("documents/raw", "tokenizer/raw", "shards/raw")]
    shards = runs[-1]
    model = shards.root / "pretrain" / "raw" / "00000000000000aa"
    model.mkdir(parents=True)
    read = {"kind": "run", "fingerprint": shards.fingerprint, "name": shards.name, "directory": str(shards.directory)}
    write_json(
        model / MANIFEST,
        Run(shards.directory).manifest
        | {"name": "pretrain/raw", "kind": "train", "fingerprint": "00000000000000aa", "outputs": {}}
        | {"inputs": {"shards": read | {"outputs": shards.outputs_digest}}, "config": {}},
    )
    return [*runs, Run(model)]


def test_erased_from_documents_and_shards_and_the_model_says_that_it_saw_them(made, tmp_path, capsys):
    documents, tokenizer, shards, model = made
    ids = [d.id for d in read_documents(documents.path("documents.jsonl.zst"))]
    texts = {d.id: d.text for d in read_documents(documents.path("documents.jsonl.zst"))}
    (tmp_path / "list.txt").write_text(f"{ids[3]} # by letter\n{ids[8]}\nnobody/1\n")
    before = texts_of(shards, text := Tokenizer(tokenizer.directory))
    assert {texts[ids[3]], texts[ids[8]]} <= before

    dry = erase([str(tmp_path / "list.txt")], documents.root, dry=True)
    assert (dry.documents, list(dry.shards)) == ({documents.id: 2}, [shards.id])
    assert Run(documents.directory).manifest == documents.manifest, "a dry run does nothing"

    assert cli.main(["erase", str(tmp_path / "list.txt")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for line in ("2 documents erased", "rebuilt, 2 fewer", f"{model.id} was trained on them", "1 listed identities"):
        assert line in told, told
    assert f"{tokenizer.id} was made of them, and is left" in told

    now = Run(documents.directory)
    assert [d.id for d in read_documents(now.path("documents.jsonl.zst"))] == [
        i for i in ids if i not in (ids[3], ids[8])
    ]
    assert texts_of(Run(shards.directory), text) == before - {texts[ids[3]], texts[ids[8]]}
    assert "samples" not in (documents.directory / "cleaning.json").read_text() or not any(
        step["samples"] for step in json.loads((documents.directory / "cleaning.json").read_text())["steps"]
    )
    assert ids[3] not in json.dumps(now.manifest.get("erased")), "the record does not name whom it forgot"

    problems = lineage.problems(lineage.trace(Run(model.directory)))
    assert f"{shards.id}: had 2 documents erased on request after {model.id} read it" in problems
    of_shards = lineage.problems(lineage.trace(Run(shards.directory)))
    assert of_shards == [f"{documents.id}: had 2 documents erased on request after {tokenizer.id} read it"]
    assert config.load("shards/raw").fingerprint == shards.fingerprint
    execute(config.load("shards/raw"))  # finished, and of the documents as they are now

    again = erase([str(tmp_path / "list.txt")], documents.root)
    assert (again.documents, again.shards) == ({}, {}), "nothing is left to do"


def test_making_the_documents_again_would_bring_them_back(made, tmp_path):
    documents = made[0]
    first = next(read_documents(documents.path("documents.jsonl.zst"))).id
    (tmp_path / "list.txt").write_text(first)
    erase([str(tmp_path / "list.txt")], documents.root)
    with pytest.raises(UserError, match=r"1 documents were erased .* would bring them back; name the list"):
        execute(config.load("documents/raw"), force=True)
    assert cli.main(["reproduce", documents.id]) == 2


def test_killed_between_documents_and_shards_it_goes_on(made, tmp_path, monkeypatch):
    from athanor.corpus import erase as module

    documents, _, shards, _ = made
    (tmp_path / "list.txt").write_text(next(read_documents(documents.path("documents.jsonl.zst"))).id)

    def killed(*_, **__):
        raise KeyboardInterrupt

    # after the file is rewritten and before its manifest is; then between documents and shards
    for owner, name in ((module.files, "sha256"), (module, "rebuild")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killed)
            with pytest.raises(KeyboardInterrupt):
                erase([str(tmp_path / "list.txt")], documents.root)
    found = erase([str(tmp_path / "list.txt")], documents.root)
    assert found.shards == {shards.id: 1}
    assert [entry["documents"] for entry in Run(documents.directory).manifest["erased"]] == [1]
    assert Run(documents.directory).damage(fresh=True) == Run(shards.directory).damage(fresh=True) == []


def test_lists_that_say_nothing(made, tmp_path):
    (tmp_path / "list.txt").write_text("# no one\n")
    with pytest.raises(UserError, match="names no document"):
        erase([str(tmp_path / "list.txt")], made[0].root)
    (tmp_path / "all.txt").write_text("\n".join(d.id for d in read_documents(made[0].path("documents.jsonl.zst"))))
    with pytest.raises(UserError, match="would keep none of its 200 documents"):
        erase([str(tmp_path / "all.txt")], made[0].root)
