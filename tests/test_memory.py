"""How far memory grows, children included, pages that are shared counted once."""

import mmap
import os
import sys
import time

import pytest

from harness.memory import PeakMemory, family, give_back_freed, private_bytes, proportional_bytes

MEGABYTE = 2**20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def test_the_peak_counts_children_and_shared_pages_once() -> None:
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
    assert 95 <= (memory.bytes - before) / MEGABYTE <= 135  # 40 + 60, the child's interpreter, and what writing takes


def test_what_is_given_back_still_counts() -> None:
    give_back_freed()
    before = private_bytes(os.getpid())
    with PeakMemory() as memory:
        block = mmap.mmap(-1, 30 * MEGABYTE)
        for page in range(0, len(block), 4096):
            block[page] = 1
        time.sleep(0.3)
        block.close()
    assert memory.bytes is not None
    assert 29 * MEGABYTE <= memory.bytes - before <= 60 * MEGABYTE


def test_what_was_freed_before_does_not_count() -> None:
    """Otherwise the second of two merges in one process would seem to take more than the first, or less."""
    small = [bytes(1000) for _ in range(60_000)]
    held = private_bytes(os.getpid())
    del small
    with PeakMemory() as memory:
        time.sleep(0.1)
    assert memory.bytes is not None
    assert memory.bytes < held - 40 * MEGABYTE


def test_a_process_that_is_gone_takes_nothing() -> None:
    assert proportional_bytes(2**22 + 1) == (0, 0)
    assert family(2**22 + 1) == [2**22 + 1]
