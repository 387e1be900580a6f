"""What W&B has written into the file of an offline run."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

FRAME, BLOCK = struct.Struct("<IHB"), 32768
WHOLE, LAST = 1, 4


def stored(file: Path) -> list[Any]:
    """The records of a .wandb file: W&B's own protocol buffers in the frames of a LevelDB log, blocks of 32 KiB of
    (crc32, length, part of a record), after a head of 7 bytes.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, data, records = file.read_bytes(), 7, b"", []
    assert content[:4] == b":W&B"
    while at < len(content):
        if (rest := -at % BLOCK) and rest < FRAME.size:
            at += rest  # no frame begins so near the end of a block
            continue
        crc, length, part = FRAME.unpack_from(content, at)
        at += FRAME.size
        piece = content[at : at + length]
        assert zlib.crc32(piece, zlib.crc32(bytes([part]))) == crc
        data, at = data + piece, at + length
        if part in (WHOLE, LAST):
            records.append(Record.FromString(data))
            data = b""
    return records


def items(entries: Any) -> dict[str, Any]:
    """key -> value of a history, config or summary."""
    return {entry.key or "/".join(entry.nested_key): json.loads(entry.value_json) for entry in entries}
