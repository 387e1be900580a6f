"""The article without what surrounds it."""

import gzip
import json
import re
from collections import Counter

import pytest
from corpus_harness import CHINESE, ENGLISH, document

from athanor.corpus.article import without_scripts
from athanor.corpus.extract import ExtractHtml, decode_html
from athanor.errors import UserError

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
    assert result.meta == {"url": "u", "title": "Fox"}
    assert step.counts == {"article": 1}


def test_text_that_is_not_markup_passes():
    plain = document("a < b and <p> is a tag")
    assert list(ExtractHtml()([plain])) == [plain]


@pytest.mark.parametrize("method", ["trafilatura", "trafilatura fast", "resiliparse"])
def test_other_methods_find_it_too(method):
    (result,) = ExtractHtml(method)([document(PAGE.format(title="The fox", text=ENGLISH), format="html")])
    assert ENGLISH in result.text
    assert "alert" not in result.text


def test_all_text_takes_all():
    (result,) = ExtractHtml("all text")([document(PAGE.format(title="The fox", text=ENGLISH), format="html")])
    assert "Buy now" in result.text
    assert "alert" not in result.text


def test_methods_that_do_not_exist_or_do_not_know_comments():
    with pytest.raises(UserError, match="method 'best' must be one of density, trafilatura"):
        ExtractHtml("best")
    with pytest.raises(UserError, match="density knows no comments"):
        ExtractHtml(comments=True)


def test_the_body_in_parts_and_the_articles_below_it():
    """A page of one article in two parts, then a teaser of another: both parts, not the other."""
    part = "<div class='ad-slot'>Buy</div><div class='wrap'><div class='article-body'><p>{}</p></div></div>"
    other = "<article><h2>Another</h2><div class='article-body'><p>{}</p></div></article>"
    parts = [ENGLISH.replace("fox", word) for word in ("wolf", "bear", "hare")]
    page = f"<div><section>{part.format(parts[0])}{part.format(parts[1])}</section>"
    page += "".join(other.format(text) for text in parts[2:3]) + "</div>"
    text = ExtractHtml().apply(document(f"<html><body>{page}</body></html>", format="html")).text
    assert text == f"{parts[0]}\n{parts[1]}"


def test_a_body_that_is_shared_from():
    """Sina's pages name the body artibody, and by the tool that shares it."""
    lists = "".join(f"<div><h3><a>{CHINESE}</a></h3><p>今天 12:0{n}，共{n}条。</p></div>" for n in range(5))
    page = f"<body><div class='BSHARE_POP' id='artibody'><p>{CHINESE}{CHINESE}</p></div><div>{lists}</div></body>"
    assert ExtractHtml().apply(document(page, format="html")).text == CHINESE + CHINESE


CREDITS = """
（原标题：狐狸跳过了狗）
【编辑：姚昊】
责任编辑：霍琦
编辑 刘晓阳 校对 李铭
（资料来源：参考消息、海外网等）
图片均来自网络
特别声明：以上内容为用户上传并发布，本平台仅提供信息存储服务。
更多猛料！欢迎扫描左方二维码关注官方微信
推荐阅读
未经授权不得转载。
京ICP证140141号 京公网安备 11000002002023号
版权所有：地理学会
""".strip().splitlines()
SUBJECTS = """
他的责任是编辑报纸，来源是一个谜。
二维码是一种条码，人们用手机扫描它。
未经授权的人走进了房间。
来源于自然的颜色，画家最喜欢。
这本书的作者：他一生写了三十部小说。
推荐阅读这本书的人很多。
""".strip().splitlines()


def test_lines_of_chinese_pages_that_speak_of_the_page():
    body = "".join(f"<p>{text}</p>" for text in (CREDITS[0], CHINESE, *SUBJECTS, CHINESE[::-1], *CREDITS[1:]))
    live = f"<div class='article-content-right'><ul><li>{CHINESE}网友提问</li></ul></div>"
    page = f"<body><div class='article-content'><div class='left'>{body}</div>{live}</div></body>"
    (result,) = ExtractHtml()([document(page, format="html")])
    assert result.text.split("\n") == [CHINESE, *SUBJECTS, CHINESE[::-1]]
    (kept,) = ExtractHtml()([document(page.replace("article-content-right", "main-right"), format="html")])
    assert "网友提问" in kept.text, "a name that is as good for the article itself"


def test_a_name_of_surroundings_on_most_of_the_page_is_ignored():
    page = (
        f"<div class='with-sidebar'><p>{ENGLISH}</p><div class='sidebar'><p>Read this next. It is fun.</p></div></div>"
    )
    assert ExtractHtml().apply(document(page, format="html")).text == ENGLISH


def test_headings_lists_tables_and_code_of_an_article():
    page = (
        f"<article><h2>One</h2><p>{ENGLISH}</p><h2>Nothing below</h2><h2>Two</h2><ul><li>first<li>second</ul>"
        f"<table><tr><th>a</th><td>1</td></tr></table><pre>if x:\n    y</pre><p>{CHINESE}<br><br>{CHINESE}</article>"
    )
    lines = ["One", ENGLISH, "Nothing below", "Two", "first", "second", "a 1", "if x:", "    y", CHINESE, CHINESE]
    assert ExtractHtml().apply(document(page, format="html")).text.split("\n") == lines
    without = [line for line in lines if line != "a 1"]
    assert ExtractHtml(tables=False).apply(document(page, format="html")).text.split("\n") == without


def test_scripts_and_comments_are_cut_as_a_browser_sees_them():
    """A script named in a comment hides nothing, one without an end is left to the parser, linked data stays."""
    assert without_scripts("a<script>x</script >b<STYLE x='y'>p</STYLE>c<!-- <script> -->d</script>") == "abcd</script>"
    assert without_scripts("<script type='application/ld+json'>{}</script><script>'<!--'</script>x<!-- y") == (
        "<script type='application/ld+json'>{}</script>x<!-- y"
    )
    assert without_scripts("a<scripted>b</script>") == "a<scripted>b</script>"
    assert (
        without_scripts("a<svg viewBox='0'><path d='M1'/></svg>b<svg/>c<p>d</p><SVG>e</SVG>f") == "ab<svg/>c<p>d</p>f"
    )
    nested = "a<svg><g><svg>x</svg></g><text>y</text></svg>b<svg>never closed"
    assert without_scripts(nested) == nested.replace("<svg>x</svg>", "")  # the parser takes the outer one out
    assert without_scripts("a<script>b</script") == "a"


def test_strange_markup():
    """Null bytes, half characters, a page hundreds of elements deep, no element at all."""
    step = ExtractHtml()
    assert step.apply(document(f"<p>\0{ENGLISH}\ud800", format="html")).text.startswith(ENGLISH)
    assert "deep" in step.apply(document("<div>" * 5000 + "deep" + "</div>" * 5000, format="html")).text
    assert step.apply(document("<!-- -->", format="html")) == "no text in the page"


HEAD = """<html lang="zh-CN"><head><title>Fox | News</title><link rel="canonical" href="https://a.cn/fox">
<meta property="og:title" content="Fox"><script type="application/ld+json">{"datePublished": "2019-11-20T10:00:00Z"}
</script></head><body><p>x</p></body></html>"""


def test_metadata():
    def said(page, **meta):
        return ExtractHtml().apply(document(page, format="html", **meta)).meta

    everything = {"title": "Fox", "date": "2019-11-20", "page_language": "zh", "url": "https://a.cn/fox"}
    assert said(HEAD) == everything
    assert said(HEAD, url="http://b.cn/2020/01/02/x", date="2001") == everything | {
        "url": "http://b.cn/2020/01/02/x",
        "date": "2001",
    }
    plain = "<title> A\n b </title><p>x</p>"
    assert said(plain) == {"title": "A b"}
    assert said(plain, url="http://b.cn/2020/01/02/x")["date"] == "2020-01-02"
    assert said("<meta name=pubdate content='2019年3月7日 08:00'>" + plain)["date"] == "2019-03-07"
    assert "date" not in said("<meta name=date content='2019-13-45'>" + plain)
    assert ExtractHtml(metadata=False).apply(document(HEAD, format="html")).meta == {}


def test_fallback_is_counted():
    page = document("<html><body><a href='x'>just this</a></body></html>", format="html")
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


def test_human_truth(shared):
    """4-gram F1 against what people marked as the article, as the benchmark it comes from counts; all text has 0.65."""
    rows = []
    step = ExtractHtml()
    with gzip.open(shared / "html_article_extraction/pages.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            found = step.apply(document(record["html"], format="html"))
            ours, truth = (
                Counter(zip(*(re.findall(r"\w+", text)[n:] for n in range(4))))
                for text in (found.text, record["article_body"])
            )
            common = (ours & truth).total()
            rows.append((common / max(1, ours.total()), common / max(1, truth.total())))
    precision, recall = (sum(column) / len(rows) for column in zip(*rows))
    assert len(rows) == 181
    assert 2 * precision * recall / (precision + recall) >= 0.95
