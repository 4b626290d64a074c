"""One parameter's second moments as a file holds them, whole or compressed, and as any range of them is read."""

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from harness.checkpoints.layout import SCRATCH_ITEM_BYTES
from harness.checkpoints.safetensors_file import SafetensorsFile
from harness.curvature import blocks, low_rank
from harness.curvature.compression import TILE_ENTRIES, Factors, row_and_column_sums
from harness.errors import GraftbenchError

Form = Literal["sums", "rank", "blocks"]
"""Row and column sums of matrices, low-rank factors of matrices, or 8-bit codes of anything but vectors."""

CODED_AT_ONCE = 65_536
"""Entries that are coded or decoded together, so that they stay in cache: a multiple of a block's."""

_LARGEST = torch.finfo(torch.float32).max


class Stored(Protocol):
    """What gives any range of one parameter's second moments, raw."""

    path: Path
    """The file, for errors."""
    form: Form | None
    """What it is compressed to; None for nothing."""
    dtype: torch.dtype
    """The data type that `fetch` gives."""

    def fetch(self, start: int, stop: int, scratch: Tensor) -> Tensor:
        """Entries `start` to `stop`, flat, at the beginning of `scratch`; the same bits however it is cut.

        Raises:
            GraftbenchError: values are negative, NaN or Inf, or cannot be read; file and tensor are named.
        """

    def announce(self, start: int, stop: int) -> None:
        """Tell the system that a range will be fetched soon."""


class Whole:
    """One tensor, as it is stored (fp64, fp32, fp16 or bf16)."""

    def __init__(self, file: SafetensorsFile, key: str) -> None:
        self._file, self._key = file, key
        self.path = file.path
        self.form: Form | None = None
        self.dtype = file.tensors[key].dtype

    def fetch(self, start: int, stop: int, scratch: Tensor) -> Tensor:
        """Entries as they are stored."""
        return require_moments(self._file.read(self._key, start, stop, scratch), self.path, self._key)

    def announce(self, start: int, stop: int) -> None:
        """Tell the system that a range will be fetched soon."""
        self._file.announce(self._key, start, stop)


class Factored:
    """A matrix as factors, which are read or computed by whichever thread asks first, and kept."""

    def __init__(
        self, path: Path, form: Form, make: Callable[[], Factors], announce: Callable[[int, int], None] | None = None
    ) -> None:
        self.path = path
        self.form: Form | None = form
        self.dtype = torch.float32
        self._make, self._announce = make, announce
        self._making = threading.Lock()
        self._factors: Factors | None = None

    def fetch(self, start: int, stop: int, scratch: Tensor) -> Tensor:
        """Entries of the factors' product."""
        with self._making:
            if self._factors is None:
                self._factors = self._make()
        out = _as_fp32(scratch, stop - start)
        self._factors.fill(out, start)
        return out

    def announce(self, start: int, stop: int) -> None:
        """Tell the system that the matrix will be read soon, if it must be."""
        if self._factors is None and self._announce is not None:
            self._announce(start, stop)


class Coded:
    """8-bit codes in blocks, decoded as they are read."""

    def __init__(self, codes: SafetensorsFile, ranges: SafetensorsFile, name: str) -> None:
        self._codes, self._ranges, self._name = codes, ranges, name
        self.path = codes.path
        self.form: Form | None = "blocks"
        self.dtype = torch.float32

    def fetch(self, start: int, stop: int, scratch: Tensor) -> Tensor:
        """Entries decoded."""
        out = _as_fp32(scratch, stop - start)
        for begin in range(start, stop, CODED_AT_ONCE):
            end = min(begin + CODED_AT_ONCE, stop)
            first, last = begin // blocks.BLOCK_ENTRIES, blocks.blocks_of(end)
            codes = self._codes.read(self._name + blocks.CODES, begin, end, _room(end - begin))
            ranges = self._ranges.read(self._name + blocks.RANGES, 2 * first, 2 * last, _room(2 * (last - first)))
            if not blocks.are_ranges(ranges := ranges.view(-1, 2)):
                raise GraftbenchError(
                    f"{self._ranges.path}: block ranges of '{self._name}' lie outside of what fp32 can hold: the file "
                    "is damaged; compress the second moments again"
                )
            blocks.decode(codes, ranges, begin, out[begin - start : end - start])
        return out

    def announce(self, start: int, stop: int) -> None:
        """Tell the system that a range will be fetched soon."""
        self._codes.announce(self._name + blocks.CODES, start, stop)


class Coding:
    """8-bit codes made on the fly, and decoded as those of a file would be."""

    def __init__(self, inner: Stored, entries: int) -> None:
        self._inner, self._entries = inner, entries
        self.path = inner.path
        self.form: Form | None = "blocks"
        self.dtype = torch.float32

    def fetch(self, start: int, stop: int, scratch: Tensor) -> Tensor:
        """Entries coded and decoded; whole blocks are read for it."""
        out = _as_fp32(scratch, stop - start)
        for begin, codes, ranges in coded(self._inner, self._entries, start, stop):
            first, last = max(begin, start), min(begin + len(codes), stop)
            blocks.decode(codes[first - begin : last - begin], ranges, first, out[first - start : last - start])
        return out

    def announce(self, start: int, stop: int) -> None:
        """Tell the system that a range will be fetched soon."""
        self._inner.announce(start, stop)


def coded(inner: Stored, entries: int, start: int, stop: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Codes and ranges of the blocks that entries `start` to `stop` touch, part by part, and where each part begins."""
    scratch = _room(CODED_AT_ONCE)
    end = min(blocks.blocks_of(stop) * blocks.BLOCK_ENTRIES, entries) if stop > start else start
    for begin in range(start - start % blocks.BLOCK_ENTRIES, end, CODED_AT_ONCE):
        yield begin, *blocks.encode(inner.fetch(begin, min(begin + CODED_AT_ONCE, end), scratch).to(torch.float32))


def sums_of(inner: Stored, name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Row and column sums of a matrix, read in tiles.

    Raises:
        GraftbenchError: values are no second moments, or the sums do not fit into fp32.
    """
    row, column = row_and_column_sums(shape[0], shape[1], _reader(inner))
    return require_moments(row, inner.path, name), require_moments(column, inner.path, name)


def factors_of(inner: Stored, name: str, shape: tuple[int, ...], rank: int) -> Factors:
    """Factors of a matrix, read in tiles many times; see `factorise`."""
    return low_rank.factorise(name, *sums_of(inner, name, shape), _reader(inner), rank)


def applies(form: Form, shape: tuple[int, ...], rank: int = low_rank.DEFAULT_RANK) -> bool:
    """Whether a tensor of that shape takes the form; otherwise it is kept whole."""
    if form == "blocks":
        return blocks.pays(shape)
    return len(shape) == 2 and (form == "sums" or low_rank.pays(shape, rank))


def compressed(inner: Stored, name: str, shape: tuple[int, ...], form: Form) -> Stored:
    """The parameter in a form, computed on the fly: what a file in that form would give."""
    if inner.form == form or not applies(form, shape):
        return inner
    if form == "blocks":
        return Coding(inner, math.prod(shape))
    if form == "sums":
        return Factored(inner.path, form, lambda: Factors.of_sums(*sums_of(inner, name, shape)), inner.announce)
    rank = low_rank.DEFAULT_RANK
    return Factored(inner.path, form, lambda: factors_of(inner, name, shape, rank), inner.announce)


def require_moments(values: Tensor, path: Path, key: str) -> Tensor:
    """The values, if they are second moments; NaN passes through aminmax and fails both comparisons.

    Raises:
        GraftbenchError: they are negative, NaN or Inf.
    """
    if values.numel():
        lowest, highest = (float(extreme) for extreme in torch.aminmax(values))
        if not (lowest >= 0 and highest <= _LARGEST):
            found = "NaN" if math.isnan(lowest) else f"values from {lowest} to {highest}"
            raise GraftbenchError(
                f"{path}: second moments of '{key}' hold {found}, but must be ≥ 0 and finite in fp32; export them again"
            )
    return values


def _reader(inner: Stored) -> Callable[[int, int], Tensor]:
    scratch = _room(TILE_ENTRIES)
    return lambda start, stop: inner.fetch(start, stop, scratch).to(torch.float32)


def _room(entries: int) -> Tensor:
    return torch.empty(entries * SCRATCH_ITEM_BYTES, dtype=torch.uint8)


def _as_fp32(scratch: Tensor, entries: int) -> Tensor:
    return scratch[: entries * torch.float32.itemsize].view(torch.float32)
