"""A file of second moments written anew in another form, and how far what is read back lies from what was there."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from harness.checkpoints.layout import SCRATCH_ITEM_BYTES, TensorInfo
from harness.curvature import blocks
from harness.curvature.keys import PARTS
from harness.curvature.low_rank import DEFAULT_RANK
from harness.curvature.second_moments import PIECE_ENTRIES, SecondMoments
from harness.curvature.stored import Form, applies, coded, factors_of, sums_of
from harness.curvature.streaming import streamed_second_moments
from harness.errors import GraftbenchError


@dataclass(frozen=True)
class Reconstruction:
    """How far v̂, read back from a compressed file, lies from v, over all parameters, those kept whole included."""

    mean_error: float
    """Mean of |log₁₀ v̂ − log₁₀ v| over the entries where both are positive: in decades."""
    root_mean_square_error: float
    """Root of the mean of its square."""
    largest_error: float
    """The largest of it."""
    compared: int
    """Entries where both are positive."""
    zeros_kept: int
    """Entries where both are zero."""
    zeros_filled: int
    """Entries that were zero and no longer are."""
    lost: int
    """Entries that were positive and are zero now: their log error is infinite, and no mean has it."""


@dataclass(frozen=True)
class CompressionReport:
    """What compressing a file has made of it."""

    path: Path
    parameters: int
    kept_whole: int
    """Parameters that the form does not apply to, such as vectors."""
    bytes_before: int
    """Of all files of the source."""
    bytes_after: int
    reconstruction: Reconstruction


def compress_file(source: Path, out: Path, form: Form, rank: int = DEFAULT_RANK) -> CompressionReport:
    """Write second moments in a form; what the form does not apply to is kept whole, in fp32.

    No more than a piece of a matrix is in memory, beside its factors.

    Args:
        source: a file, an index or a folder of second moments or Fisher information; see `SecondMoments`.
        out: the file to write.
        form: the form.
        rank: rank of the factors; of no matter to other forms.

    Raises:
        GraftbenchError: the source cannot be read or is compressed already, or `out` exists.
    """
    if os.path.lexists(out):
        raise GraftbenchError(f"{out} exists already; choose another out= or remove it")
    with SecondMoments(source) as moments:
        _require_whole(moments)
        shapes, dtypes = _parts(moments, form, rank)
        metadata = replace(moments.metadata, compression=_described(form, rank))
        with streamed_second_moments(out, shapes, metadata, dtypes) as writer:
            for key, start, part in _compressed(moments, form, rank):
                writer.write_part(key, start, part)
        with SecondMoments(out) as compressed:
            error = reconstruction_error(moments, compressed)
    return CompressionReport(
        path=out,
        parameters=len(moments.tensors),
        kept_whole=sum(not applies(form, info.shape, rank) for info in moments.tensors.values()),
        bytes_before=sum(file.stat().st_size for file in moments.files),
        bytes_after=out.stat().st_size,
        reconstruction=error,
    )


def reconstruction_error(full: SecondMoments, compressed: SecondMoments) -> Reconstruction:
    """Compare two files of the same parameters, piece by piece."""
    total = square = torch.zeros((), dtype=torch.float64)
    largest, compared, kept, filled, lost = 0.0, 0, 0, 0, 0
    for before, after in _pieces_of_both(full, compressed):
        positive, remains = before > 0, after > 0
        both = positive & remains
        apart = (after[both].to(torch.float64).log10() - before[both].to(torch.float64).log10()).abs()
        total, square = total + apart.sum(), square + apart.square().sum()
        largest = max(largest, float(apart.amax()) if len(apart) else 0.0)
        compared += len(apart)
        kept += int((~positive & ~remains).sum())
        filled += int((~positive & remains).sum())
        lost += int((positive & ~remains).sum())
    count = max(compared, 1)
    return Reconstruction(float(total) / count, (float(square) / count) ** 0.5, largest, compared, kept, filled, lost)


def _require_whole(moments: SecondMoments) -> None:
    done = [name for name in moments.tensors if moments.stored(name).form is not None]
    if done:
        raise GraftbenchError(
            f"{moments.path} is compressed already ('{done[0]}' as {moments.stored(done[0]).form}), and errors would "
            "add up; compress the full second moments"
        )
    if moments.unreadable:
        moments.stored(next(iter(moments.unreadable)))
    if not moments.tensors:
        raise GraftbenchError(f"{moments.path} holds no second moments")


def _described(form: Form, rank: int) -> str:
    words = {"sums": "row and column sums", "rank": f"factors of rank {rank}", "blocks": "8 bits in blocks of "}
    return words[form] + (str(blocks.BLOCK_ENTRIES) if form == "blocks" else "")


def _parts(moments: SecondMoments, form: Form, rank: int) -> tuple[dict[str, tuple[int, ...]], dict[str, torch.dtype]]:
    """Shapes of the tensors of the compressed file, and data types where they are not fp32."""
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype] = {}
    for name, info in moments.tensors.items():
        if not applies(form, info.shape, rank):
            shapes[name] = info.shape
            continue
        first, second = (name + suffix for suffix in PARTS[form])
        if form == "blocks":
            shapes |= {first: info.shape, second: (blocks.blocks_of(info.entries), 2)}
            dtypes |= {first: torch.uint8, second: torch.int32}
        elif form == "rank":
            shapes |= {first: (info.shape[0], rank), second: (rank, info.shape[1])}
        else:
            shapes |= {first: info.shape[:1], second: info.shape[1:]}
    return shapes, dtypes


def _compressed(moments: SecondMoments, form: Form, rank: int) -> Iterator[tuple[str, int, Tensor]]:
    """Name, first flat index and values of every part of the file; several matrices are worked on at the same time."""
    streamed = [info for info in moments.tensors.values() if form == "blocks" or not applies(form, info.shape, rank)]
    for info in streamed:
        yield from _coded(moments, info) if applies(form, info.shape) else _copied(moments, info)
    matrices = [info for info in moments.tensors.values() if info not in streamed]

    def parts_of(info: TensorInfo) -> tuple[Tensor, Tensor]:
        stored = moments.stored(info.name)
        if form == "sums":
            return sums_of(stored, info.name, info.shape)
        factors = factors_of(stored, info.name, info.shape, rank)
        return factors.left, factors.right

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for info, parts in zip(matrices, pool.map(parts_of, matrices), strict=True):
            for suffix, part in zip(PARTS[form], parts, strict=True):
                yield info.name + suffix, 0, part


def _copied(moments: SecondMoments, info: TensorInfo) -> Iterator[tuple[str, int, Tensor]]:
    scratch = torch.empty(PIECE_ENTRIES * SCRATCH_ITEM_BYTES, dtype=torch.uint8)
    for start in range(0, info.entries, PIECE_ENTRIES):
        stop = min(start + PIECE_ENTRIES, info.entries)
        yield info.name, start, moments.fetch(info.name, start, stop, scratch)


def _coded(moments: SecondMoments, info: TensorInfo) -> Iterator[tuple[str, int, Tensor]]:
    codes, ranges = (info.name + suffix for suffix in PARTS["blocks"])
    for start, code, block_ranges in coded(moments.stored(info.name), info.entries, 0, info.entries):
        yield codes, start, code
        yield ranges, 2 * (start // blocks.BLOCK_ENTRIES), block_ranges


def _pieces_of_both(full: SecondMoments, compressed: SecondMoments) -> Iterator[tuple[Tensor, Tensor]]:
    scratch = [torch.empty(PIECE_ENTRIES * SCRATCH_ITEM_BYTES, dtype=torch.uint8) for _ in range(2)]
    for name, info in full.tensors.items():
        for start in range(0, prod(info.shape), PIECE_ENTRIES):
            stop = min(start + PIECE_ENTRIES, info.entries)
            yield full.fetch(name, start, stop, scratch[0]), compressed.fetch(name, start, stop, scratch[1])
