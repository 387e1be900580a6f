"""What goes wrong with files is said in a sentence that names the file, and nothing is left half-written."""

import gzip
import json
import os
import shutil
import subprocess
import sys

import pytest
from corpus_harness import CHINESE, ENGLISH, Context, document

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
