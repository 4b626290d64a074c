"""One safetensors file: its header, and ranges of its tensors.

The format: 8 bytes, the header's length; the header, JSON; the tensors' bytes.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.checkpoints.ranges import FileRanges, StoredTensor
from harness.errors import GraftbenchError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""Data types by their name in a header."""


class SafetensorsFile:
    """A file whose header has been checked: `tensors` in the order of their bytes, and `metadata`."""

    def __init__(self, path: Path) -> None:
        """Read and check the header.

        Raises:
            GraftbenchError: the file is missing, truncated or corrupt, or of an unknown data type.
        """
        self.path = Path(path)
        self._ranges = FileRanges(self.path)
        try:
            with self.path.open("rb") as file:
                # The library checks the header: that ranges fit to shapes, do not overlap, and end where the file does.
                with safe_open(self.path, framework="pt"):
                    pass
                size = int.from_bytes(file.read(8), "little")
                header: dict[str, Any] = json.loads(file.read(size))
        except FileNotFoundError:
            raise GraftbenchError(f"{self.path} does not exist; fetch or export it again") from None
        except (PermissionError, IsADirectoryError) as error:
            raise GraftbenchError(f"{self.path} cannot be read ({error.strerror})") from None
        except (OSError, SafetensorError, ValueError) as error:
            raise GraftbenchError(
                f"{self.path} is not a whole safetensors file ({error}); fetch or export it again"
            ) from error
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self.tensors = {
            name: StoredTensor(
                tuple(entry["shape"]), self._dtype(name, entry["dtype"]), 8 + size + entry["data_offsets"][0]
            )
            for name, entry in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"]))
        }

    def read(self, name: str, start: int, stop: int, scratch: Tensor) -> Tensor:
        """Entries `start` to `stop` of a tensor, flat, as they are stored.

        Args:
            name: the tensor.
            start: flat index of the first entry.
            stop: flat index after the last.
            scratch: uint8, large enough; the result is a view of it.

        Raises:
            GraftbenchError: the file vanished or is shorter than its header says.
        """
        return self._ranges.read(name, self.tensors[name], start, stop, scratch)

    def announce(self, name: str, start: int, stop: int) -> None:
        """Tell the system that a range will be read soon."""
        self._ranges.announce(self.tensors[name], start, stop)

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        self._ranges.close()

    def _dtype(self, name: str, written: str) -> torch.dtype:
        if written not in DTYPES:
            raise GraftbenchError(f"{self.path}: tensor '{name}' is of the unknown data type {written}")
        return DTYPES[written]
