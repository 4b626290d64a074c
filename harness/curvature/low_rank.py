"""Second moments as a product of non-negative matrices of low rank, from which a matrix is read back as left·right.

Of all products of rank k it is to have the least generalised Kullback-Leibler divergence from the matrix. For k = 1
that is (row/Σ)·col, what row and column sums give (Adafactor, arXiv:1804.04235, §3): more ranks refine the sums.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from harness.curvature.compression import TILE_ENTRIES, Factors
from harness.files import text_digest

LEFT, RIGHT = ".left", ".right"
"""What follows a parameter's name in the names of its factors."""

DEFAULT_RANK = 4

UPDATES = 50
"""Of each factor. On the embedded zoo's moments twice as many lower the mean error of log v by less than a tenth."""


def pays(shape: tuple[int, ...], rank: int) -> bool:
    """Whether factors of that rank are smaller than the matrix; anything but a matrix has none."""
    return len(shape) == 2 and rank * sum(shape) < shape[0] * shape[1]


def factorise(name: str, row: Tensor, column: Tensor, read: Callable[[int, int], Tensor], rank: int) -> Factors:
    """Non-negative factors of a matrix that is read in pieces, by multiplicative updates.

    Lee and Seung 2001 ("Algorithms for Non-negative Matrix Factorization", theorem 2): neither factor turns negative,
    no update raises the divergence, and the product keeps the matrix's column sums. All is computed in fp64, tile by
    tile, in tiles that depend on the shape alone and that torch works through in one thread, so that the same matrix
    gives the same factors whatever the number of threads.

    Args:
        name: the parameter's, which seeds the random beginning.
        row: its row sums, `[rows]`.
        column: its column sums, `[columns]`.
        read: gives the entries from one flat index to another, fp32 or less precise; asked for each entry many times.
        rank: k.
    """
    rows, columns = len(row), len(column)
    row, column = row.to(torch.float64), column.to(torch.float64)
    total = row.sum()
    if not total > 0:
        return Factors(torch.zeros(rows, rank), torch.zeros(rank, columns))
    draw = torch.Generator().manual_seed(int(text_digest(name)[:15], 16))
    left = (row / total)[:, None] * (0.5 + torch.rand(rows, rank, generator=draw, dtype=torch.float64))
    right = column / rank * (0.5 + torch.rand(rank, columns, generator=draw, dtype=torch.float64))
    for _ in range(UPDATES):
        left, right = _update(left, right, read)
    shares = left.sum(dim=0)  # the left factor's columns are made to sum to one, so that the right has the scale
    left = torch.where(shares > 0, left / shares, 0.0)
    return Factors(left.to(torch.float32), (right * shares[:, None]).to(torch.float32))


def _update(left: Tensor, right: Tensor, read: Callable[[int, int], Tensor]) -> tuple[Tensor, Tensor]:
    """One update of either factor: the left's rows one after the other, and the right with the new left."""
    (rows, rank), columns = left.shape, right.shape[1]
    renewed, gained = torch.empty_like(left), torch.zeros_like(right)
    weight = right.sum(dim=1)
    height, width = max(1, TILE_ENTRIES // columns), min(columns, TILE_ENTRIES)
    for top in range(0, rows, height):
        bottom = min(top + height, rows)
        spans = [(first, min(first + width, columns)) for first in range(0, columns, width)]
        tiles = [
            read(top * columns + first, (bottom - 1) * columns + last).to(torch.float64).view(bottom - top, -1)
            for first, last in spans
        ]
        old = left[top:bottom]
        numerator = torch.zeros_like(old)
        for (first, last), tile in zip(spans, tiles, strict=True):
            ratio = _ratio(tile, old, right[:, first:last])
            for k in range(rank):
                numerator[:, k] += (ratio * right[k, first:last]).sum(dim=1)
        new = torch.where(weight > 0, old * numerator / weight, 0.0)
        renewed[top:bottom] = new
        for (first, last), tile in zip(spans, tiles, strict=True):
            ratio = _ratio(tile, new, right[:, first:last])
            for k in range(rank):
                gained[k, first:last] += (ratio * new[:, k : k + 1]).sum(dim=0)
    shares = renewed.sum(dim=0)[:, None]
    return renewed, torch.where(shares > 0, right * gained / shares, 0.0)


def _ratio(tile: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """How many times the product each entry is; zero where the product is zero."""
    product = left[:, :1] * right[0]
    for k in range(1, len(right)):
        product += left[:, k : k + 1] * right[k]
    return torch.where(product > 0, tile / product, 0.0)
