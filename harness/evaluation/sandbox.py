"""Running code that a model wrote, away from everything that it could harm.

`run_program` hands a program to a small server process (`sandbox_server.py`), which forks once per program: a
few milliseconds each instead of the start of an interpreter. The layers, each of which holds when the one
before it is missing:

1. permission: nothing runs outside `code_execution_allowed()`, which an evaluation enters only with
   `suite.allow_code_execution=true`;
2. namespaces, where the kernel permits them (as root, or as an ordinary user through a user namespace): no
   network device, no process visible but the program's own, and no file but the Python installation
   (read-only) and an empty working folder held in memory;
3. identity: no environment variables, no capabilities, and the user `nobody` when the harness itself runs as
   root;
4. limits on processor time, elapsed time, memory, open files, size of files and (zero) further processes;
5. a filter of system calls, where the kernel has one (seccomp): no sockets, no processes, no signals to others;
6. an audit hook that refuses sockets, processes, signals, writing outside the working folder, reading beyond
   it and Python, and too many files, with a plain `PermissionError`.

It guards against what models write by accident and against ordinary mischief. It is no virtual machine: do
not run an adversary's code. Nor can it see through a program that deceives its own tests: a verdict means that
the last line was reached, and an object that calls itself equal to everything reaches it too.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import harness
from harness.errors import GraftbenchError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What one program may use; going beyond any of it ends the program."""

    cpu_seconds: float = 2.0
    """Processor time."""
    wall_seconds: float = 10.0
    """Elapsed time; far above `cpu_seconds`, so that a busy machine does not decide a score."""
    memory_mib: int = 512
    """Address space; an allocation beyond it raises MemoryError in the program."""
    file_mib: int = 1
    """Size of each file that it writes."""
    files: int = 256
    """Files and folders that it makes."""
    open_files: int = 32
    """Open files, the standard streams included."""


@dataclass(frozen=True)
class Outcome:
    """What became of one program."""

    passed: bool
    """True when the program ran to its last line without an exception."""
    reason: str
    """'passed', or why not: the exception, 'processor time', 'elapsed time', 'ended before its last line' or
    the signal."""


def run_program(source: str, limits: Limits | None = None) -> Outcome:
    """Run `source`, a Python program that raises if it is wrong, in the sandbox.

    Only the standard library and numpy are importable, standard input is empty and output is discarded. Programs
    cannot see one another, and random numbers start alike for all.

    Raises:
        GraftbenchError: code execution was not allowed, or the sandbox cannot be started.
    """
    if not _permission.granted:
        raise GraftbenchError(
            "This evaluation runs code that a model wrote, and code execution is off.\n"
            "Set suite.allow_code_execution=true to run it in the sandbox."
        )
    with _server_lock:
        reply = _server().run({"source": source, **asdict(limits or Limits())})
    return Outcome(passed=bool(reply["passed"]), reason=str(reply["reason"]))


def isolation() -> str:
    """The layers that hold on this machine, in words, for records and logs; starts the server."""
    with _server_lock:
        return _server().isolation


@contextlib.contextmanager
def code_execution_allowed(allowed: bool = True) -> Iterator[None]:
    """Within this block `run_program` runs (or, with False, refuses to run) programs."""
    before, _permission.granted = _permission.granted, allowed
    try:
        yield
    finally:
        _permission.granted = before


def stop() -> None:
    """End the server process, if one runs; the next program starts a new one."""
    with _server_lock:
        if _state.server is not None:
            _state.server.close()
            _state.server = None


class _Permission:
    granted = False


_permission = _Permission()


class _Server:
    """The server process and its two pipes; one request and one reply per line."""

    def __init__(self, without: Sequence[str] = ()) -> None:
        """Start it, `without` some layers (see sandbox_server.py) where a test is about the others."""
        self.owner = os.getpid()
        options = {"packages": _packages(), "without": list(without)}
        # No site-packages (-S, -s), nothing importable from the current folder (-P), and a fixed order of
        # sets.
        self.process = subprocess.Popen(
            [sys.executable, "-s", "-S", "-P", "-m", "harness.evaluation.sandbox_server", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                "PYTHONPATH": str(Path(harness.__file__).parent.parent),
                "PYTHONHASHSEED": "0",
                "PYTHONDONTWRITEBYTECODE": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
            cwd="/",
            start_new_session=True,
        )
        hello = self._read()
        if hello is None:
            self.close()
            raise GraftbenchError("The sandbox's process did not start; its own messages are above.")
        self.isolation = str(hello["isolation"])
        weak = "NOT refused" in self.isolation or "UNREADABLE" in self.isolation
        logger.log(logging.WARNING if weak else logging.INFO, "sandbox for model-written code: %s", self.isolation)

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            reply = self._read()
        except BrokenPipeError:
            reply = None
        if reply is None:  # only without a process namespace can a program reach the server
            self.close()
            return {"passed": False, "reason": "ended the sandbox's own process"}
        return reply

    def alive(self) -> bool:
        return self.owner == os.getpid() and self.process.poll() is None

    def close(self) -> None:
        if self.owner != os.getpid():
            return
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read(self) -> dict[str, Any] | None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        reply: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return reply


class _State:
    server: _Server | None = None


_state = _State()
_server_lock = threading.Lock()
atexit.register(stop)


def _server() -> _Server:
    if _state.server is None or not _state.server.alive():
        _state.server = _Server()
    return _state.server


def _packages() -> list[str]:
    """Folders of what programs may import beside the standard library: numpy, which HumanEval+'s tests use."""
    spec = importlib.util.find_spec("numpy")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec is not None else []
    libraries = [folder.with_name("numpy.libs") for folder in folders]
    return [str(folder) for folder in (*folders, *libraries) if folder.is_dir()]
