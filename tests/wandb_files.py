"""Reads a `.wandb` file: protobuf records in LevelDB's log format, behind a header of seven bytes."""

from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK, _HEADER = 32768, 7
_FULL, _FIRST, _LAST = 1, 2, 4


def read_records(path: Path) -> Iterator[Record]:
    """The records of one run's file, in order."""
    for data in _messages(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        yield record


def _messages(content: bytes) -> Iterator[bytes]:
    place, parts = _HEADER, b""
    while place + _HEADER <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        kind = content[place + 6]
        part = content[place + _HEADER : place + _HEADER + length]
        place += _HEADER + length
        parts = part if kind in (_FULL, _FIRST) else parts + part
        if kind in (_FULL, _LAST):
            yield parts
