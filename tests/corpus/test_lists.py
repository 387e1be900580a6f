"""Domains, dates and words that are not wanted."""

from datetime import date

import pytest
from corpus_harness import document

from athanor.corpus.lists import BlockedDomains, Recent, WordList, latest
from athanor.errors import UserError


def listed(folder, *lines):
    (folder / "list.txt").write_text("# remark\n\n" + "\n".join(lines), encoding="utf-8")
    return str(folder / "list.txt")


def test_domains_and_those_below_them(tmp_path):
    step = BlockedDomains(listed(tmp_path, "Bad.com", "spam.co.uk", "例子.cn"))
    urls = {
        "http://bad.com/x": False,
        "https://www.BAD.com:8080/?q=good.com": False,
        "http://notbad.com": True,
        "http://bad.com.org": True,
        "http://co.uk": True,
        "a.spam.co.uk/page": False,
        "http://新闻.例子.cn/1": False,
        "http://good.com/bad.com": True,
        "http://[broken": True,
        "": True,
    }
    kept = {d.meta["url"] for d in step(document("x", url=url) for url in urls)}
    assert kept == {url for url, stays in urls.items() if stays}
    assert step.dropped == {
        "blocked domain bad.com": 2,
        "blocked domain spam.co.uk": 1,
        "blocked domain xn--fsqu00a.cn": 1,
    }
    assert step.apply(document("x")) == document("x")


def test_recent():
    step = Recent(2, until="2026-01-31")
    dates = {
        "2026-02-01": 1,
        "2024-02-02": 1,
        "2024-01-30": 0,
        "2023": 0,
        "2024": 1,
        "2024-01": 0,
        "1999/7/3": 0,
        "soon": 1,
    }
    assert {d.id for d in step(document("x", written, date=written) for written in dates)} == {
        k for k, v in dates.items() if v
    }
    assert step.counts == {"no date": 1}
    assert latest("2023-02") == date(2023, 2, 28)
    assert latest("2024-12-05T10:00") == date(2024, 12, 5)
    assert latest("2024-13-05") is None
    assert latest("20240105") is None
    with pytest.raises(UserError, match="until 'today' is not a date"):
        Recent(2, until="today")
    with pytest.raises(UserError, match="years 0 must be above 0"):
        Recent(0, until="2026-01-31")


def test_words_in_both_languages(tmp_path):
    step = WordList(listed(tmp_path, "darn", "son of a gun", "混蛋"), maximum=0)
    texts = {
        "Darn!": 0,
        "darning socks": 1,
        "undarn": 1,
        "a Son of a Gun.": 0,
        "你这个混蛋。": 0,
        "他说darn。": 0,
        "混 蛋": 1,
    }
    assert {d.text for d in step(map(document, texts))} == {text for text, stays in texts.items() if stays}
    assert WordList(listed(tmp_path, "darn"), maximum=2).apply(document("darn darn")) == document("darn darn")
    assert WordList(listed(tmp_path, "darn"), maximum=1).apply(document("darn Darn")) == "more than 1 listed words"
    with pytest.raises(UserError, match="has no words"):
        WordList(listed(tmp_path))
