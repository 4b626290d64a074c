"""How a worker's memory is given back: not at all, since the next tile asks for the same again."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""The parameters' numbers in glibc's malloc.h."""
_LARGEST_KEPT = 1 << 25
"""Larger blocks go back at once; glibc allows no more than 32 MB."""
_FREE_AT_MOST = 1 << 28


def keep_freed_memory() -> None:
    """Let this process keep the small blocks that it frees, for good; where the C library is not glibc, do nothing.

    A method makes and frees a dozen tensors of a megabyte for every tile. By default glibc hands what is free at the
    heap's end back to the system each time, which then has to clear every page again: three quarters of a merge.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
    mallopt(_TRIM_THRESHOLD, _FREE_AT_MOST)
