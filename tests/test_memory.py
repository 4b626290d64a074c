"""How far memory grows, children included, pages that are shared counted once."""

import mmap
import os
import sys
import time

import pytest

from harness.memory import PeakMemory, family, proportional_bytes

MEGABYTE = 2**20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def test_the_peak_counts_children_and_shared_pages_once() -> None:
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
    assert 95 <= memory.bytes / MEGABYTE <= 135  # 40 + 60, the child's interpreter, and what writing takes


def test_what_is_given_back_still_counts() -> None:
    with PeakMemory() as memory:
        block = mmap.mmap(-1, 30 * MEGABYTE)
        for page in range(0, len(block), 4096):
            block[page] = 1
        time.sleep(0.3)
        block.close()
    assert memory.bytes is not None
    assert memory.bytes >= 29 * MEGABYTE


def test_a_process_that_is_gone_takes_nothing() -> None:
    assert proportional_bytes(2**22 + 1) == (0, 0)
    assert family(2**22 + 1) == [2**22 + 1]
