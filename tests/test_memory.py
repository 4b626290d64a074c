"""How far memory grows, children included, pages that are shared counted once."""

import mmap
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from harness.memory import PeakMemory, family, give_back_freed, private_bytes, proportional_bytes

MEGABYTE = 2**20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def alone(measure: Callable[[], float]) -> float:
    """What is measured in a fresh process: this one is large after other tests, and gives memory back when it likes."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure).result()


def growth_with_a_child() -> float:
    give_back_freed()
    before = private_bytes(os.getpid())
    with PeakMemory() as memory:
        shared = mmap.mmap(-1, 40 * MEGABYTE)
        shared.write(b"x" * len(shared))
        if not (child := os.fork()):
            own = bytearray(b"y") * (60 * MEGABYTE)
            shared.seek(0)
            assert shared.read(1) == b"x"
            time.sleep(1.0)
            os._exit(len(own) % 2)
        os.waitpid(child, 0)
        shared.close()
    assert memory.bytes is not None
    return (memory.bytes - before) / MEGABYTE


def growth_of_what_is_given_back() -> float:
    give_back_freed()
    before = private_bytes(os.getpid())
    with PeakMemory() as memory:
        block = mmap.mmap(-1, 30 * MEGABYTE)
        for page in range(0, len(block), 4096):
            block[page] = 1
        time.sleep(0.3)
        block.close()
    assert memory.bytes is not None
    return (memory.bytes - before) / MEGABYTE


def growth_after_freeing() -> float:
    small = [bytes(1000) for _ in range(60_000)]
    held = private_bytes(os.getpid())
    del small
    with PeakMemory() as memory:
        time.sleep(0.1)
    assert memory.bytes is not None
    return (memory.bytes - held) / MEGABYTE


def test_the_peak_counts_children_and_shared_pages_once() -> None:
    assert 95 <= alone(growth_with_a_child) <= 135  # 40 + 60, the child's interpreter, and what writing takes


def test_what_is_given_back_still_counts() -> None:
    assert 29 <= alone(growth_of_what_is_given_back) <= 60


def test_what_was_freed_before_does_not_count() -> None:
    """Otherwise the second of two merges in one process would seem to take more than the first, or less."""
    assert alone(growth_after_freeing) < -40


def test_a_process_that_is_gone_takes_nothing() -> None:
    assert proportional_bytes(2**22 + 1) == (0, 0)
    assert family(2**22 + 1) == [2**22 + 1]
