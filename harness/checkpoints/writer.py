"""Writes a checkpoint in place: its files exist at their full size from the start, and pieces go where they belong."""

import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from harness.checkpoints.layout import INDEX_NAME, SINGLE_NAME, TensorInfo
from harness.checkpoints.safetensors_file import DTYPES
from harness.errors import GraftbenchError
from harness.files import readable_size

_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_HEADER_ALIGNMENT = 8


@dataclass(frozen=True)
class ShardPlan:
    """One output file: its name, its header, and where each tensor's bytes begin."""

    name: str
    header: bytes
    begins: Mapping[str, int]
    bytes: int
    """Size of the whole file."""


def plan_shards(tensors: Sequence[TensorInfo], dtype: torch.dtype | None, shard_bytes: int) -> list[ShardPlan]:
    """Lay tensors out in files, in their order, before any of them is there.

    Args:
        tensors: what will be written.
        dtype: data type to write weights in; None keeps each tensor's own. Integers keep theirs.
        shard_bytes: size that a file's tensors do not exceed, unless a single one does.
    """
    written = [_written(info, dtype) for info in tensors]
    groups: list[list[TensorInfo]] = [[]]
    filled = 0
    for info in written:
        size = info.entries * info.dtype.itemsize
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(info)
        filled += size
    return [_lay_out(_file_name(i, len(groups)), group) for i, group in enumerate(groups)]


class CheckpointWriter:
    """Takes pieces of tensors in any order. Nothing but the piece at hand is in memory."""

    def __init__(self, folder: Path, shards: Sequence[ShardPlan]) -> None:
        """Make the files at their full size, or open those that an interrupted merge has left.

        Raises:
            GraftbenchError: the disk has no room for them.
        """
        self._folder = folder
        self._shards = shards
        self._begins = {name: (shard.name, begin) for shard in shards for name, begin in shard.begins.items()}
        self._descriptors: dict[str, int] = {}
        for shard in shards:
            self._descriptors[shard.name] = self._open(shard)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def write(self, name: str, start: int, piece: Tensor) -> None:
        """Write a piece, already of the output's data type, at the flat index `start` of a tensor."""
        shard, begin = self._begins[name]
        data = piece.contiguous().view(-1).view(torch.uint8).numpy().data
        position = begin + start * piece.element_size()
        while data:
            done = os.pwrite(self._descriptors[shard], data, position)
            data, position = data[done:], position + done

    def read(self, name: str, start: int, entries: int, dtype: torch.dtype) -> Tensor:
        """What has been written there, to check what an interrupted merge has left."""
        shard, begin = self._begins[name]
        data = os.pread(self._descriptors[shard], entries * dtype.itemsize, begin + start * dtype.itemsize)
        return torch.frombuffer(bytearray(data), dtype=dtype)

    def finish(self) -> None:
        """Put everything onto the disk, and write the index if there are several files."""
        for descriptor in self._descriptors.values():
            os.fsync(descriptor)
        if len(self._shards) > 1:
            sizes = sum(shard.bytes - len(shard.header) for shard in self._shards)
            weight_map = dict(sorted((name, shard) for name, (shard, _) in self._begins.items()))
            index = {"metadata": {"total_size": sizes}, "weight_map": weight_map}
            (self._folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _open(self, shard: ShardPlan) -> int:
        descriptor = os.open(self._folder / shard.name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _reserve(descriptor, shard.bytes)
        except OSError as error:
            os.close(descriptor)
            raise GraftbenchError(
                f"{self._folder / shard.name} needs {readable_size(shard.bytes)} and cannot get them "
                f"({error.strerror}); free some space or choose another folder"
            ) from error
        os.pwrite(descriptor, shard.header, 0)
        return descriptor


def _reserve(descriptor: int, size: int) -> None:
    """Give a file its size and its blocks, so that a full disk shows before the work and not in the middle of it."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.ftruncate(descriptor, size)


def _written(info: TensorInfo, dtype: torch.dtype | None) -> TensorInfo:
    kept = dtype is None or not info.dtype.is_floating_point
    return info if kept else TensorInfo(info.name, info.shape, dtype or info.dtype, info.file)


def _lay_out(name: str, tensors: Sequence[TensorInfo]) -> ShardPlan:
    """Wide data types first, so that every tensor is aligned to its own width."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins, position = {}, 0
    for info in sorted(tensors, key=lambda info: -info.dtype.itemsize):
        begins[info.name] = position
        position += info.entries * info.dtype.itemsize
        header[info.name] = {
            "dtype": _NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [begins[info.name], position],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    prefix = len(text).to_bytes(8, "little") + text
    return ShardPlan(name, prefix, {key: len(prefix) + begin for key, begin in begins.items()}, len(prefix) + position)


def _file_name(index: int, count: int) -> str:
    return SINGLE_NAME if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"
