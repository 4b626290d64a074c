"""Second moments as row and column sums, which rebuild a matrix as (row/Σ)·colᵀ (Adafactor, arXiv:1804.04235, §3).

The same matrix gives the same sums, to the bit, from memory or from a file: it is added up in fp64, tile by tile, in
tiles that depend on its shape alone, and rounded to fp32 once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ROW, COLUMN = ".row", ".col"
"""What follows a parameter's name in the names of its sums."""

TILE_ENTRIES = 32_767
"""torch adds fewer than 32,768 entries (at::internal::GRAIN_SIZE) in one thread, hence always in the same order."""


def compress(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Row and column sums of a matrix, fp32, under `<name>.row` and `<name>.col`.

    Anything but a matrix is kept whole, under its own name.
    """
    if tensor.dim() != 2:
        return {name: tensor}
    flat = tensor.detach().to("cpu", torch.float32).flatten()
    row, column = row_and_column_sums(tensor.shape[0], tensor.shape[1], lambda start, stop: flat[start:stop])
    return {name + ROW: row, name + COLUMN: column}


def row_and_column_sums(rows: int, columns: int, read: Callable[[int, int], Tensor]) -> tuple[Tensor, Tensor]:
    """The sums of a matrix that is read in pieces: fp32, `[rows]` and `[columns]`.

    Args:
        rows: number of rows.
        columns: number of columns.
        read: gives the entries from one flat index to another, fp32 or less precise; asked for each entry once.
    """
    row, column = torch.zeros(rows, dtype=torch.float64), torch.zeros(columns, dtype=torch.float64)
    # Several whole rows, or a part of one that alone is larger than a tile: contiguous in either case.
    height, width = max(1, TILE_ENTRIES // max(1, columns)), max(1, min(columns, TILE_ENTRIES))
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            bottom, right = min(top + height, rows), min(left + width, columns)
            entries = read(top * columns + left, (bottom - 1) * columns + right)
            tile = entries.view(bottom - top, right - left).to(torch.float64)
            row[top:bottom] += tile.sum(dim=1)
            column[left:right] += tile.sum(dim=0)
    return row.to(torch.float32), column.to(torch.float32)


@dataclass(frozen=True)
class Factors:
    """A matrix as the product of two of low rank, any range of which can be computed."""

    left: Tensor
    """fp32, `[rows, rank]`, ≥ 0."""
    right: Tensor
    """fp32, `[rank, columns]`, ≥ 0."""

    @classmethod
    def of_sums(cls, row: Tensor, column: Tensor) -> "Factors":
        """(row/Σ)·col: the matrix of given row and column sums. Sums that are all zero give zero.

        Σ and the division are in fp64, so that products of sums cannot underflow.
        """
        total = math.fsum(row.tolist())
        shares = row.to(torch.float64) / total if total > 0 else torch.zeros(len(row))
        return cls(shares.to(torch.float32)[:, None], column.to(torch.float32)[None])

    def fill(self, out: Tensor, start: int) -> None:
        """Write the entries from flat index `start` on into `out`, fp32 and flat.

        Each is a sum of products in the order of the ranks, every one rounded to fp32: no matrix product, which may
        order or fuse them differently from one range to another.
        """
        columns, done = self.right.shape[1], 0
        while done < len(out):
            top, first = divmod(start + done, columns)
            rows = 1 if first else max(1, (len(out) - done) // columns)
            last = min(columns, first + len(out) - done)
            piece = out[done : done + rows * (last - first)].view(rows, last - first)
            left, right = self.left[top : top + rows], self.right[:, first:last]
            torch.mul(left[:, :1], right[0], out=piece)
            for rank in range(1, len(right)):
                piece += left[:, rank : rank + 1] * right[rank]
            done += piece.numel()
