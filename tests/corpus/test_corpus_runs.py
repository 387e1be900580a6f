"""The corpus as runs: from raw files to shards by experiments, and what each kind of bad input says."""

import json
from itertools import pairwise

import numpy as np
import pytest
from corpus_harness import CHINESE, ENGLISH

from athanor import cli, config
from athanor.corpus.shards import Shards
from athanor.corpus.tokenizer import Tokenizer
from athanor.errors import UserError
from athanor.runs.store import execute

DOCUMENTS = """
# Two languages.
defaults: [/prepare, /job: documents, _self_]
inputs:
  raw: {files: data/raw.jsonl}
job:
  sources:
    - {_target_: athanor.corpus.sources.JsonLines, name: raw, files: "${inputs.raw}"}
"""
TOKENIZER = """
# A small vocabulary.
defaults: [/prepare, /job: tokenizer, _self_]
inputs: {documents: documents/raw}
job: {vocabulary_size: 640}
"""
SHARDS = """
# A tenth held out.
defaults: [/prepare, /job: shards, _self_]
inputs: {documents: documents/raw, tokenizer: tokenizer/raw}
job: {validation_fraction: 0.1}
"""


@pytest.fixture
def raw(project):
    rng = np.random.default_rng(0)
    lines = []
    for number in range(200):
        parts = ENGLISH.split() if number % 2 else list(CHINESE)
        glue = " " if number % 2 else ""
        lines.append(json.dumps({"text": glue.join(map(str, rng.permutation(parts)))}))
    project.write("data/raw.jsonl", "\n".join(lines) + "\n")
    project.experiment("documents/raw", DOCUMENTS)
    project.experiment("tokenizer/raw", TOKENIZER)
    project.experiment("shards/raw", SHARDS)
    return project


def run(name, *overrides):
    return execute(config.load(name, list(overrides)))


def left_behind(name):
    """Files of a failed run that are not its account of itself."""
    known = {"manifest.json", "config.yaml", "log.txt", ".lock", "code.diff", "metrics.jsonl"}
    directory = config.load(name).directory
    return {path.name for path in directory.glob("*")} - known


def test_from_raw_files_to_shards(raw):
    documents, tokenizer, shards = run("documents/raw"), run("tokenizer/raw"), run("shards/raw")
    assert set(documents.manifest["outputs"]) == {"documents.jsonl.zst", "cleaning.json"}
    assert set(tokenizer.manifest["outputs"]) == {"tokenizer.model", "tokenizer.json"}
    train, validation = Shards(shards.directory, "train"), Shards(shards.directory, "validation")
    assert len(train) + len(validation) == documents.metrics["documents"] == 200
    text = Tokenizer(tokenizer.directory)
    originals = {json.loads(line)["text"] for line in (raw.folder / "data/raw.jsonl").read_text().splitlines()}
    found = [text.decode(split.tokens[a:b]) for split in (train, validation) for a, b in pairwise(split.offsets)]
    assert len(found) == 200
    assert set(found) == originals


def test_forced_again_the_outputs_are_the_same_bytes(raw):
    for name in ("documents/raw", "tokenizer/raw", "shards/raw"):
        outputs = run(name).manifest["outputs"]
        assert execute(config.load(name), force=True).manifest["outputs"] == outputs


def test_a_corrupted_byte_of_a_shard(raw):
    for name in ("documents/raw", "tokenizer/raw"):
        run(name)
    directory = run("shards/raw").directory
    data = bytearray((directory / "train.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (directory / "train.bin").write_bytes(data)
    with pytest.raises(UserError, match=r"train\.bin.*--force"):
        Shards(directory, "train")
    assert len(Shards(directory, "validation")) > 0, "the other file is sound"


def test_a_truncated_tokenizer(raw):
    run("documents/raw")
    directory = run("tokenizer/raw").directory
    data = (directory / "tokenizer.model").read_bytes()
    (directory / "tokenizer.model").write_bytes(data[:-100])
    with pytest.raises(UserError, match=r"tokenizer\.model.*--force"):
        Tokenizer(directory)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"body": "x"}\n', r"raw\.jsonl, line 201: no field 'text'"),
        (b'{"text": "\xe9t\xe9"}\n', r"raw\.jsonl is not UTF-8: byte 0xe9 at byte offset \d+"),
        (b"{\n", r"raw\.jsonl, line 201: not JSON"),
    ],
)
def test_bad_records(raw, line, message):
    with (raw.folder / "data/raw.jsonl").open("ab") as file:
        file.write(line)
    with pytest.raises(UserError, match=message) as error:
        run("documents/raw")
    assert "\n" not in str(error.value)
    assert not left_behind("documents/raw")


def test_an_empty_corpus(raw):
    raw.write("data/raw.jsonl", '{"text": "short"}\n' * 3)
    with pytest.raises(UserError, match=r"no document is left of 3: step 'length' dropped the most, 3"):
        run("documents/raw")
    assert not left_behind("documents/raw")


def test_a_vocabulary_too_large(raw):
    run("documents/raw")
    raw.experiment("tokenizer/raw", TOKENIZER.replace("640", "64000"))
    with pytest.raises(UserError, match=r"vocabulary_size 64000 is too large .* the largest is \d+"):
        run("tokenizer/raw")
    assert not left_behind("tokenizer/raw")


def test_preparing_ends_with_a_data_card(raw, capsys):
    assert cli.main(["prepare", "experiment=shards/raw", "--with-inputs"]) == 0
    assert "data card: " in capsys.readouterr().out
    for name in ("documents/raw", "tokenizer/raw", "shards/raw"):
        directory = config.load(name).directory
        assert (directory / "card.html").is_file(), name
        assert "card.md" not in json.loads((directory / "manifest.json").read_text())["outputs"], "no output: it says"
    text = (config.load("shards/raw").directory / "card.md").read_text("utf-8")
    for part in ("## Documents", "## Tokenizer", "## Token shards", "| raw.jsonl |"):
        assert part in text, part
