"""Adam in 8 bits (Dettmers et al. 2022, arXiv:2110.02861): codes into a table, with a scale for each block."""

import torch
from torch import Tensor

from harness.errors import GraftbenchError

BLOCK_SIZES = (256, 2048)
"""What bitsandbytes has used: entries that share a scale."""

_BLOCKS_AT_A_TIME = 1024


def block_size(where: str, entries: int, scales: int) -> int:
    """Entries in a block, from how many scales there are.

    Raises:
        GraftbenchError: no size that is in use gives so many.
    """
    for size in BLOCK_SIZES:
        if -(-entries // size) == scales:
            return size
    raise GraftbenchError(
        f"{where}: {scales} scales for {entries} entries of 8-bit state, which blocks of "
        f"{' or '.join(map(str, BLOCK_SIZES))} do not give; the file is damaged, or of another library"
    )


def dequantised(codes: Tensor, scales: Tensor, table: Tensor, size: int) -> Tensor:
    """table[code] · scale, block by block: fp32, in the shape of `codes`.

    Args:
        codes: uint8, any shape.
        scales: the largest value of each block, fp32, `[blocks]`.
        table: the values from 0 to 1 that codes stand for, fp32, `[256]`.
        size: entries in a block, counted flat.
    """
    flat, out = codes.reshape(-1), torch.empty(codes.numel())
    for first in range(0, len(scales), _BLOCKS_AT_A_TIME):
        start, stop = first * size, min((first + _BLOCKS_AT_A_TIME) * size, len(flat))
        values = table[flat[start:stop].to(torch.int32)]
        own = scales[first : first + _BLOCKS_AT_A_TIME].repeat_interleave(size)
        torch.mul(values, own[: stop - start], out=out[start:stop])
    return out.view(codes.shape)
