"""How a model is cut: pieces are what one thread reads, merges and hands on at a time, tiles what arithmetic sees."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.checkpoints import TensorInfo
from methods.interface import Granularity

PIECE_ENTRIES = 1 << 20
TILE_ENTRIES = 1 << 16

_ALIGNMENT = 64
"""Pieces begin at multiples of this many entries, or rows.

Processors work on vectors, and on what is left over at the end one by one, where the last bit may differ (a fused
multiplication, a power). So the end of a parameter is the only place where anything may be left over.
"""


@dataclass(frozen=True)
class Piece:
    """A range of one parameter's flat entries."""

    info: TensorInfo
    start: int
    stop: int

    @property
    def entries(self) -> int:
        """Number of entries."""
        return self.stop - self.start

    @property
    def is_last(self) -> bool:
        """Whether the parameter ends here."""
        return self.stop == self.info.entries

    def shape(self, granularity: Granularity) -> tuple[int, ...]:
        """The shape in which a method of that granularity sees it."""
        if granularity == "matrix":
            return self.info.shape
        if granularity == "row" and len(self.info.shape) > 1:
            width = row_entries(self.info)
            return (self.entries // width if width else 0, *self.info.shape[1:])
        return (self.entries,)


def row_entries(info: TensorInfo) -> int:
    """Entries of one row of the first dimension; of all of a vector or a scalar, which count as one row."""
    return info.entries // info.shape[0] if len(info.shape) > 1 and info.shape[0] else info.entries


def cut(parameters: Sequence[TensorInfo], granularity: Granularity, entries: int) -> Iterator[Piece]:
    """Cut parameters, in their order, into pieces of about so many entries, or of what the method must see at once."""
    for info in parameters:
        yield from subdivide(Piece(info, 0, info.entries), granularity, entries)


def subdivide(piece: Piece, granularity: Granularity, entries: int) -> Iterator[Piece]:
    """Cut a piece into smaller ones of about so many entries, at least one, even of a parameter without entries."""
    step = entries_at_once(piece.info, granularity, entries)
    for start in range(piece.start, max(piece.stop, piece.start + 1), step):
        yield Piece(piece.info, start, min(start + step, piece.stop))


def entries_at_once(info: TensorInfo, granularity: Granularity, entries: int) -> int:
    """The largest piece that comes out when pieces of about so many entries are asked for."""
    if granularity == "matrix":
        return max(info.entries, 1)
    width = max(row_entries(info), 1) if granularity == "row" else 1
    return -(-max(entries // width, 1) // _ALIGNMENT) * _ALIGNMENT * width
