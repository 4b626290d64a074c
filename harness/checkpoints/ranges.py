"""Ranges of bytes of a file, read without mapping it into memory.

A mapped file counts as the process's memory, and a file that is truncated under a mapping kills the process; `preadv`
does neither.
"""

import os
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harness.errors import GraftbenchError


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    begin: int
    """Offset of its first byte."""


class FileRanges:
    """One file, opened by the first read; any number of threads may read at the same time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opening = threading.Lock()
        self._opened: int | None = None

    def read(self, name: str, stored: StoredTensor, start: int, stop: int, scratch: Tensor) -> Tensor:
        """Entries `start` to `stop` of a tensor whose bytes lie together, flat, as they are stored.

        Args:
            name: the tensor, for an error.
            stored: where it lies.
            start: flat index of the first entry.
            stop: flat index after the last.
            scratch: uint8, large enough; the result is a view of it.

        Raises:
            GraftbenchError: the file vanished, cannot be read, or ends too early.
        """
        width = stored.dtype.itemsize
        buffer = scratch[: (stop - start) * width]
        self._fill(buffer, stored.begin + start * width, name)
        return buffer.view(stored.dtype)

    def announce(self, stored: StoredTensor, start: int, stop: int) -> None:
        """Tell the system that entries will be read soon, so that the disk works while the processor does."""
        if hasattr(os, "posix_fadvise"):
            width = stored.dtype.itemsize
            os.posix_fadvise(
                self._descriptor, stored.begin + start * width, (stop - start) * width, os.POSIX_FADV_WILLNEED
            )

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        with self._opening:
            if self._opened is not None:
                self._closing()
                self._opened = None

    def _fill(self, buffer: Tensor, position: int, tensor: str) -> None:
        wanted, done = buffer.numel(), 0
        view: memoryview = buffer.numpy().data
        try:
            while done < wanted:
                got = os.preadv(self._descriptor, [view[done:]], position + done)
                if not got:
                    raise GraftbenchError(
                        f"{self.path}: tensor '{tensor}' ends {wanted - done:,} bytes too early: the file was cut "
                        "short after the merge began; fetch or export it again"
                    )
                done += got
        except OSError as error:
            raise GraftbenchError(f"{self.path}: tensor '{tensor}' cannot be read ({error})") from error

    @property
    def _descriptor(self) -> int:
        opened = self._opened
        if opened is not None:
            return opened
        with self._opening:
            if self._opened is None:
                try:
                    self._opened = os.open(self.path, os.O_RDONLY)
                except OSError as error:
                    raise GraftbenchError(f"{self.path} cannot be opened ({error.strerror})") from error
                self._closing = weakref.finalize(self, os.close, self._opened)
            return self._opened
