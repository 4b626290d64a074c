"""Second moments in 8 bits: a logarithmic code for every entry, with a range of its own for every block of 256.

Second moments span many decades, so levels are spaced evenly in log v, from the smallest positive value of the block to
its largest. An entry is off by half a level at most: by 4 % where a block spans eight decades. Zero stays zero.

All values lie on one grid of 256 per octave, a table in memory. A block's range is two integers: the place of its code
1 on the grid, and the distance of one code from the next. Reading a value back is a look-up, which gives the same bits
however a tensor is cut.
"""

import math
from functools import cache

import torch
from torch import Tensor

CODES, RANGES = ".codes", ".ranges"
"""What follows a parameter's name in the names of its codes (uint8, in its shape) and ranges (int32, `[blocks, 2]`)."""

BLOCK_ENTRIES = 256
"""Entries of a block, consecutive in flat order; the last block may be shorter."""

PER_OCTAVE = 256
"""Grid values from one power of two to the next."""

_LEVELS = 255
"""Codes that stand for positive values: 1 to 255."""

_LOWEST, _HIGHEST = -149, 128
"""Exponents of two that bound fp32's positive values: 2^−149 is the smallest, and all are below 2^128."""


def pays(shape: tuple[int, ...]) -> bool:
    """Whether a tensor is coded; vectors stay as they are."""
    return len(shape) > 1


def blocks_of(entries: int) -> int:
    """Number of blocks of so many entries."""
    return -(-entries // BLOCK_ENTRIES)


def encode(values: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, uint8 `[n]`, and ranges, int32 `[blocks, 2]`, of flat values ≥ 0 that begin at a block."""
    entries = values.numel()
    padded = torch.zeros(blocks_of(entries), BLOCK_ENTRIES)
    padded.view(-1)[:entries] = values
    places = torch.bucketize(padded, _middles(), out_int32=True)  # of the nearest grid value
    positive = padded > 0
    highest = torch.where(positive, places, -1).amax(dim=1).clamp(min=0)
    lowest = torch.where(positive, places, len(_grid())).amin(dim=1).minimum(highest)
    step = torch.ceil((highest - lowest) / (_LEVELS - 1)).to(torch.int32).clamp(min=1)
    above = (places - lowest[:, None] + step[:, None] // 2) // step[:, None]
    codes = torch.where(positive, above + 1, 0).to(torch.uint8)
    return codes.view(-1)[:entries].clone(), torch.stack([lowest, step], dim=1).to(torch.int32)


def decode(codes: Tensor, ranges: Tensor, start: int, out: Tensor) -> None:
    """Write values, fp32, into `out`.

    Args:
        codes: of the entries from flat index `start` on, uint8 `[n]`.
        ranges: of all blocks that they touch, int32 `[blocks, 2]`.
        start: flat index of the first entry.
        out: fp32, `[n]`.
    """
    skipped = start % BLOCK_ENTRIES
    lowest, step = (
        column[:, None].expand(-1, BLOCK_ENTRIES).reshape(-1)[skipped : skipped + len(codes)]
        for column in ranges.unbind(dim=1)
    )
    grid = _grid()
    places = (lowest + (codes.to(torch.int32) - 1) * step).clamp_(0, len(grid) - 1)
    torch.index_select(grid, 0, places, out=out)
    out.masked_fill_(codes == 0, 0.0)


def are_ranges(ranges: Tensor) -> bool:
    """Whether every range lies on the grid."""
    return bool(
        (ranges[:, 0] >= 0).all()
        and (ranges[:, 0] < len(_grid())).all()
        and (ranges[:, 1] > 0).all()
        and (ranges[:, 1] <= len(_grid())).all()
    )


@cache
def _grid() -> Tensor:
    """The values that codes can stand for, ascending: 2^(i/256), fp32, as far as they are finite there."""
    octave = [math.pow(2.0, place / PER_OCTAVE) for place in range(PER_OCTAVE)]
    return torch.tensor(
        [math.ldexp(value, exponent) for exponent in range(_LOWEST, _HIGHEST) for value in octave], dtype=torch.float32
    )


@cache
def _middles() -> Tensor:
    """What divides one grid value's surroundings from the next one's."""
    grid = _grid().to(torch.float64)
    return ((grid[1:] + grid[:-1]) / 2).to(torch.float32)
