"""The processes of a model that is spread over several: ranks that end with the engine, and leave nothing behind."""

import contextlib
import ctypes
import os
import re
import signal
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import psutil

from harness.errors import GraftbenchError
from harness.evaluation.engines.handover import Handover, HandoverBroken
from harness.evaluation.engines.interface import Weights
from harness.evaluation.engines.vllm_weights import Taken, take_weights_from

_SHARED_MEMORY = Path("/dev/shm")

_OURS = re.compile(r"psm_\w+|vllm_dist_.+")
"""Names of what Python and vLLM share among processes; all else in that folder may be a user's checkpoint."""

_PR_SET_PDEATHSIG = 1

_PATIENCE_SECONDS = 10.0
"""For a rank to say what went wrong."""


def taken_by_ranks(model: Any, weights: Weights, ranks: int) -> list[Taken]:
    """Hand all weights over to the ranks of a model of vLLM's, each of which takes its part of every tensor.

    Raises:
        GraftbenchError: a rank failed. Any error, also one of the weights', leaves the ranks in no state to be used.
    """
    pool = ThreadPoolExecutor(1)
    with Handover(ranks) as handover:
        call: Future[list[Taken]] = pool.submit(model.collective_rpc, take_weights_from, args=(handover.address,))
        pool.shutdown(wait=False)
        try:
            handover.send(weights, going_on=lambda: not call.done())
        except HandoverBroken as error:
            handover.close()
            raise _failed(call, error) from error
        if (said := call.exception()) is not None:
            raise _failed(call, said) from said
        return call.result()


def _failed(call: "Future[list[Taken]]", error: BaseException) -> GraftbenchError:
    """What a rank said, if it can still say something."""
    with contextlib.suppress(TimeoutError):
        call.exception(timeout=_PATIENCE_SECONDS)
    reason = call.exception() if call.done() else error
    return GraftbenchError(f"a process of the engine failed while it took weights: {reason or error}")


def end_with_engine(worker: Any) -> None:
    """Called in a rank: when the engine's process is gone, it is killed, whatever it waits for."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL):
        raise OSError(ctypes.get_errno(), "prctl")


def forget_names() -> list[str]:
    """Remove the names of the shared memory that this process and its descendants use; they keep the memory itself.

    Once all have opened it the names serve nobody; processes that are killed would leave them, and the memory too.
    """
    family = [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]
    names = sorted({name for process in family for name in _names_in(process)})
    for name in names:
        (_SHARED_MEMORY / name).unlink(missing_ok=True)
        if name.startswith("psm_"):
            resource_tracker.unregister(f"/{name}", "shared_memory")
    return names


def _names_in(process: int) -> Iterable[str]:
    try:
        mapped = Path(f"/proc/{process}/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has ended
        return
    for name in re.findall(rf"^.* {re.escape(str(_SHARED_MEMORY))}/([^/\n]+)$", mapped, re.MULTILINE):
        if _OURS.fullmatch(name):
            yield name
    # Semaphores are mapped under another name; joblib, which something in vLLM imports, puts the process into theirs.
    yield from (path.name for path in _SHARED_MEMORY.glob(f"sem.loky-{process}-*"))
