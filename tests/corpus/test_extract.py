"""The article without what surrounds it."""

import gzip
import json
from collections import Counter

import pytest
from corpus_harness import CHINESE, ENGLISH, document

from athanor.corpus.extract import ExtractHtml, decode_html

PAGE = """<!doctype html><html><head><title>Fox</title><style>p {{ color: red }}</style></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/shop">Buy now</a></li></ul></nav>
<article><h1>{title}</h1><p>{text}</p><p>{text}</p></article>
<script>alert("hi")</script><footer>All rights reserved. Cookie settings.</footer></body></html>"""


@pytest.mark.parametrize(("title", "text"), [("The fox", ENGLISH), ("狐狸与狗", CHINESE)], ids=["english", "chinese"])
def test_article_without_boilerplate(title, text):
    step = ExtractHtml()
    page = document(PAGE.format(title=title, text=text), format="html", url="u")
    (result,) = step([page])
    assert text in result.text
    assert not [word for word in ("Buy now", "Cookie", "alert", "color", "<p>") if word in result.text]
    assert result.meta == {"url": "u"}
    assert step.counts == {"article": 1}


def test_text_that_is_not_markup_passes():
    plain = document("a < b and <p> is a tag")
    assert list(ExtractHtml()([plain])) == [plain]


def test_fallback_is_counted(monkeypatch):
    import trafilatura

    monkeypatch.setattr(trafilatura, "extract", lambda *_, **__: None)
    page = document("<html><body><div>just this</div></body></html>", format="html")
    step = ExtractHtml()
    assert [d.text.strip() for d in step([page])] == ["just this"]
    assert step.counts == {"fallback to all text": 1}
    strict = ExtractHtml(fallback=False)
    assert list(strict([page])) == []
    assert strict.dropped == {"no text in the page": 1}


def test_empty_page():
    step = ExtractHtml()
    assert list(step([document("<html><body></body></html>", format="html"), document("", format="html")])) == []
    assert step.dropped == {"no text in the page": 2}


def test_charsets():
    assert decode_html("汉".encode("utf-8-sig")) == ("汉", "utf-8")
    assert decode_html("汉".encode("utf-16")) == ("汉", "utf-16")
    assert decode_html("漢".encode("big5"), "big5") == ("漢", "big5hkscs")
    assert decode_html("汉字".encode("gb18030")) == ("汉字", "gb18030")
    page = CHINESE.encode()
    assert decode_html(page + b"\xe4\xbd", "utf-8") == (CHINESE + "\ufffd", "utf-8"), "cut off inside a character"
    assert decode_html("“x”".encode("windows-1252"), "iso-8859-1") == ("“x”", "windows-1252")
    assert decode_html(b"Caf\xe9 x", "utf-8") == ("Café x", "windows-1252")


@pytest.mark.slow
def test_human_truth(shared):
    """4-gram F1 against what people marked as the article, on news pages; stripping tags has 0.67."""
    scores = []
    step = ExtractHtml()
    with gzip.open(shared / "html_article_extraction/pages.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            found = step.apply(document(record["html"], format="html"))
            words = [
                Counter(zip(*(text.split()[n:] for n in range(4)))) for text in (found.text, record["article_body"])
            ]
            common = sum((words[0] & words[1]).values())
            scores.append(2 * common / max(1, sum(words[0].values()) + sum(words[1].values())))
    assert sum(scores) / len(scores) > 0.9
