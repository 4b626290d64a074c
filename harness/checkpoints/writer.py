"""Writes a checkpoint shard by shard, as its tensors arrive."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.checkpoints.layout import INDEX_NAME, SINGLE_NAME, TensorInfo
from harness.errors import GraftbenchError

_METADATA = {"format": "pt"}


class CheckpointWriter:
    """Takes tensors in the planned order and writes each shard when its last tensor has come.

    At most one shard is in memory. The names of the files are known beforehand, since shapes and data type are.
    """

    def __init__(
        self, folder: Path, tensors: Sequence[TensorInfo], dtype: torch.dtype | None, shard_bytes: int
    ) -> None:
        """Plan the shards.

        Args:
            folder: an existing folder.
            tensors: what will be written, in this order.
            dtype: the data type to write; None keeps each tensor's own.
            shard_bytes: size that a shard does not exceed, unless a single tensor does.
        """
        self._folder = folder
        self._dtypes = {info.name: dtype or info.dtype for info in tensors}
        sizes = {info.name: info.entries * self._dtypes[info.name].itemsize for info in tensors}
        self._total_bytes = sum(sizes.values())
        shards = _cut(sizes, shard_bytes)
        self._file_of = {name: _file_name(i, len(shards)) for i, shard in enumerate(shards) for name in shard}
        self._awaited = {_file_name(i, len(shards)): set(shard) for i, shard in enumerate(shards)}
        self._pending: dict[str, dict[str, Tensor]] = {file: {} for file in self._awaited}

    def add(self, name: str, tensor: Tensor) -> Tensor:
        """Take a tensor, cast once to its output data type; returns what will be on disk.

        Raises:
            GraftbenchError: the cast overflows.
        """
        written = tensor.to(device="cpu", dtype=self._dtypes[name]).contiguous()
        if not torch.isfinite(written).all():
            raise GraftbenchError(
                f"merged tensor '{name}' does not fit into {written.dtype}; choose dtype=float32 or dtype=bfloat16"
            )
        file = self._file_of[name]
        self._pending[file][name] = written
        if self._pending[file].keys() == self._awaited[file]:
            save_file(self._pending.pop(file), self._folder / file, metadata=_METADATA)
        return written

    def close(self) -> None:
        """Write the index, if there are several shards."""
        assert not self._pending, f"tensors never came: {sorted(set().union(*self._pending.values()))}"
        if len(self._awaited) > 1:
            index = {
                "metadata": {"total_size": self._total_bytes},
                "weight_map": dict(sorted(self._file_of.items())),
            }
            (self._folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _cut(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _file_name(index: int, count: int) -> str:
    return SINGLE_NAME if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"
