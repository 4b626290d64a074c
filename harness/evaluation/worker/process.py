"""A worker: a process of its own that answers requests, and can be ended whatever state it is in."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal, Self

from harness.errors import GraftbenchError

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 5.0


class WorkerBroken(Exception):
    """The worker has died, or must not be used again; the message says why."""


@dataclass(frozen=True)
class Reply:
    """What a worker answers."""

    kind: Literal["done", "refused", "broken"]
    """Whether it was done; if not, whether the worker is as good as before."""
    value: Any
    """The result, or what went wrong."""
    details: str = ""
    """Where it went wrong, if that is no fault of the user's."""


class Worker:
    """A process that engines may fill with threads, devices and caches. Use it as a context manager to end it."""

    def __init__(self) -> None:
        """Start it; it shares nothing with this process but a socket."""
        ours, theirs = socket.socketpair()
        # Threads that wait give way, as in the command's own process (see harness/__main__.py).
        environment = {"GOMP_SPINCOUNT": "10000", **os.environ}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __package__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # results are for the command's own standard output
                pass_fds=(theirs.fileno(),),
                env=environment,
                start_new_session=True,  # an interruption from the keyboard is for this process, which ends that one
            )
        self._connection = Connection(ours.detach())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def ask(self, request: Any) -> Any:
        """Have a request carried out, and wait for its result.

        Raises:
            GraftbenchError: what was asked for is wrong; the worker can go on.
            WorkerBroken: the worker failed, and must be ended.
        """
        try:
            self._connection.send(request)
            reply: Reply = self._connection.recv()
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE_SECONDS)
            status = self._process.returncode
            killed = f"by {signal.Signals(-status).name}" if status is not None and status < 0 else f"status {status}"
            raise WorkerBroken(f"the worker process ended by itself ({killed}); want of memory is likeliest") from None
        if reply.kind == "refused":
            raise GraftbenchError(reply.value)
        if reply.kind == "broken":
            if reply.details:
                log.debug("%s", reply.details)
            raise WorkerBroken(str(reply.value))
        return reply.value

    def end(self) -> None:
        """End the process and all that it started."""
        self._connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
