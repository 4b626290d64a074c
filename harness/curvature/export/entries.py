"""One parameter's entry in the state of an optimizer: Adam's, an 8-bit Adam's, or Adafactor's."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from harness.curvature.compression import COLUMN, ROW
from harness.curvature.export.eight_bit import block_size, dequantised
from harness.curvature.export.state import ParameterMoments, StoredState
from harness.errors import GraftbenchError

Kind = Literal["adam", "adam8bit", "adafactor"]

_FACTORED = (("exp_avg_sq_row", "exp_avg_sq_col"), ("row_var", "col_var"))
"""Adafactor's row and column means, as transformers and torch.optim call them."""

_STATISTICS = (*(name for pair in _FACTORED for name in pair), "exp_avg_sq", "variance", "state2", "qmap2", "absmax2")
_WRAPPED = "__bnb_optimizer_quant_state__"


@dataclass(frozen=True)
class Entry:
    """Second moments found in an entry, and whose they are."""

    kind: Kind
    moments: ParameterMoments


def read_entry(where: str, state: Mapping[str, Any]) -> Entry | None:
    """The second moments in one parameter's entry; None if it has no state, as a parameter that was never stepped.

    Args:
        where: file and parameter, for an error.
        state: what the optimizer keeps of it: `StoredState`s, and numbers.

    Raises:
        GraftbenchError: it keeps no second moments.
    """
    inner = state.get(_WRAPPED)
    found = {**state, **inner} if isinstance(inner, Mapping) else dict(state)
    tensors = {name: found[name] for name in _STATISTICS if isinstance(found.get(name), StoredState)}
    for row, column in _FACTORED:
        if row in tensors and column in tensors:
            return Entry("adafactor", _factored(where, tensors[row], tensors[column], kept=row == "row_var"))
    if "variance" in tensors:
        return Entry("adafactor", _whole(tensors["variance"]))
    if "exp_avg_sq" in tensors:
        return Entry("adafactor" if "RMS" in found else "adam", _whole(tensors["exp_avg_sq"]))
    if "state2" in tensors:
        return Entry("adam8bit", _eight_bit(where, tensors))
    kept = sorted(str(name) for name in found if name != "step")
    if not kept:
        return None
    raise GraftbenchError(
        f"{where}: the optimizer keeps {', '.join(kept)}, but no second moments (exp_avg_sq) that can be read; "
        "export from a run with Adam, AdamW, 8-bit Adam or Adafactor, or estimate the Fisher information instead"
    )


def _whole(stored: StoredState) -> ParameterMoments:
    return ParameterMoments(stored.shape, {"": stored.shape}, lambda: {"": stored.read()})


def _eight_bit(where: str, tensors: Mapping[str, StoredState]) -> ParameterMoments:
    state = tensors["state2"]
    if "qmap2" not in tensors:
        return _whole(state)  # small parameters and embeddings are kept in fp32
    if "absmax2" not in tensors:
        raise GraftbenchError(
            f"{where}: 8-bit state of a single scale per tensor, from bitsandbytes before blocks; resume the run with "
            "a newer one and save again"
        )
    blocks = block_size(where, torch.Size(state.shape).numel(), tensors["absmax2"].shape[0])

    def read() -> dict[str, Tensor]:
        codes, scales, table = (tensors[name].read() for name in ("state2", "absmax2", "qmap2"))
        return {"": dequantised(codes, scales, table, blocks)}

    return ParameterMoments(state.shape, {"": state.shape}, read)


def _factored(where: str, row: StoredState, column: StoredState, kept: bool) -> ParameterMoments:
    """Row and column means; their products over the mean of all are those of our sums over the total.

    `kept` says whether the dimension that was averaged over is there, with length 1.
    """
    rows, columns = row.shape[-2 if kept else -1], column.shape[-1]
    leading = row.shape[: -2 if kept else -1]
    if column.shape != ((*leading, 1, columns) if kept else (*leading, columns)):
        raise GraftbenchError(
            f"{where}: row and column means of shapes {list(row.shape)} and {list(column.shape)} are of no one matrix; "
            "save the checkpoint again"
        )
    means = functools.partial(_means, row, column, (*leading, rows), (*leading, columns))

    def sums() -> dict[str, Tensor]:
        row_means, column_means = means()
        return {ROW: row_means * columns, COLUMN: column_means * rows}

    def rebuilt() -> dict[str, Tensor]:
        row_means, column_means = means()
        shares = row_means / row_means.mean(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return {"": shares.unsqueeze(-1) * column_means.unsqueeze(-2)}

    shape = (*leading, rows, columns)
    if leading:
        return ParameterMoments(shape, {"": shape}, rebuilt)
    return ParameterMoments(shape, {ROW: (rows,), COLUMN: (columns,)}, sums)


def _means(
    row: StoredState, column: StoredState, row_shape: tuple[int, ...], column_shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    return row.read().to(torch.float32).reshape(row_shape), column.read().to(torch.float32).reshape(column_shape)
