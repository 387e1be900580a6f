"""The data card says what the runs' accounts say, in both forms, and cannot be made to say anything else."""

import json
import re
from html.parser import HTMLParser

import pytest

from athanor.errors import UserError
from athanor.report import card

EVIL = "<script>alert(1)</script>|\n![x](y)"
OUT = {"sha256": "ab" * 32, "bytes": 1234}


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.words, self.tags, self.rows, self.depth = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        self.depth = tag

    def handle_data(self, data):
        if data.strip() and self.depth not in ("style", "script"):
            self.words.append(" ".join(data.split()))
            if self.rows and self.depth in ("td", "th"):
                self.rows[-1].append(self.words[-1])


def account(**more):
    """Of 100 documents, of which 60 are kept and 30 repeated."""
    step = {"only": None, "samples": {}, "counts": {}, "details": {}, "dropped": {}}
    domains = {
        name: {"documents": n, "before": 100 * n, "after": 100 * after, "share_before": n / 60,
               "share_wanted": wanted, "share_after": after / 90, "epochs": after / n}
        for name, n, after, wanted in (("medical", 24, 9, 0.1), ("news", 36, 81, 0.9))
    }  # fmt: skip
    steps = [
        step | {"name": "length", "in": 100, "out": 70, "dropped": {"short": 30}, "samples": {"short": [EVIL]}},
        step | {"name": "near duplicates", "in": 70, "out": 62, "dropped": {"near duplicate": 8},
                "details": {"clusters": {"2": 5, "4": 1}}},
        step | {"name": "contamination", "in": 62, "out": 60, "dropped": {"shares with mmlu": 2}},
        step | {"name": "privacy", "in": 60, "out": 60, "counts": {"PHONE": 12, "documents changed": 7}},
        step | {"name": "balance", "in": 60, "out": 130, "counts": {"bytes of news before": 3600},
                "details": {"mixture": {"by": "domain", "unit": "bytes", "domains": domains}}},
    ]  # fmt: skip
    sources = {
        "raw": {
            "documents": 100,
            "bytes": 9000,
            "licence": EVIL,
            "skipped": {},
            "kept": {"documents": 90, "bytes": 8100},
        }
    }
    languages = {"en": {"documents": 90, "bytes": 8100, "characters": {"64": 60, "256": 30}}}
    return {"sources": sources, "steps": steps, "languages": languages} | more


@pytest.fixture
def prepared(tmp_path):
    def write(name, job, files, inputs=()):
        directory = tmp_path / name / "00000000000000aa"
        directory.mkdir(parents=True)
        for file, content in files.items():
            (directory / file).write_text(json.dumps(content))
        manifest = {"name": name, "fingerprint": f"{name}000000aa"[:16], "kind": "prepare", "status": "finished"}
        manifest |= {"science": {"job": {"_target_": f"athanor.corpus.{job}"}}, "overrides": [], "command": "x"}
        manifest |= {"inputs": dict(inputs), "outputs": dict.fromkeys(files, OUT), "started": 1.0, "seconds": 1.0}
        (directory / "manifest.json").write_text(json.dumps(manifest))
        return directory, {
            "kind": "run",
            "name": name,
            "fingerprint": manifest["fingerprint"],
            "directory": str(directory),
        }

    raw = {"kind": "files", "fingerprint": "f" * 16, "files": [{"path": f"a/{EVIL.replace('/', '')}", **OUT}]}
    documents, read = write("docs", "prepare.PrepareDocuments", {"cleaning.json": account()}, [("raw", raw)])
    tokenizer = {"vocabulary_size": 640, "model_type": "bpe", "bytes_per_token": {"en": 3.5}, "round_trip": 1.0}
    _, words = write("words", "tokenizer.TrainTokenizer", {"tokenizer.json": tokenizer}, [("documents", read)])
    splits = {
        "train": {"documents": 80, "tokens": 12345, "bytes": 7000},
        "validation": {"documents": 10, "tokens": 99, "bytes": 1},
    }
    shards, _ = write("shards", "shards.WriteShards", {"shards.json": {"dtype": "uint16", "splits": splits}},
                      [("documents", read), ("tokenizer", words)])  # fmt: skip
    return documents, shards


def test_the_card_of_documents_says_what_happened_to_them(prepared):
    html, markdown = (path.read_text("utf-8") for path in card.write(prepared[0]))
    page = Page(html)
    for row in (
        ["medical", "24", "2,400", "900", "40.0%", "10.0%", "10.0%", "0.38"],
        ["near duplicates", "dropped: near duplicate", "8"],
        ["contamination", "dropped: shares with mmlu", "2"],
        ["near duplicates", "4", "1"],
        ["privacy", "PHONE", "12"],
        ["English", "90", "8.1 kB", "100.0%"],
    ):
        assert row in page.rows, row
        assert f"| {' | '.join(row)} |" in markdown, row
    assert "bytes of news before" not in markdown.partition("### Personal data")[2], "other counts are no findings"
    assert "| length | 100 | 70 | 30 short |" in markdown
    assert html.count('class="domain"') == 2
    widths = [float(v) for v in re.findall(r"--kept: ([\d.]+)", html)]
    assert max(widths) == 1, "repeated documents do not run out of the drawing"
    assert re.findall(r'title="(\d+) documents of (\d+) to (\d+) characters', html) == [
        ("60", "64", "127"), ("0", "128", "255"), ("30", "256", "511")
    ]  # fmt: skip
    assert f"`{'ab' * 32}`" in markdown
    assert "ab" * 32 in page.words


def test_the_card_of_shards_has_all_that_they_were_made_from(prepared):
    html, markdown = (path.read_text("utf-8") for path in card.write(prepared[1]))
    for text in ("12.4 k", "640 pieces by bpe", "100.0% of texts come back exactly"):
        assert text in html
        assert text in markdown
    assert ["train", "80", "12,345", "7.0 kB"] in Page(html).rows
    assert re.findall("^## .*", markdown, re.MULTILINE)[0].startswith("## Documents `docs/")


def test_what_documents_say_is_no_markup(prepared):
    html, markdown = (path.read_text("utf-8") for path in card.write(prepared[0]))
    assert Page(html).tags.count("script") == 1, "the frame's own"
    assert "<script>" not in markdown
    assert "![x](y)" not in markdown
    cells = [
        len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines() if "alert" in line and line[0] == "|"
    ]
    assert cells == [8, 5], "a source has seven columns, a file four"


def test_erasure_and_a_sweep(prepared, tmp_path):
    directory = prepared[0]
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"erased": [{"documents": 3}, {"documents": 1}]}))
    assert "4 documents were erased on request" in card.write(directory)[1].read_text("utf-8")
    one = {"bytes_per_token": {"en": 3.0, "zh": 2.0}, "fertility": {"en": 1.25, "zh": 0.75}, "round_trip": 1.0}
    one |= {"as_bytes": {"en": 0.0, "zh": 0.0125}, "model_type": "bpe"}
    sweep = {
        "held_out": {"documents": 7, "bytes": 900},
        "tokenizers": [one | {"vocabulary_size": n} for n in (512, 1024)],
    }
    (directory / "cleaning.json").unlink()
    (directory / "sweep.json").write_text(json.dumps(sweep))
    html, markdown = (path.read_text("utf-8") for path in card.write(directory))
    assert "| bpe 1,024 | Chinese | 2.000 | 0.750 | 1.250% | 100.0% |" in markdown
    assert html.count('<path class="line') == 6, "three drawings, a line for each language"


def test_a_run_without_an_account_has_none(prepared):
    (prepared[0] / "cleaning.json").unlink()
    assert card.write(prepared[0]) == []
    assert not list(prepared[0].glob("card.*"))


def test_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match="neither a run nor a pipeline"):
        card.write(tmp_path)
