"""A merge in a process of its own that stops at a named parameter until it is let go: there it can be killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from torch import Tensor

from harness.merging import Execution, MergeReport, merge_to_folder, plan_merge
from harness.merging.journal import FILE_NAME, unfinished_path
from methods import Method, Parameter

PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Blocking(Method):
    """The mean of base and experts; at one parameter it waits for a file."""

    stop_at: str
    gate: str

    def merge(self, parameter: Parameter) -> Tensor:
        if parameter.name == self.stop_at:
            until(lambda: Path(self.gate).exists(), f"{self.gate}")
        return (parameter.base + parameter.experts.sum(dim=0)) / (1 + len(parameter.experts))


def merge(folder: Path, out: Path, stop_at: str, threads: int = 1, **options: Any) -> MergeReport:
    """Merge `base`, `x` and `y` of a folder; it passes where the folder holds `gate`."""
    method = Blocking(stop_at=stop_at, gate=str(folder / "gate"))
    experts = {name: folder / name for name in ("x", "y")}
    shard_bytes = options.pop("shard_bytes", 10**9)
    execution = Execution(threads=threads)
    with plan_merge("blocking", method, folder / "base", experts, {}, execution=execution, **options) as plan:
        return merge_to_folder(plan, out, shard_bytes=shard_bytes)


@dataclass
class Started:
    """A merge that runs."""

    process: "subprocess.Popen[str]"
    out: Path

    def wait_for(self, tensors: int) -> None:
        """Wait until so many tensors are written, and the next one blocks."""
        journal = unfinished_path(self.out) / FILE_NAME

        def written() -> bool:
            assert self.process.poll() is None, self.process.communicate()[1]
            return journal.exists() and len(journal.read_text().splitlines()) == 1 + tensors

        until(written, f"{tensors} tensors in {journal}")

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: int) -> str:
        """Send a signal, and wait until the process is gone; returns what it said."""
        self.process.send_signal(number)
        return self.process.communicate(timeout=PATIENCE_SECONDS)[1]


@contextmanager
def started(folder: Path, out: Path, stop_at: str, threads: int = 1, **options: Any) -> Iterator[Started]:
    """The same merge in another process, which is killed at the end if it is still there."""
    given = json.dumps({"folder": str(folder), "out": str(out), "stop_at": stop_at, "threads": threads, **options})
    command = [sys.executable, "-m", "tests.merging.blocking", given]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        yield Started(process, out)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for something that is bound to happen."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background inherits that it is ignored
    given = json.loads(sys.argv[1])
    merge(Path(given.pop("folder")), Path(given.pop("out")), **given)


if __name__ == "__main__":
    # Under its own name, so that the method is the same one as in the test that started this process.
    from tests.merging import blocking

    blocking.main()
