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


class SecondMomentsWriter:
    """Takes whole tensors in any order; see `streamed_second_moments`."""

    def __init__(self, file: BinaryIO, begins: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._file = file
        self._begins = begins
        self._shapes = shapes
        self._missing = set(shapes)

    def write(self, key: str, tensor: Tensor) -> None:
        """Write one tensor that was announced; it is cast to fp32.

        Raises:
            GraftbenchError: its values are negative, NaN or Inf, and hence no second moments.
        """
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        if tuple(values.shape) != self._shapes[key]:
            raise ValueError(f"'{key}' was announced with shape {self._shapes[key]}, but has {tuple(values.shape)}")
        if values.numel():
            lowest, highest = (float(extreme) for extreme in torch.aminmax(values))
            if not (lowest >= 0 and highest <= torch.finfo(torch.float32).max):
                raise GraftbenchError(
                    f"second moments of '{key}' range from {lowest} to {highest}, but must be ≥ 0 and finite in fp32; "
                    "the training run has diverged, or the file is damaged: take an earlier checkpoint"
                )
        self._file.seek(self._begins[key])
        self._file.write(values.view(-1).view(torch.uint8).numpy().data)
        self._missing.discard(key)

    def finish(self) -> None:
        """Check that nothing is missing."""
        if self._missing:
            raise ValueError(f"announced, but not written: {sorted(self._missing)}")


@contextmanager
def streamed_second_moments(
    path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: SecondMomentsMetadata
) -> Iterator[SecondMomentsWriter]:
    """A file that `write_second_moments` would write, byte for byte, filled one tensor after another.

    It takes its name when the block ends well, with every tensor written; otherwise nothing is left of it.

    Args:
        path: the file, by convention `exp_avg_sq.safetensors`.
        shapes: shape of each tensor that will be written, under the name that the file gives it.
        metadata: where they come from.
    """
    header, begins, size = _header(shapes, metadata)
    with file_written_atomically(path) as temporary, temporary.open("r+b") as file:
        file.truncate(size)
        file.write(header)
        writer = SecondMomentsWriter(file, begins, shapes)
        yield writer
        writer.finish()


def _header(
    shapes: Mapping[str, tuple[int, ...]], metadata: SecondMomentsMetadata
) -> tuple[bytes, dict[str, int], int]:
    """The header of the safetensors file, where each tensor begins, and the size of the whole."""
    fields = {"format": "graftbench.second_moments", "version": FORMAT_VERSION}
    fields |= {key: str(value) for key, value in asdict(metadata).items() if value is not None}
    entries: dict[str, object] = {"__metadata__": dict(sorted(fields.items()))}
    begins, position = {}, 0
    for key in sorted(shapes):
        begins[key] = position
        position += torch.Size(shapes[key]).numel() * torch.float32.itemsize
        entries[key] = {"dtype": "F32", "shape": list(shapes[key]), "data_offsets": [begins[key], position]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    prefix = len(text).to_bytes(8, "little") + text
    return prefix, {key: len(prefix) + begin for key, begin in begins.items()}, len(prefix) + position
