"""What goes wrong with files is said in a sentence that names the file, and nothing is left half-written."""

import gzip
import itertools
import json
import os
import shutil
import subprocess
import sys
import tracemalloc

import pytest
from corpus_harness import CHINESE, ENGLISH, Context, document

from athanor.corpus import sources
from athanor.corpus.documents import read_documents, write_documents
from athanor.corpus.normalize import Normalize
from athanor.corpus.prepare import PrepareDocuments
from athanor.corpus.sources import Html, JsonLines, Text, Warc
from athanor.errors import UserError


def test_circular_symlink(tmp_path):
    loop = tmp_path / "a.txt"
    loop.symlink_to(tmp_path / "b.txt")
    (tmp_path / "b.txt").symlink_to(loop)
    with pytest.raises(UserError, match=r"a\.txt is a symbolic link that leads back to itself"):
        list(Text(str(loop), "a"))


def test_truncated_gzip_at_any_place(tmp_path):
    whole = gzip.compress("".join(json.dumps({"text": f"{n} {ENGLISH}"}) + "\n" for n in range(200)).encode())
    for length in (5, 200, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.jsonl.gz").write_bytes(whole[:length])
        context = Context(tmp_path / "run")
        with pytest.raises(UserError, match=r"a\.jsonl\.gz is truncated or corrupted"):
            PrepareDocuments([JsonLines(str(tmp_path / "a.jsonl.gz"), "a")], []).run(context)
        assert list(context.directory.iterdir()) == []


def test_null_bytes_are_removed_and_said(tmp_path, context):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": f"\0{ENGLISH}\0"}) + "\n")
    step = Normalize()
    PrepareDocuments([JsonLines(str(tmp_path / "a.jsonl"), "a")], [step]).run(context)
    assert next(read_documents(context.directory / "documents.jsonl.zst")).text == ENGLISH
    assert step.counts == {"changed": 1}
    (tmp_path / "b.jsonl").write_bytes(b"\0\0\0\n")
    with pytest.raises(UserError, match=r"b\.jsonl, line 1: not JSON"):
        list(JsonLines(str(tmp_path / "b.jsonl"), "b"))


@pytest.mark.parametrize("charset", ["gb18030", "big5", "utf-8"])
@pytest.mark.parametrize("declared", ["utf-8", "nonsense", None])
def test_wrong_charset_declared(tmp_path, charset, declared):
    """A page that cannot be what it says is read as what it is."""
    text = CHINESE if charset != "big5" else "從前見過這樣的事情，並不放在心上；敏捷的棕色狐狸跳過了那隻懶洋洋的狗。"
    meta = f"<meta charset='{declared}'>" if declared else ""
    (tmp_path / "a.html").write_bytes(f"<html>{meta}<p>{text}</p></html>".encode(charset))
    assert text in next(iter(Html(str(tmp_path / "a.html"), "a"))).text


def test_a_long_line_takes_memory_but_no_long_time(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 20_000_000}) + "\n")
    assert len(next(iter(JsonLines(str(tmp_path / "a.jsonl"), "a"))).text) == 20_000_000


def test_a_line_beyond_all_bounds_is_never_held(tmp_path, monkeypatch):
    """Read past, counted and said, in memory that does not grow with it; the lines around it are read."""
    monkeypatch.setattr(sources, "LONGEST", 1000)
    with open(tmp_path / "a.jsonl", "w") as file:
        file.write('{"text": "one"}\n{"text": "')
        for _ in range(30):
            file.write("x" * 1_000_000)
        file.write('"}\n{"text": "two"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: longer than 0 MiB; part it, or set broken: skip"):
        list(JsonLines(str(tmp_path / "a.jsonl"), "a"))
    source = JsonLines(str(tmp_path / "a.jsonl"), "a", broken="skip")
    tracemalloc.start()
    try:
        assert [(d.id, d.text) for d in source] == [("a/a.jsonl:1", "one"), ("a/a.jsonl:3", "two")]
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert source.skipped == {"line that is no record": 1}


def test_what_is_broken_is_skipped_and_counted_and_nothing_else(tmp_path, context):
    """Bad lines, a file cut off in the middle and one that is no gzip: every good record of all files is there."""
    whole = gzip.compress(
        "".join(json.dumps({"text": f"{n} {os.urandom(50).hex()}"}) + "\n" for n in range(200)).encode()
    )
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no.jsonl.gz").write_bytes(b"plain text")
    lines = [
        '{"text": "one"}',
        "{",
        '{"txt": "no"}',
        "[]",
        "\0\0",
        '{"text": 5}',
        '{"text": "two"}',
        '{"text": "\xff"}',
    ]
    (tmp_path / "bad.jsonl").write_bytes("\n".join(lines).encode("latin-1"))
    files = [str(tmp_path / name) for name in ("cut.jsonl.gz", "no.jsonl.gz", "bad.jsonl", "missing.jsonl")]
    source = JsonLines(files, "a", broken="skip")
    PrepareDocuments([source], []).run(context)
    found = [d.text for d in read_documents(context.directory / "documents.jsonl.zst")]
    assert found[-2:] == ["one", "two"]
    cut = found[:-2]
    assert 50 < len(cut) < 150
    assert [text.split()[0] for text in cut] == [str(n) for n in range(len(cut))]
    assert source.skipped == {
        "rest of a file": 3,
        "line that is no record": 4,
        "line without what it should have": 2,
    }
    account = json.loads((context.directory / "cleaning.json").read_text())["sources"]["a"]
    assert "cut.jsonl.gz is truncated or corrupted" in account["faults"]["rest of a file"]
    with pytest.raises(UserError, match="broken 'ignore' must be stop or skip"):
        JsonLines(files, "a", broken="ignore")


def test_records_of_a_web_archive_before_the_broken_one_are_kept(tmp_path, shared):
    data = (shared / "warc_aut/example.warc.gz").read_bytes()
    (tmp_path / "a.warc.gz").write_bytes(data[: len(data) // 3])
    source = Warc(str(tmp_path / "a.warc.gz"), "a", broken="skip")
    whole = Warc(str(shared / "warc_aut/example.warc.gz"), "a")
    kept = list(source)
    assert len(kept) > 20
    assert kept == list(itertools.islice(whole, len(kept)))
    assert source.skipped["rest of a file"] == 1


def test_addresses_of_remote_files(tmp_path):
    """Read, compressed or not, as local ones are; what is wrong with them is said in the same way."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/a.jsonl.gz", gzip.compress(json.dumps({"text": CHINESE}).encode()))
    memory.pipe("/corpus/b.txt", ENGLISH.encode())
    try:
        source = JsonLines("memory://corpus/a.jsonl.gz", "a")
        assert source.bytes_total == memory.size("/corpus/a.jsonl.gz")
        assert [(d.id, d.text) for d in source] == [("a/a.jsonl.gz:1", CHINESE)]
        assert source.bytes_read == source.bytes_total
        assert [d.text for d in Text("memory://corpus/b.txt", "b")] == [ENGLISH]
        with pytest.raises(UserError, match=r"memory://corpus/c\.txt does not exist"):
            list(Text("memory://corpus/c.txt", "c"))
        with pytest.raises(UserError, match="nonsense://x cannot be read"):
            list(Text("nonsense://x", "x"))
    finally:
        memory.rm("/corpus", recursive=True)


def test_a_broken_record_of_a_web_archive(tmp_path, shared):
    data = gzip.decompress((shared / "warc_commoncrawl/whirlwind.warc.gz").read_bytes())
    (tmp_path / "a.warc").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UserError, match=r"a\.warc"):
        list(Warc(str(tmp_path / "a.warc"), "a"))


def test_disk_full(tmp_path):
    """On a file system of 64 KiB, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if (
        sys.platform != "linux"
        or not mount
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("needs the right to mount a small file system")
    try:
        noise = (document(os.urandom(3000).hex()) for _ in range(100))
        with pytest.raises(UserError, match=r"the disk is full: .*documents\.jsonl\.zst could not be written"):
            write_documents(disk / "documents.jsonl.zst", noise)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
