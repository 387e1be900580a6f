"""Shards hold exactly the tokens of the documents; the split is the document's own."""

import json

import numpy as np
import pytest
from corpus_harness import CHINESE, ENGLISH, document
from test_tokenizer import corpus

from athanor.corpus import shards
from athanor.corpus.documents import write_documents
from athanor.corpus.shards import Shards, WriteShards
from athanor.corpus.tokenizer import Tokenizer, TrainTokenizer
from athanor.errors import UserError


@pytest.fixture
def made(tmp_path, job):
    documents = corpus(tmp_path / "documents")
    tokenizer = job("tokenizer", TrainTokenizer(documents, 640))
    return documents, str(tokenizer), job("shards", WriteShards(documents, str(tokenizer), 0.1))


def test_content(made):
    documents, tokenizer, directory = made
    text = Tokenizer(tokenizer)
    task = WriteShards(documents, tokenizer, 0.1)
    expected = {"train": [], "validation": []}
    for d in task.read():
        expected[task.split_of(d)].append(d)
    account = json.loads((directory / "shards.json").read_text())
    for split, originals in expected.items():
        found = Shards(directory, split)
        assert len(found) == len(originals) > 20
        assert found.tokens.dtype == np.uint16
        assert found.languages == ["en", "zh"]
        assert found.vocabulary_size == 640
        for number, d in enumerate(originals):
            tokens = found.tokens[found.offsets[number] : found.offsets[number + 1]]
            assert tokens.tolist() == [text.bos_id, *text.encode(d.text), text.eos_id]
            assert found.info[number]["bytes"] == len(d.text.encode())
            assert found.languages[found.info[number]["language"]] == d.language
        assert account["splits"][split] == {
            "documents": len(originals),
            "tokens": len(found.tokens),
            "bytes": sum(len(d.text.encode()) for d in originals),
        }
    assert sum(map(len, expected.values())) == 601


def test_the_files_are_what_the_format_says(made):
    """Read by hand, without the reader."""
    _, _, directory = made
    tokens = np.fromfile(directory / "train.bin", "<u2")
    offsets = np.fromfile(directory / "train.idx", "<i8")
    info = np.load(directory / "train.info.npy")
    assert offsets[0] == 0
    assert offsets[-1] == len(tokens)
    assert info.dtype == np.dtype([("bytes", "<i4"), ("language", "u1")])
    assert set(tokens[offsets[:-1]]) == {1}
    assert set(tokens[offsets[1:] - 1]) == {2}


def test_the_same_bytes_again(made, job):
    documents, tokenizer, directory = made
    again = job("again", WriteShards(documents, tokenizer, 0.1))
    names = sorted(path.name for path in directory.iterdir())
    assert names == [
        "shards.json", "train.bin", "train.idx", "train.info.npy",
        "validation.bin", "validation.idx", "validation.info.npy",
    ]  # fmt: skip
    assert all((directory / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_the_split_is_a_function_of_the_text():
    task = WriteShards("x", "y", 0.2)
    documents = [document(f"text {n}", identity=n) for n in range(2000)]
    split = [task.split_of(d) for d in documents]
    assert 0.17 < split.count("validation") / 2000 < 0.23
    assert split == [task.split_of(d._replace(id="other", source="other", language="zh")) for d in documents]
    larger = WriteShards("x", "y", 0.4)
    assert all(larger.split_of(d) == "validation" for d, s in zip(documents, split) if s == "validation")
    salted = WriteShards("x", "y", 0.2, split_salt="other")
    assert [salted.split_of(d) for d in documents] != split


def test_a_group_stays_together():
    task = WriteShards("x", "y", 0.5)
    for group in range(50):
        assert len({task.split_of(document(f"{group} {n}", group=f"module {group}")) for n in range(9)}) == 1
    assert len({task.split_of(document("same text", group=f"module {n}")) for n in range(50)}) == 2


def test_added_documents_move_no_other(made, tmp_path, job):
    documents, tokenizer, directory = made
    write_documents(
        tmp_path / "documents.jsonl.zst", [document(f"new {n}", f"new{n}", language="fr") for n in range(40)]
    )
    more = job("more", WriteShards([str(tmp_path), documents], tokenizer, 0.1))
    for split in ("train", "validation"):
        old, new = Shards(directory, split), Shards(more, split)
        assert new.tokens[-len(old.tokens) :].tolist() == old.tokens.tolist()
        assert new.languages == ["en", "fr", "zh"]
        assert [old.languages[i] for i in old.info["language"]] == [
            new.languages[i] for i in new.info["language"][-len(old) :]
        ]


class Wide:
    """A tokenizer whose ids do not fit 16 bits."""

    vocabulary_size = 70_000
    bos_id, eos_id = 1, 2

    def __init__(self, path):
        pass

    def encode_batch(self, texts, threads=1):
        return [[69_999, 65_536, 3] for _ in texts]


def test_large_vocabularies_take_32_bits(made, job, monkeypatch):
    documents, tokenizer, _ = made
    monkeypatch.setattr(shards, "Tokenizer", Wide)
    found = Shards(job("wide", WriteShards(documents, tokenizer, 0.1)), "train")
    assert found.tokens.dtype == np.uint32
    assert found.tokens[:5].tolist() == [1, 69_999, 65_536, 3, 2]


def test_ids_that_do_not_fit_are_never_written(made, context, monkeypatch):
    documents, tokenizer, _ = made
    monkeypatch.setattr(Wide, "vocabulary_size", 640)
    monkeypatch.setattr(shards, "Tokenizer", Wide)
    with pytest.raises(AssertionError, match="do not fit uint16"):
        WriteShards(documents, tokenizer, 0.1).run(context)
    assert list(context.directory.iterdir()) == []


def test_an_empty_split_is_an_error(tmp_path, made, context):
    _, tokenizer, _ = made
    write_documents(tmp_path / "documents.jsonl.zst", [document(ENGLISH, "a"), document(CHINESE, "b")])
    with pytest.raises(UserError, match=r"none of 2 documents falls in the validation split; .* 0\.001"):
        WriteShards(str(tmp_path), tokenizer, 0.001).run(context)
    with pytest.raises(UserError, match="no document is left for training; lower validation_fraction"):
        WriteShards(str(tmp_path), tokenizer, 0.9999999).run(context)
    assert list(context.directory.iterdir()) == []
    with pytest.raises(UserError, match=r"validation_fraction 1 must lie in"):
        WriteShards(str(tmp_path), tokenizer, 1)


def test_without_validation(made, job):
    documents, tokenizer, _ = made
    directory = job("all", WriteShards(documents, tokenizer, 0))
    assert len(Shards(directory, "train")) == 601
    assert len(Shards(directory, "validation")) == len(Shards(directory, "validation").tokens) == 0


def test_an_index_that_does_not_fit(made):
    _, _, directory = made
    offsets = (directory / "train.idx").read_bytes()
    (directory / "train.idx").write_bytes(offsets[:-8])
    with pytest.raises(UserError, match=r"train\.bin does not agree with its index"):
        Shards(directory, "train")
