"""Ranges of bytes of a file, read without mapping it into memory.

A mapped file counts as the process's memory, and a file that is truncated under a mapping kills the process; `preadv`
does neither.
"""

import os
import threading
import weakref
from pathlib import Path

from torch import Tensor

from harness.errors import GraftbenchError


class FileRanges:
    """One file, opened by the first read; any number of threads may read at the same time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opening = threading.Lock()
        self._opened: int | None = None

    def read(self, position: int, buffer: Tensor, tensor: str) -> None:
        """Fill a buffer with the bytes from `position` on.

        Args:
            position: offset in the file.
            buffer: uint8; as many bytes are read as it has.
            tensor: whose bytes these are, for the error.

        Raises:
            GraftbenchError: the file vanished, cannot be read, or ends too early.
        """
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

    def announce(self, position: int, size: int) -> None:
        """Tell the system that a range will be read soon, so that the disk works while the processor does."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, position, size, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        with self._opening:
            if self._opened is not None:
                self._closing()
                self._opened = None

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
