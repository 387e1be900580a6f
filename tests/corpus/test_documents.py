"""Files of documents: exact, deterministic, whole or absent, and clear about damage."""

import gzip
import subprocess
import sys

import pytest
import zstandard

from athanor.corpus.documents import Document, read_documents, write_documents
from athanor.corpus.files import Input, decode, whole
from athanor.errors import UserError

DOCUMENTS = [
    Document("a/1", "one\n\ttwo \u2028 \x00 end", "a", "en", {"url": "http://x/?a=1", "n": 3}),
    Document("b/1", "中文，“引号”\u3000𠀀😀", "b", "zh", {}),
    Document("b/2", "", "b"),
]


def test_round_trip(tmp_path):
    path = tmp_path / "documents.jsonl.zst"
    assert write_documents(path, DOCUMENTS) == 3
    assert list(read_documents(path)) == DOCUMENTS


def test_equal_documents_give_equal_bytes_in_any_process(tmp_path):
    script = "import sys; from test_documents import *; write_documents(sys.argv[1], DOCUMENTS)"
    contents = set()
    for seed in ("1", "2"):
        path = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", script, str(path)],
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        )
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_nothing_is_left_of_a_failed_write(tmp_path):
    def failing():
        yield DOCUMENTS[0]
        raise RuntimeError("stop")

    path = tmp_path / "documents.jsonl.zst"
    with pytest.raises(RuntimeError, match="stop"):
        write_documents(path, failing())
    assert list(tmp_path.iterdir()) == []
    write_documents(path, DOCUMENTS[:1])
    with pytest.raises(RuntimeError, match="stop"):
        write_documents(path, failing())
    assert list(read_documents(path)) == DOCUMENTS[:1], "the old file is untouched"


def test_whole_moves_only_on_success(tmp_path):
    with whole(tmp_path / "x") as path:
        path.write_text("new")
        assert not (tmp_path / "x").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "documents.jsonl.zst"
    write_documents(path, [document._replace(text=document.text * 999) for document in DOCUMENTS] * 9)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UserError, match=r"documents\.jsonl\.zst is truncated or corrupted"):
        list(read_documents(path))


def test_a_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "documents.jsonl.zst"
    write_documents(path, DOCUMENTS * 9)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"documents\.jsonl\.zst"):
        list(read_documents(path))


def test_zstd_frames_one_after_another(tmp_path):
    compress = zstandard.ZstdCompressor().compress
    (tmp_path / "x.zst").write_bytes(compress(b"a\n" * 300_000) + compress(b"") + compress(b"b\n"))
    with Input(tmp_path / "x.zst") as file:
        lines = list(file.lines())
    assert lines[0] == (1, 0, b"a\n")
    assert lines[-1] == (300_001, 600_000, b"b\n")
    assert len(lines) == 300_001


@pytest.mark.parametrize("name", ["x.txt", "x.gz", "x.zst"])
def test_bytes_through_each_compression(tmp_path, name):
    content = "第一行\nsecond\n".encode() * 1000
    pack = {"x.gz": gzip.compress, "x.zst": zstandard.ZstdCompressor().compress}.get(name, bytes)
    (tmp_path / name).write_bytes(pack(content))
    with Input(tmp_path / name) as file:
        assert file.read() == content
        assert file.position == (tmp_path / name).stat().st_size


@pytest.mark.parametrize("name", ["x.gz", "x.zst"])
def test_not_compressed_at_all(tmp_path, name):
    (tmp_path / name).write_bytes(b"plain text\n")
    with Input(tmp_path / name) as file, pytest.raises(UserError, match=rf"{name} is truncated or corrupted"):
        file.read()


def test_truncated_gzip(tmp_path):
    data = gzip.compress(bytes(range(256)) * 99)
    (tmp_path / "x.gz").write_bytes(data[:-9])
    with Input(tmp_path / "x.gz") as file, pytest.raises(UserError, match=r"x\.gz is truncated or corrupted"):
        list(file.lines())


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.gz does not exist"):
        Input(tmp_path / "nothing.gz")
    with pytest.raises(UserError, match="is a directory"):
        Input(tmp_path)


def test_not_utf8_is_told_with_its_place():
    with pytest.raises(UserError, match=r"f\.txt is not UTF-8: byte 0xd6 at byte offset 102;"):
        decode(b"ok" + "中".encode("gbk"), "f.txt", offset=100)
    assert decode("\ufeff中".encode(), "f.txt") == "中"


def test_a_line_that_is_no_document(tmp_path):
    path = tmp_path / "documents.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(b'{"id":"a"}\n'))
    with pytest.raises(UserError, match=r"documents\.jsonl\.zst, line 1: not a document"):
        list(read_documents(path))
