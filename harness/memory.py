"""How much memory a process and its children take, pages that several share counted once. Linux only."""

import contextlib
import ctypes
import gc
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

SAMPLING_SECONDS = 0.02
SAMPLING_SHARE = 0.05
"""Of a processor, at most so much goes into looking: of large processes that takes long."""


class PeakMemory:
    """Measures the largest memory of this process and its children while the block runs.

    Counted is what no file backs: what was allocated, the interpreter's own and memory shared with workers included;
    not the code of libraries, and not the page cache. What was freed before the block is given back first, so that it
    does not count. It is sampled, so that a peak of a few milliseconds may be missed.
    """

    def __init__(self) -> None:
        self.bytes: int | None = None
        """The peak; None where the system does not tell."""
        self._peak = 0
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="memory", daemon=True)

    def __enter__(self) -> Self:
        give_back_freed()
        self._peak = private_bytes(os.getpid())
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._sampler.join()
        self.bytes = self._peak or None

    def _sample(self) -> None:
        ended, pause = False, SAMPLING_SECONDS
        while not ended:
            ended = self._ended.wait(pause)
            started = time.thread_time()
            self._peak = max(self._peak, private_bytes(os.getpid()))
            pause = max(SAMPLING_SECONDS, (time.thread_time() - started) / SAMPLING_SHARE)


def give_back_freed() -> None:
    """Hand memory that was freed back to the system, where the C library can."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def private_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants that no file backs; 0 where the system does not tell."""
    return sum(private for _, private in map(proportional_bytes, family(pid)))


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text(encoding="ascii").split()]
    except OSError:
        return [pid]
    return [pid, *(each for child in children for each in family(child))]


def proportional_bytes(pid: int) -> tuple[int, int]:
    """Proportional resident size of a process, and what of it no file backs; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0, 0
    sizes = {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines[1:])}
    return sizes.get("Pss", 0), sizes.get("Pss_Anon", 0) + sizes.get("Pss_Shmem", 0)
