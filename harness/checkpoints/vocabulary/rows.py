"""Rows of vocabulary tensors, moved to where the output has them, and the rows that a model lacks."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from harness.checkpoints.layout import SCRATCH_ITEM_BYTES, TensorInfo, TensorSource, role_and_layer

_ENTRIES_AT_ONCE = 1 << 16


class MatchedRows:
    """A `TensorSource` whose vocabulary tensors appear with the output's rows; all other tensors pass through.

    Rows that the source lacks are zero. Weights and second moments are wrapped alike.
    """

    def __init__(self, inner: TensorSource, source_rows: Tensor, rows_there: int) -> None:
        """Wrap a source.

        Args:
            inner: the tensors as the model has them.
            source_rows: the model's row for each row of the output, int64 `[rows]`; −1 where it has none.
            rows_there: number of embedding rows of the model; embedding and head tensors that have as many are matched.
        """
        self._inner = inner
        self._source_rows = source_rows
        self._begins = _beginnings(_continues(source_rows))
        rows = len(source_rows)
        self._widths = {
            name: prod(info.shape[1:]) for name, info in inner.tensors.items() if has_vocabulary_rows(info, rows_there)
        }
        self.tensors: Mapping[str, TensorInfo] = {
            name: replace(info, shape=(rows, *info.shape[1:])) if name in self._widths else info
            for name, info in inner.tensors.items()
        }

    @property
    def source(self) -> str:
        """The wrapped source's folder, file or hub name."""
        return self._inner.source

    def fetch(self, name: str, start: int, stop: int, scratch: Tensor) -> Tensor:
        """Entries of a tensor with the output's rows; see `TensorSource`. Consecutive rows are fetched together."""
        if name not in self._widths:
            return self._inner.fetch(name, start, stop, scratch)
        runs = list(self._runs(name, start, stop))
        if len(runs) == 1 and runs[0][2] == stop - start:
            _, there, count = runs[0]
            return self._inner.fetch(name, there, there + count, scratch)
        # What is gathered lies in the caller's scratch, so the source needs some of its own.
        longest = min(max((count for _, _, count in runs), default=0), _ENTRIES_AT_ONCE)
        own = torch.empty(longest * SCRATCH_ITEM_BYTES, dtype=torch.uint8)
        gathered: Tensor | None = None
        for here, there, count in runs:
            for done in range(0, count, _ENTRIES_AT_ONCE):
                size = min(count - done, _ENTRIES_AT_ONCE)
                part = self._inner.fetch(name, there + done, there + done + size, own)
                if gathered is None:
                    gathered = _zeros(scratch, stop - start, part.dtype)
                gathered[here + done : here + done + size] = part
        return _zeros(scratch, stop - start, self.tensors[name].dtype) if gathered is None else gathered

    def announce(self, name: str, start: int, stop: int) -> None:
        """Tell the system that a range will be fetched soon."""
        if name not in self._widths:
            self._inner.announce(name, start, stop)
            return
        for _, there, count in self._runs(name, start, stop):
            self._inner.announce(name, there, there + count)

    def close(self) -> None:
        """Close the source's files."""
        self._inner.close()

    def _runs(self, name: str, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Ranges that the source holds together: offset in the piece, first entry in the source, and length."""
        width = self._widths[name]
        begins, bounds = _between(self._begins, len(self._source_rows), start, stop, width)
        sources = self._source_rows[begins].tolist()
        for begin, end, source in zip(begins.tolist(), bounds, sources, strict=True):
            if source >= 0:
                first, last = max(start, begin * width), min(stop, end * width)
                yield first - start, source * width + first - begin * width, last - first


class MissingRows:
    """Rows of the vocabulary tensors that the base or experts lack, in runs that the same models lack."""

    def __init__(self, lacking: Tensor) -> None:
        """Find the runs.

        Args:
            lacking: bool `[1 + experts, rows]`, the base first; every row is held by some model.
        """
        assert not lacking.all(0).any(), "a row is held by no model"
        self._rows = lacking.shape[1]
        self._begins = _beginnings((lacking[:, 1:] == lacking[:, :-1]).all(0))
        self._lacking = lacking[:, self._begins].T.contiguous()

    def fill(self, base: Tensor, experts: Tensor, curvatures: Tensor | None, start: int, width: int) -> None:
        """Complete one piece of a vocabulary tensor in place, the same whatever the pieces.

        A row that the base lacks starts from the mean of the experts that have it, whatever their weights. An expert
        that lacks a row takes the base's, or that start: its edit is zero, and so is its curvature.

        Args:
            base: the piece, fp32 `[n]`.
            experts: the same of every expert, fp32 `[experts, n]`.
            curvatures: the same of their curvatures, or None.
            start: flat index of the piece's first entry in the tensor.
            width: entries per row.
        """
        stop = start + base.numel()
        begins, ends = _between(self._begins, self._rows, start, stop, width)
        first_run = int(torch.searchsorted(self._begins, begins[0])) if len(begins) else 0
        for run, (begin, end) in enumerate(zip(begins.tolist(), ends, strict=True), first_run):
            lacking = self._lacking[run].tolist()
            if not any(lacking):
                continue
            columns = slice(max(start, begin * width) - start, min(stop, end * width) - start)
            row = base[columns]
            if lacking[0]:
                held = [expert for expert, lacks in zip(experts, lacking[1:], strict=True) if not lacks]
                row.copy_(held[0][columns])
                for expert in held[1:]:
                    row.add_(expert[columns])
                row.div_(len(held))
            for index, lacks in enumerate(lacking[1:]):
                if lacks:
                    experts[index, columns] = row
                    if curvatures is not None:
                        curvatures[index, columns] = 0


def has_vocabulary_rows(info: TensorInfo, rows: int | None) -> bool:
    """Whether a tensor has one row for each token: embedding or head, weight or bias, as long as the embedding."""
    return bool(info.shape) and info.shape[0] == rows and role_and_layer(info.name)[0] in ("embedding", "head")


def _continues(source_rows: Tensor) -> Tensor:
    """Whether each row but the first lies directly behind its predecessor in the source, or is missing as that is."""
    before, after = source_rows[:-1], source_rows[1:]
    return ((before >= 0) & (after == before + 1)) | ((before < 0) & (after < 0))


def _beginnings(continues: Tensor) -> Tensor:
    """The rows that begin a run, given whether each row but the first continues one."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), (~continues).nonzero().flatten() + 1])


def _between(begins: Tensor, rows: int, start: int, stop: int, width: int) -> tuple[Tensor, list[int]]:
    """First rows, and rows after the last, of the runs that a range of flat entries touches."""
    if start >= stop:
        return begins[:0], []
    first = int(torch.searchsorted(begins, start // width, right=True)) - 1
    last = int(torch.searchsorted(begins, (stop - 1) // width, right=True))
    return begins[first:last], [*begins[first + 1 : last + 1].tolist(), *([rows] if last == len(begins) else [])]


def _zeros(scratch: Tensor, entries: int, dtype: torch.dtype) -> Tensor:
    return scratch[: entries * dtype.itemsize].view(dtype).zero_()
