"""Runs tasks on pieces at the same time: reading, computing and writing overlap, under a fixed memory budget.

On the CPU every worker is a process: operations on tiles that fit into a cache take microseconds, and threads of one
interpreter would hand its lock to each other all the time. Workers are forked, so they hold the plan
without copying it, as the workers of PyTorch's data loaders do, and large results lie in memory that they share. On a
GPU every worker is a thread with a stream of its own, since one process owns the device.
"""

import mmap
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from itertools import count
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from harness.checkpoints import TensorInfo
from harness.errors import GraftbenchError
from harness.merging.allocator import keep_freed_memory
from harness.merging.pieces import Piece, cut, entries_at_once
from harness.merging.plan import MergePlan
from harness.merging.reading import Reader

Item = TypeVar("Item")

_WATCH_SECONDS = 1.0
"""How often a worker looks whether the process that it works for is still there."""


class Workbench:
    """What a worker works with: the plan, its device, and memory."""

    def __init__(self, plan: MergePlan, number: int, slots: Sequence[Tensor], own: Sequence[Tensor]) -> None:
        devices = plan.execution.devices
        self.plan = plan
        self.device = devices[number % len(devices)]
        self.own = own[number]
        """Memory of this worker alone that outlives the piece, uint8, zero at first; the pool reads it at the end."""
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.kept: dict[Any, Any] = {}
        """What a task prepares once and uses again."""
        self._slots = slots
        self.reader = cache(partial(Reader, plan))
        """What reads pieces of some experts, given their names; it keeps its memory from piece to piece."""

    def slot(self, number: int) -> Tensor:
        """Memory for the result of one piece, uint8."""
        return self._slots[number]


class Task(Protocol):
    """What is to be done with pieces; small, since it is sent to the workers with each of them."""

    @property
    def names(self) -> tuple[str, ...]:
        """The experts that it reads."""

    def __call__(self, bench: Workbench, piece: Piece, slot: int) -> Any:
        """Work on one piece; the result is small, or lies in the slot."""


class Pool:
    """Workers for one plan. Use it as a context manager to end them."""

    def __init__(self, plan: MergePlan, slot_bytes: int = 0, own_bytes: int = 0) -> None:
        """Start the workers.

        Args:
            plan: the merge.
            slot_bytes: memory for the result of a piece, where it is not small.
            own_bytes: memory that each worker keeps for itself.
        """
        execution = plan.execution
        self.plan = plan
        self.budget = execution.budget
        """What pieces at work may take together, in bytes."""
        workers = execution.workers
        self._ahead = 4 * workers
        if slot_bytes:
            self._ahead = min(self._ahead, max(2, self.budget // (2 * slot_bytes)))
        self.own = _shared(workers, own_bytes)
        self.slots = _shared(self._ahead, slot_bytes)
        self._free = deque(range(self._ahead))
        on_gpu = execution.devices[0].type == "cuda"
        self._forked = not on_gpu and workers > 1 and sys.platform == "linux"
        self._before = torch.get_num_threads()
        self._reader = cache(partial(Reader, plan))
        """Tells the system what will be read, so that the disk works while processors do."""
        self._children: set[BaseProcess] = set()
        self._executor = self._forking(workers) if self._forked else self._threading(workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            # Nobody wants what is at work any more; one piece of a matrix method can take minutes.
            for worker in self._children:
                worker.kill()
        self._executor.shutdown(cancel_futures=True)
        if not self._forked:
            torch.set_num_threads(self._before)

    def run(self, work: Iterable[tuple[Task, Piece]], slots: bool = False) -> Iterator[tuple[Piece, Any, Tensor]]:
        """Work on pieces at the same time, and yield them with their results in their order.

        A result in a slot must be used before the next piece is asked for. One run at a time may use slots.

        Args:
            work: what to do with which piece; taken one by one, as far ahead as memory allows.
            slots: whether results lie in slots.
        """
        waiting: deque[tuple[Piece, int, int, Future[Any]]] = deque()
        taken = 0

        def first() -> tuple[Piece, Any, Tensor]:
            piece, _, slot, future = waiting[0]
            return piece, self._result(future), self.slots[slot]

        def release() -> int:
            _, cost, slot, _ = waiting.popleft()
            if slots:
                self._free.append(slot)
            return cost

        for task, piece in work:
            cost = self.plan.bytes_of(piece)
            while waiting and (taken + cost > self.budget or len(waiting) == self._ahead):
                yield first()
                taken -= release()
            slot = self._free.popleft() if slots else 0
            self._reader(task.names).announce(piece)
            waiting.append((piece, cost, slot, self._executor.submit(_work, task, piece, slot)))
            taken += cost
        while waiting:
            yield first()
            release()

    def run_over(self, parameters: Sequence[TensorInfo], task: Task) -> Iterator[tuple[Piece, Any]]:
        """One task on every piece of some parameters: the pieces in their order, with what the task returns."""
        pieces = cut(parameters, self.plan.granularity, self.plan.execution.piece_entries)
        for piece, result, _ in self.run((task, piece) for piece in pieces):
            yield piece, result

    def _result(self, future: Future[Any]) -> Any:
        try:
            return future.result()
        except BrokenProcessPool:
            raise GraftbenchError(
                "a worker process was killed while it merged, most likely for want of memory; "
                "give fewer threads or a smaller memory_gb"
            ) from None

    def _forking(self, workers: int) -> Executor:
        context = get_context("fork")
        numbers = context.Value("i", 0)
        given = (self.plan, numbers, self.slots, self.own, os.getpid())
        executor = ProcessPoolExecutor(workers, context, initializer=_begin_process, initargs=given)
        before = set(active_children())
        executor.submit(os.getpid).result()  # forks all of them now, before there are threads
        self._children = set(active_children()) - before
        # Only workers write results. A killed one may leave half of one: then this end must see that nobody is left to
        # write the rest, or it would wait for it forever.
        executor._result_queue._writer.close()  # type: ignore[attr-defined]
        return executor

    def _threading(self, workers: int) -> Executor:
        numbers = count()
        given = (self.plan, numbers, self.slots, self.own)
        return ThreadPoolExecutor(workers, "merge", initializer=_begin_thread, initargs=given)


_local = threading.local()


def _begin_process(plan: MergePlan, numbers: Any, slots: Sequence[Tensor], own: Sequence[Tensor], parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is for the process that merges, which ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    keep_freed_memory()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with numbers.get_lock():
        number = numbers.value
        numbers.value += 1
    _begin(plan, number, slots, own)


def _begin_thread(plan: MergePlan, numbers: Iterator[int], slots: Sequence[Tensor], own: Sequence[Tensor]) -> None:
    _begin(plan, next(numbers), slots, own)


def _begin(plan: MergePlan, number: int, slots: Sequence[Tensor], own: Sequence[Tensor]) -> None:
    # One core for each worker: pieces are many, and rounding must not depend on how an operation is split.
    torch.set_num_threads(1)
    _local.bench = Workbench(plan, number, slots, own)


def _end_with(parent: int) -> None:
    """End this worker when the process that it works for is gone: killed, it cannot say so."""
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


def _work(task: Task, piece: Piece, slot: int) -> Any:
    bench: Workbench = _local.bench
    # A stream of its own lets one thread copy to the GPU while another computes on it.
    with torch.inference_mode(), torch.cuda.stream(bench.stream):
        return task(bench, piece, slot)


def _shared(number: int, size: int) -> list[Tensor]:
    """So many stretches of zeros that forked processes have in common; pages that nobody touches take no memory."""
    if not size:
        return [torch.empty(0, dtype=torch.uint8)] * number
    memory = torch.frombuffer(mmap.mmap(-1, number * size), dtype=torch.uint8)
    return list(memory.view(number, size))


def slot_bytes(plan: MergePlan) -> int:
    """What the merged values of the largest piece take."""
    sizes = [
        min(info.entries, entries_at_once(info, plan.granularity, plan.execution.piece_entries))
        * (plan.dtype or info.dtype).itemsize
        for info in plan.parameters
    ]
    return max(sizes, default=0)


def ahead(items: Iterator[Item], depth: int) -> Iterator[Item]:
    """The same items, each made in a thread of its own while earlier ones are still in use."""
    end: list[Item] = []
    with ThreadPoolExecutor(1, "ahead") as one:

        def following() -> Sequence[Item]:
            return next(([item] for item in items), end)

        waiting = deque(one.submit(following) for _ in range(depth))
        try:
            while found := waiting.popleft().result():
                waiting.append(one.submit(following))
                yield found[0]
        finally:
            for future in waiting:
                future.cancel()
