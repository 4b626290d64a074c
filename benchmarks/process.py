"""One run of a command as a whole process: wall time, CPU time and peak memory, and how quiet the machine was."""

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.memory import family, proportional_bytes

_SAMPLING_SECONDS = 0.05


@dataclass(frozen=True)
class Run:
    """What one process took."""

    wall: float
    """Seconds from start to end, imports included."""
    cpu: float
    """Seconds of processor time, user and system, its children's included."""
    peak_bytes: int
    """Largest resident memory of it and its children together, pages that several share counted once, sampled every
    50 ms, or the kernel's own count of the first process if that is larger; mapped files count, page cache does not."""
    private_bytes: int
    """Largest part of it that no file backs."""
    disk_read_bytes: int
    """Bytes that came from the disk rather than from the page cache."""
    others_cpu: float
    """Share of the machine's processors that others used meanwhile, 0 to 1, the kernel's own threads included."""


class CommandFailed(Exception):
    """A command ended with an error; the message holds the end of what it printed."""


def measure(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Run:
    """Run a command to its end.

    This process must stay small: until a child has started its program, its peak memory is its parent's.

    Args:
        command: program and arguments.
        environment: all environment variables.
        log: file for what it prints, overwritten.

    Raises:
        CommandFailed: its exit status is not 0.
    """
    os.sync()
    busy, started = _busy_seconds(), time.perf_counter()
    with log.open("wb") as output:
        child = subprocess.Popen(command, env=dict(environment), stdout=output, stderr=subprocess.STDOUT)
        sampler = _Memory(child.pid)
        sampler.start()
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        sampler.stop()
    busy = _busy_seconds() - busy
    if child.returncode:
        end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise CommandFailed(f"{' '.join(command)}\nended with status {child.returncode}:\n{end}")
    cpu = usage.ru_utime + usage.ru_stime
    return Run(
        wall=wall,
        cpu=cpu,
        peak_bytes=max(sampler.peak_bytes, usage.ru_maxrss * 1024),
        private_bytes=sampler.private_bytes,
        disk_read_bytes=usage.ru_inblock * 512,
        others_cpu=max(0.0, busy - cpu) / (wall * (os.cpu_count() or 1)),
    )


def warm_page_cache(files: Sequence[Path]) -> None:
    """Read all files once."""
    buffer = bytearray(1 << 22)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


class _Memory(threading.Thread):
    """Samples the resident memory of a process and its children: proportional sizes, so that nothing counts twice."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self.private_bytes = 0
        self._pid = pid
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(_SAMPLING_SECONDS):
            sizes = [proportional_bytes(pid) for pid in family(self._pid)]
            self.peak_bytes = max(self.peak_bytes, sum(whole for whole, _ in sizes))
            self.private_bytes = max(self.private_bytes, sum(private for _, private in sizes))

    def stop(self) -> None:
        self._ended.set()
        self.join()


def _busy_seconds() -> float:
    """Processor time that the whole machine has spent since it started, waiting excluded."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = map(int, fields[:8])
    return (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")
