"""Each source gives the documents it should, in order, and says in one sentence what is wrong with a file."""

import base64
import gzip
import json
import random

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from corpus_harness import CHINESE, ENGLISH, document

from athanor.corpus.documents import write_documents
from athanor.corpus.files import parsed
from athanor.corpus.sources import (
    Documents,
    Html,
    JsonLines,
    Parquet,
    PythonStandardLibrary,
    Text,
    Warc,
    module_name,
)
from athanor.errors import UserError


def write_lines(path, records):
    data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(path.suffix, bytes)
    path.write_bytes(pack(data))
    return str(path)


def texts(source):
    return [d.text for d in source]


# text


def test_text_files(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffone\n", encoding="utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("二\n".encode()))
    source = Text([str(tmp_path / "a.txt"), str(tmp_path / "b.txt.gz")], "notes", language="zh")
    assert list(source) == [
        document("one\n", "notes/a.txt", "notes", "zh"),
        document("二\n", "notes/b.txt.gz", "notes", "zh"),
    ]
    assert source.bytes_read == source.bytes_total > 0


def test_text_in_parts(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n\ntwo\n\n\n\n\n\nthree", encoding="utf-8")
    source = Text(str(tmp_path / "a.txt"), "plays", separator="\n\n\n")
    assert [(d.id, d.text) for d in source] == [
        ("plays/a.txt:0", "one"),
        ("plays/a.txt:1", "two"),
        ("plays/a.txt:3", "three"),
    ]


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "gbk.txt").write_bytes(b"abc\n" + "汉字".encode("gbk"))
    with pytest.raises(UserError, match=r"gbk\.txt is not UTF-8: byte 0xba at byte offset 4;"):
        list(Text(str(tmp_path / "gbk.txt"), "s"))


def test_max_bytes_counts_utf8(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "汉字"}, {"text": "abcdef"}, {"text": "x"}])
    assert texts(JsonLines(path, "s", max_bytes=12)) == ["汉字", "abcdef"]
    assert texts(JsonLines(path, "s", max_bytes=11)) == ["汉字"]


def test_no_files():
    with pytest.raises(UserError, match="source web has no files"):
        Text([], "web")


# records


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_json_lines(tmp_path, suffix):
    records = [{"text": ENGLISH, "id": 7, "url": "u"}, {"text": CHINESE, "id": 8, "url": None}]
    path = write_lines(tmp_path / f"a{suffix}", records)
    assert list(JsonLines(path, "s", id_key="id", meta_keys=["url"])) == [
        document(ENGLISH, "s/7", "s", url="u"),
        document(CHINESE, "s/8", "s", url=None),
    ]
    assert [d.id for d in JsonLines(path, "s")] == [f"s/a{suffix}:1", f"s/a{suffix}:2"]


def test_fields_are_joined(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"title": "静夜思", "text": "床前明月光"}])
    assert texts(JsonLines(path, "s", text_key=["title", "text"])) == ["静夜思\n\n床前明月光"]


def test_records_are_grouped(tmp_path):
    rows = [("b1", "c1", "甲"), ("b1", "c1", "乙"), ("b1", "c2", "丙"), ("b2", "c2", "丁"), ("b1", "c1", "戊")]
    path = write_lines(tmp_path / "a.jsonl", [{"book": b, "chapter": c, "old": t} for b, c, t in rows])
    source = JsonLines(path, "s", text_key="old", group_by=["book", "chapter"])
    assert [(d.id, d.text, d.meta) for d in source] == [
        ("s/b1/c1", "甲\n乙", {"group": "b1/c1"}),
        ("s/b1/c2", "丙", {"group": "b1/c2"}),
        ("s/b2/c2", "丁", {"group": "b2/c2"}),
        ("s/b1/c1", "戊", {"group": "b1/c1"}),
    ]


def test_a_record_without_the_field(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "x"}, {"body": "y", "n": 1}])
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: no field 'text'; it has 'body', 'n'"):
        list(JsonLines(path, "s"))
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: no field 'url'"):
        list(JsonLines(path, "s", meta_keys=["url"]))


def test_a_field_that_is_not_text(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": ["x"]}])
    with pytest.raises(UserError, match="line 1: field 'text' is list, not text"):
        list(JsonLines(path, "s"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{broken", r"a\.jsonl, line 3: not JSON"),
        (b"[1]", r"a\.jsonl, line 3: a JSON list, not an object"),
        (b'{"text": "\xff"}', r"a\.jsonl is not UTF-8: byte 0xff at byte offset 28;"),
    ],
)
def test_a_bad_line(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=message):
        list(JsonLines(str(tmp_path / "a.jsonl"), "s"))


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b\\ud83d\\ude00"}\n')
    assert texts(JsonLines(str(tmp_path / "a.jsonl"), "s")) == ["a\ufffdb😀"]


def test_parquet(tmp_path):
    path = str(tmp_path / "a.parquet")
    rows = 2500
    table = pyarrow.table({"text": [f"文 {n}" for n in range(rows)], "key": range(rows), "other": [None] * rows})
    pyarrow.parquet.write_table(table, path)
    documents = list(Parquet(path, "s", id_key="key"))
    assert len(documents) == rows
    assert documents[2400] == document("文 2400", "s/2400", "s")
    with pytest.raises(UserError, match=r"a\.parquet: no field 'body'; it has 'text', 'key', 'other'"):
        list(Parquet(path, "s", text_key="body"))


def test_parquet_with_an_empty_cell(tmp_path):
    path = str(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x", None]}), path)
    with pytest.raises(UserError, match=r"a\.parquet, row 2: field 'text' is NoneType"):
        list(Parquet(path, "s"))


def test_truncated_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"] * 100}), str(path))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"a\.parquet is not a whole Parquet file"):
        list(Parquet(str(path), "s"))


# pages

PAGE = '<html><head><meta charset="{}"></head><body><p>汉字</p></body></html>'


@pytest.mark.parametrize(("declared", "real"), [("gb2312", "gb18030"), ("big5", "big5hkscs"), ("utf-8", "utf-8")])
def test_html_charsets(tmp_path, declared, real):
    page = PAGE.format(declared)
    (tmp_path / "a.html").write_bytes(page.encode(real))
    (document,) = Html(str(tmp_path / "a.html"), "s")
    assert document.text == page
    assert document.meta == {"format": "html", "charset": real}


def test_html_that_lies_about_its_charset(tmp_path):
    page = PAGE.format("us-ascii").replace("us-ascii", "no-such-charset")
    (tmp_path / "a.html").write_bytes(page.encode("utf-8"))
    (document,) = Html(str(tmp_path / "a.html"), "s")
    assert document.text == page
    (tmp_path / "b.html").write_bytes(PAGE.format("utf-8").encode("gb18030"))
    (document,) = Html(str(tmp_path / "b.html"), "s")
    assert document.meta["charset"] == "gb18030"
    assert "汉字" in document.text


def test_html_in_records(tmp_path):
    page = PAGE.format("gbk")
    records = [{"html": page}, {"html_b64": base64.b64encode(page.encode("gbk")).decode()}]
    documents = list(JsonLines(write_lines(tmp_path / "a.jsonl", records), "s", html_key="html"))
    assert [d.text for d in documents] == [page, page]
    assert [d.meta["format"] for d in documents] == ["html", "html"]
    path = write_lines(tmp_path / "b.jsonl", [{"html_b64": "*"}])
    with pytest.raises(UserError, match="line 1: field 'html_b64' is not base64"):
        list(JsonLines(path, "s", html_key="html"))


# archives


def response(body, kind="text/html; charset=utf-8", status="200 OK", extra=b""):
    http = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n".encode() + extra + b"\r\n" + body
    return record("response", "application/http; msgtype=response", http)


def record(what, kind, content):
    header = (
        f"WARC/1.0\r\nWARC-Type: {what}\r\nWARC-Record-ID: <urn:x:{len(content)}>\r\nWARC-Target-URI: http://x/{what}\r\n"
        f"WARC-Date: 2020-01-01T00:00:00Z\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return header.encode() + content + b"\r\n\r\n"


def chunked(data):
    parts = (data[at : at + 7] for at in range(0, len(data), 7))
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


PAGES = "<p>网页</p>".encode()
RECORDS = [
    record("warcinfo", "application/warc-fields", b"software: test\r\n"),
    response(PAGES),
    record("request", "application/http; msgtype=request", b"GET / HTTP/1.1\r\n\r\n"),
    response(chunked(gzip.compress(PAGES, mtime=0)), extra=b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"),
    response("<p>国</p>".encode("gbk"), kind="text/html; charset=gb2312"),
    response(b"plain", kind="text/plain"),
    response(b"\x89PNG", kind="image/png"),
    response(b"gone", status="404 Not Found"),
    record("conversion", "text/plain", "提取的文本".encode()),
]


@pytest.mark.parametrize("form", ["a.warc", "whole.warc.gz", "records.warc.gz", "a.warc.zst"])
def test_warc(tmp_path, form):
    if form == "records.warc.gz":
        data = b"".join(map(gzip.compress, RECORDS))
    else:
        pack = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}.get(form.split(".")[-1], bytes)
        data = pack(b"".join(RECORDS))
    (tmp_path / form).write_bytes(data)
    source = Warc(str(tmp_path / form), "web")
    documents = list(source)
    assert [d.text for d in documents] == ["<p>网页</p>", "<p>网页</p>", "<p>国</p>", "plain", "提取的文本"]
    assert [d.meta.get("format") for d in documents] == ["html", "html", "html", None, None]
    assert documents[0].meta["url"] == "http://x/response"
    assert source.skipped == {"image/png": 1, "HTTP status 404": 1}


@pytest.mark.parametrize("form", ["plain", "gzip", "inside"])
def test_truncated_warc(tmp_path, form):
    noise = random.Random(0).randbytes(5000)
    records = [*RECORDS, response(noise)]
    data = b"".join(records) if form == "plain" else b"".join(map(gzip.compress, records))
    data = data[: -len(noise) - 200] if form == "inside" else data[:-100]
    path = tmp_path / ("a.warc" if form == "plain" else "a.warc.gz")
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"{path.name} is truncated or corrupted"):
        list(Warc(str(path), "web"))


def test_not_a_warc(tmp_path):
    (tmp_path / "a.warc").write_bytes(b"filedesc://old.arc 0.0.0.0 20080430204825 text/plain 1300\n2 0 Alexa\n")
    with pytest.raises(UserError, match=r"a\.warc is not a sound WARC file .*; ARC files are not read"):
        list(Warc(str(tmp_path / "a.warc"), "web"))


def test_real_archives(shared):
    source = Warc(str(shared / "warc_aut/example.warc.gz"), "web")
    documents = list(source)
    assert len(documents) + sum(source.skipped.values()) == 299, "every response of the archive"
    assert not [d.id for d in documents if "\ufffd" in d.text]
    (wet,) = Warc(str(shared / "warc_commoncrawl/whirlwind.warc.wet.gz"), "web")
    assert "Escher" in wet.text or len(wet.text) > 500


# another run


def test_documents_of_a_run(tmp_path, job):
    directory = tmp_path / "earlier"
    directory.mkdir()
    given = [document("one", "a/1", "a", "en", url="u"), document("二", "b/1", "b", "zh")]
    write_documents(directory / "documents.jsonl.zst", given)
    source = Documents(str(directory), "tasks")
    assert list(source) == [d._replace(source="tasks") for d in given]
    assert source.bytes_read == source.bytes_total > 0


# Python's library

MODULE = '''"""The module\'s own words."""

class Box:
    """Holds things."""

    async def put(self, thing, *, at: int = 0) -> None:
        """Put it in."""

        def inner():
            """Not for readers."""

if True:
    def choose(a, /, *b, **c):
        """
        Choose one.

            indented
        """

def bare(): pass
'''


@pytest.fixture
def library(tmp_path):
    root = tmp_path / "lib"
    (root / "package").mkdir(parents=True)
    (root / "package/__init__.py").write_text('"""A package."""\n')
    (root / "package/part.py").write_text(MODULE)
    (root / "old.py").write_bytes('# coding: latin-1\n"""Déjà vu."""\n'.encode("latin-1"))
    (root / "python2.py").write_text('"""Of yore."""\nprint "hello"\n')
    (root / "lies.py").write_bytes(b'"""\xff"""\n')
    (root / "silent.py").write_text("x = 1\n")
    return sorted(str(path) for path in root.rglob("*.py"))


def test_standard_library(library):
    source = PythonStandardLibrary(library, "python")
    documents = {d.id: d for d in source}
    assert documents["python/package.part/docstrings"].text == (
        "module package.part\n\nThe module's own words.\n\n"
        "class package.part.Box\n\nHolds things.\n\n"
        "function package.part.Box.put(self, thing, *, at: int=0)\n\nPut it in.\n\n"
        "function package.part.choose(a, /, *b, **c)\n\nChoose one.\n\n    indented"
    )
    assert documents["python/package.part/source"].text == MODULE
    assert documents["python/old/docstrings"].text == "module old\n\nDéjà vu."
    assert {i for i in documents if i.endswith("docstrings")} == {
        f"python/{module}/docstrings" for module in ("package", "package.part", "old")
    }
    assert {i for i in documents if i.endswith("source")} == {
        f"python/{module}/source" for module in ("package", "package.part", "old", "silent")
    }
    assert all(d.meta["group"] == d.id.split("/")[1] for d in documents.values())
    assert {d.language for d in documents.values()} == {"en"}
    assert source.skipped == {"does not parse": 2}
    assert 0 < source.bytes_read <= source.bytes_total


def test_standard_library_order_does_not_depend_on_the_files_order(library):
    forward = list(PythonStandardLibrary(library, "python"))
    backward = list(PythonStandardLibrary(library[::-1], "python"))
    assert forward == backward
    kinds = [d.id.rpartition("/")[2] for d in forward]
    assert kinds == sorted(kinds), "all documentation before all source text"


def test_standard_library_parts(library):
    assert {d.id.rpartition("/")[2] for d in PythonStandardLibrary(library, "p", include=["source"])} == {"source"}
    few = list(PythonStandardLibrary(library, "p", max_bytes=300))
    assert 0 < sum(len(d.text.encode()) for d in few) <= 300
    with pytest.raises(UserError, match="include has doctests"):
        PythonStandardLibrary(library, "p", include=["doctests"])


def test_module_names(library):
    assert sorted(map(module_name, library)) == [
        "lies", "old", "package", "package.part", "python2", "silent",
    ]  # fmt: skip


def test_this_python(shared):
    import sysconfig
    from pathlib import Path

    root = Path(sysconfig.get_paths()["stdlib"])
    files = [str(path) for path in sorted((root / "json").glob("*.py"))]
    documents = {d.id: d.text for d in PythonStandardLibrary(files, "python")}
    assert "function json.dumps(obj, *, skipkeys=False" in documents["python/json/docstrings"]
    assert "Serialize ``obj`` to a JSON formatted ``str``." in documents["python/json/docstrings"]
    assert documents["python/json.decoder/source"] == (root / "json/decoder.py").read_text()


def test_a_data_set_of_hugging_face_from_a_folder(tmp_path):
    pytest.importorskip("datasets")
    from athanor.corpus.sources import HuggingFace

    rows = [{"text": f"第{n}行", "kind": "a" if n < 2 else "b"} for n in range(5)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "train.jsonl").write_text(lines, "utf-8")
    (tmp_path / "test.jsonl").write_text(lines.splitlines(keepends=True)[0], "utf-8")
    found = list(HuggingFace(str(tmp_path), "hub", language="zh", meta_keys=["kind"]))
    assert [d.text for d in found] == [row["text"] for row in rows]
    assert found[2].meta == {"kind": "b"}
    assert (found[2].id, found[2].source, found[2].language) == (f"hub/{tmp_path.name}:3", "hub", "zh")
    assert len(list(HuggingFace(str(tmp_path), "hub", split="test"))) == 1
    grouped = list(HuggingFace(str(tmp_path), "hub", group_by=["kind"]))
    assert [d.text for d in grouped] == ["第0行\n第1行", "第2行\n第3行\n第4行"]
    with pytest.raises(UserError, match="cannot be read"):
        list(HuggingFace(str(tmp_path), "hub", split="none"))
    with pytest.raises(UserError, match="no field 'body'"):
        list(HuggingFace(str(tmp_path), "hub", text_key="body"))


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "a", "id": 123456789012345678901234567890}',  # of more than 64 bits: orjson's would be a float
        '{"text": "a", "id": {"n": [99999999999999999999]}}',
        '{"text": "a", "id": NaN}',
        '\ufeff{"text": "a", "id": 1}',
        '{"text": "a", "id": 1.10, "id": -0.0}',
        '{"text": "中文 \\ud83d\\ude00", "id": null}',
    ],
)
def test_a_line_is_read_as_the_standard_library_does(line):
    assert repr(parsed(line.encode(), "a.jsonl")) == repr(json.loads(line.removeprefix("\ufeff")))
