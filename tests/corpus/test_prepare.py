"""The chain of sources and steps: nothing lost unaccounted, nothing half-written, the same bytes every time."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from corpus_harness import CHINESE, ENGLISH, Context

from athanor.corpus.deduplicate import ExactDuplicates, NearDuplicates
from athanor.corpus.documents import read_documents
from athanor.corpus.extract import ExtractHtml
from athanor.corpus.filters import Length, Quality
from athanor.corpus.language import DetectLanguage
from athanor.corpus.normalize import Normalize
from athanor.corpus.prepare import PrepareDocuments
from athanor.corpus.sources import Html, JsonLines, Text
from athanor.errors import UserError


def prepare(folder: Path) -> PrepareDocuments:
    """Two sources, of ten documents in all, of which four stay."""
    folder.mkdir(exist_ok=True)
    english = [ENGLISH, ENGLISH.upper(), "too short", ENGLISH * 2 + " More of it.", "!!!", "\u200b"]
    chinese = [CHINESE, CHINESE.replace("狐狸", "狐\u200b狸"), "太短", CHINESE[::-1]]
    for name, texts in (("english", english), ("chinese", chinese)):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return PrepareDocuments(
        sources=[
            JsonLines(str(folder / "english.jsonl"), "english", language="en", licence="CC0"),
            JsonLines(str(folder / "chinese.jsonl"), "chinese"),
        ],
        steps=[
            Normalize(),
            Length(5),
            DetectLanguage(),
            Quality(max_repeated_ngrams=0.6),
            ExactDuplicates(only=["english"]),
            NearDuplicates(0.9),
        ],
    )


def test_every_loss_is_accounted_for(tmp_path, job):
    directory = job("documents", prepare(tmp_path / "raw"))
    documents = list(read_documents(directory / "documents.jsonl.zst"))
    assert [(d.id, d.language) for d in documents] == [
        ("english/english.jsonl:1", "en"),
        ("english/english.jsonl:4", "en"),
        ("chinese/chinese.jsonl:1", "zh"),
        ("chinese/chinese.jsonl:4", "zh"),
    ]
    account = json.loads((directory / "cleaning.json").read_text(encoding="utf-8"))
    assert [(s["name"], s["in"], s["out"], s["dropped"]) for s in account["steps"]] == [
        ("normalize", 10, 9, {"empty": 1}),
        ("length", 9, 6, {"shorter than 5 units": 3}),
        ("language", 6, 6, {}),
        ("quality", 6, 6, {}),
        ("exact duplicates", 6, 5, {"exact duplicate": 1}),
        ("near duplicates", 5, 4, {"near duplicate": 1}),
    ]
    assert account["steps"][1]["samples"] == {"shorter than 5 units": ["too short", "!!!", "太短"]}
    assert account["steps"][2]["counts"] == {"zh": 3}
    assert account["steps"][4]["only"] == ["english"]
    assert {name: source["documents"] for name, source in account["sources"].items()} == {"english": 6, "chinese": 4}
    assert account["sources"]["english"]["licence"] == "CC0"
    size = Counter()
    for d in documents:
        size[d.language] += len(d.text.encode())
    assert account["languages"] == {
        "en": {"documents": 2, "bytes": size["en"], "characters": {"128": 1, "256": 1}},
        "zh": {"documents": 2, "bytes": size["zh"], "characters": {"64": 2}},
    }
    assert account["sources"]["english"]["kept"] == {"documents": 2, "bytes": size["en"]}


def test_metrics(tmp_path):
    metrics = prepare(tmp_path / "raw").run(Context(tmp_path / "run"))
    assert metrics["documents"] == 4
    assert metrics["dropped"] == 6


def test_the_same_bytes_in_another_process(tmp_path):
    script = (
        "import sys; from pathlib import Path; from corpus_harness import Context; from test_prepare import prepare;"
        "prepare(Path(sys.argv[1])).run(Context(Path(sys.argv[2])))"
    )
    outputs = []
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        directory = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "raw"), str(directory)], check=True, env=environment
        )
        outputs.append({path.name: path.read_bytes() for path in directory.iterdir()})
    assert outputs[0] == outputs[1]
    assert sorted(outputs[0]) == ["cleaning.json", "documents.jsonl.zst"]


def test_empty_after_filters_names_the_step_that_dropped_most(tmp_path, context):
    task = prepare(tmp_path / "raw")
    task.steps = [Length(2), Length(5), Length(10_000), Normalize()]
    with pytest.raises(
        UserError,
        match=r"no document is left of 10: step 'length' dropped the most, 6, of which 6 for 'shorter than 10000",
    ):
        task.run(context)
    assert list(context.directory.iterdir()) == []


def test_empty_sources(tmp_path, context):
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(UserError, match="the sources gave no document"):
        PrepareDocuments([JsonLines(str(tmp_path / "a.jsonl"), "a")], [Normalize()]).run(context)
    assert list(context.directory.iterdir()) == []


def test_an_error_in_the_middle_leaves_nothing(tmp_path, context):
    task = prepare(tmp_path / "raw")
    with (tmp_path / "raw" / "chinese.jsonl").open("ab") as file:
        file.write(b'{"text": "\xff"}\n')
    with pytest.raises(UserError, match=r"chinese\.jsonl is not UTF-8"):
        task.run(context)
    assert list(context.directory.iterdir()) == []


def test_markup_does_not_pass_for_text(tmp_path, context):
    (tmp_path / "a.html").write_text(f"<html><body><p>{ENGLISH}</p></body></html>")
    files = str(tmp_path / "a.html")
    with pytest.raises(UserError, match=r"source pages has web pages that are still markup; .*ExtractHtml"):
        PrepareDocuments([Html(files, "pages")], [Normalize()]).run(context)
    assert PrepareDocuments([Html(files, "pages")], [ExtractHtml()]).run(context)["documents"] == 1


def test_names(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    source = Text(str(tmp_path / "a.txt"), "a")
    with pytest.raises(UserError, match="two sources are named a"):
        PrepareDocuments([source, source], [])
    with pytest.raises(UserError, match="step 'length' is for sources that do not exist: b; there are a"):
        PrepareDocuments([source], [Length(only=["a", "b"])])


def test_missing_file(tmp_path, context):
    with pytest.raises(UserError, match=r"nowhere\.txt does not exist"):
        PrepareDocuments([Text(str(tmp_path / "nowhere.txt"), "a")], []).run(context)
