"""The file of second moments, written parameter by parameter: only the one at hand is in memory."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from harness.curvature.second_moments import FORMAT_VERSION, SecondMomentsMetadata
from harness.errors import GraftbenchError
from harness.files import file_written_atomically

_HEADER_ALIGNMENT = 8
_DTYPE_NAMES = {torch.float32: "F32", torch.int32: "I32", torch.uint8: "U8"}


class SecondMomentsWriter:
    """Takes tensors in any order, whole or part by part; see `streamed_second_moments`."""

    def __init__(
        self,
        file: BinaryIO,
        begins: Mapping[str, int],
        shapes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, torch.dtype],
    ) -> None:
        self._file = file
        self._begins = begins
        self._shapes = shapes
        self._dtypes = dtypes
        self._missing = {key: torch.Size(shape).numel() for key, shape in shapes.items()}

    def write(self, key: str, tensor: Tensor) -> None:
        """Write one tensor that was announced; it is cast to fp32.

        Raises:
            GraftbenchError: its values are negative, NaN or Inf, and hence no second moments.
        """
        if tuple(tensor.shape) != self._shapes[key]:
            raise ValueError(f"'{key}' was announced with shape {self._shapes[key]}, but has {tuple(tensor.shape)}")
        self.write_part(key, 0, tensor)

    def write_part(self, key: str, start: int, tensor: Tensor) -> None:
        """Write consecutive entries of a tensor, from flat index `start` on; each entry once.

        Raises:
            GraftbenchError: its values are negative, NaN or Inf, and hence no second moments.
        """
        dtype = self._dtypes.get(key, torch.float32)
        values = tensor.detach().to("cpu", dtype).contiguous()
        if values.numel() and dtype == torch.float32:
            lowest, highest = (float(extreme) for extreme in torch.aminmax(values))
            if not (lowest >= 0 and highest <= torch.finfo(torch.float32).max):
                raise GraftbenchError(
                    f"second moments of '{key}' range from {lowest} to {highest}, but must be ≥ 0 and finite in fp32; "
                    "the training run has diverged, or the file is damaged: take an earlier checkpoint"
                )
        self._file.seek(self._begins[key] + start * dtype.itemsize)
        self._file.write(values.view(-1).view(torch.uint8).numpy().data)
        self._missing[key] -= values.numel()

    def finish(self) -> None:
        """Check that nothing is missing."""
        if missing := sorted(key for key, entries in self._missing.items() if entries):
            raise ValueError(f"announced, but not written: {missing}")


@contextmanager
def streamed_second_moments(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    metadata: SecondMomentsMetadata,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> Iterator[SecondMomentsWriter]:
    """A file that `write_second_moments` would write, byte for byte, filled one tensor after another.

    It takes its name when the block ends well, with every tensor written; otherwise nothing is left of it.

    Args:
        path: the file, by convention `exp_avg_sq.safetensors`.
        shapes: shape of each tensor that will be written, under the name that the file gives it.
        metadata: where they come from.
        dtypes: the data types of tensors that are not fp32.
    """
    dtypes = dtypes or {}
    header, begins, size = _header(shapes, dtypes, metadata)
    with file_written_atomically(path) as temporary, temporary.open("r+b") as file:
        file.truncate(size)
        file.write(header)
        writer = SecondMomentsWriter(file, begins, shapes, dtypes)
        yield writer
        writer.finish()


def _header(
    shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype], metadata: SecondMomentsMetadata
) -> tuple[bytes, dict[str, int], int]:
    """The header of the safetensors file, where each tensor begins, and the size of the whole."""
    fields = {"format": "graftbench.second_moments", "version": FORMAT_VERSION}
    fields |= {key: str(value) for key, value in asdict(metadata).items() if value is not None}
    entries: dict[str, object] = {"__metadata__": dict(sorted(fields.items()))}
    begins, position = {}, 0
    stored = {key: dtypes.get(key, torch.float32) for key in shapes}
    for key in sorted(shapes, key=lambda key: (-stored[key].itemsize, key)):  # so that every tensor is aligned
        begins[key] = position
        position += torch.Size(shapes[key]).numel() * stored[key].itemsize
        offsets = [begins[key], position]
        entries[key] = {"dtype": _DTYPE_NAMES[stored[key]], "shape": list(shapes[key]), "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    prefix = len(text).to_bytes(8, "little") + text
    return prefix, {key: len(prefix) + begin for key, begin in begins.items()}, len(prefix) + position
