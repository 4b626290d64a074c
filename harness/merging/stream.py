"""The stream: pieces of all models are read, merged by the method, and handed on in order."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.checkpoints import TensorInfo
from harness.errors import GraftbenchError
from harness.merging.cutoff_store import CutoffStore, ExpertCutoff
from harness.merging.cutoffs import cutoffs_in_turn, find_cutoffs
from harness.merging.execution import Pool, Workbench, slot_bytes
from harness.merging.pieces import Piece, cut, subdivide
from harness.merging.plan import MergePlan
from harness.merging.scores import scored_together
from methods import Cutoff, Parameter


def merged_parameters(plan: MergePlan, store: CutoffStore | None = None) -> Iterator[tuple[str, Tensor]]:
    """Name and merged tensor of every parameter in turn, on the CPU, in the output's data type.

    This feeds a live consumer, such as a running engine, instead of the disk: no more than one whole tensor and the
    pieces at work are in memory. Tensors that are copied from the base come last.

    Args:
        plan: the merge.
        store: where cutoffs are kept for later merges; None keeps nothing.
    """
    whole = torch.empty(0)
    for piece, values in merged_pieces(plan, find_cutoffs(plan, store)):
        if piece.start == 0:
            whole = torch.empty(piece.info.entries, dtype=values.dtype)
        whole[piece.start : piece.stop] = values
        if piece.is_last:
            yield piece.info.name, whole.view(piece.info.shape)
    for info in plan.copied:
        yield info.name, plan.copy_of(info)


def merged_pieces(
    plan: MergePlan, model_cutoffs: Mapping[str, ExpertCutoff] | None, parameters: Iterable[TensorInfo] | None = None
) -> Iterator[tuple[Piece, Tensor]]:
    """Every piece with its merged values, flat, on the CPU, in the output's data type; in the order of the plan.

    The values must be used before the next piece is asked for.

    Args:
        plan: the merge.
        model_cutoffs: the cutoffs of a selection over the whole model, if the method makes one.
        parameters: those of the plan's that are to be merged; None for all.
    """
    plan.kernels.prepare()
    if plan.method.selection() is not None and model_cutoffs is None:
        plan.kernels.prepare(scored_together(plan, plan.experts))
    with Pool(plan, slot_bytes(plan)) as pool:
        wanted = iter(plan.parameters if parameters is None else parameters)
        work = (
            (_Merge(tuple(plan.experts), cutoffs), piece)
            for info, cutoffs in cutoffs_in_turn(plan, pool, wanted, model_cutoffs)
            for piece in cut([info], plan.granularity, plan.execution.piece_entries)
        )
        for piece, _, slot in pool.run(work, slots=True):
            dtype = plan.dtype or piece.info.dtype
            yield piece, slot[: piece.entries * dtype.itemsize].view(dtype)


@dataclass(frozen=True)
class _Merge:
    """Merges a piece tile by tile."""

    names: tuple[str, ...]
    cutoffs: tuple[Cutoff, ...] | None

    def __call__(self, bench: Workbench, piece: Piece, slot: int) -> None:
        plan = bench.plan
        dtype = plan.dtype or piece.info.dtype
        merged = bench.slot(slot)[: piece.entries * dtype.itemsize].view(dtype)
        for tile in subdivide(piece, plan.granularity, plan.execution.tile):
            parameter = bench.reader(self.names).read(tile, bench.device, self.cutoffs)
            into = merged[tile.start - piece.start : tile.stop - piece.start]
            values = plan.kernels.merge(parameter, dtype)
            into.copy_(_merge(plan, parameter, dtype).view(-1) if values is None else values)


def _merge(plan: MergePlan, parameter: Parameter, dtype: torch.dtype) -> Tensor:
    """One tile; a method's own mistake is told apart from bad input: the method is named."""
    try:
        merged = plan.method.merge(parameter)
    except Exception as error:
        error.add_note(f"while method '{plan.name}' merged '{parameter.name}'")
        raise
    if not isinstance(merged, Tensor) or not merged.is_floating_point():
        kind = merged.dtype if isinstance(merged, Tensor) else type(merged).__name__
        raise GraftbenchError(f"method '{plan.name}' gave {kind} for '{parameter.name}', not a floating-point tensor")
    shape = parameter.experts.shape[1:]
    if merged.shape != shape:
        raise GraftbenchError(
            f"method '{plan.name}' gave shape {list(merged.shape)} for '{parameter.name}', whose shape is {list(shape)}"
        )
    if merged.numel():
        extremes = torch.stack(torch.aminmax(merged))
        if not torch.isfinite(extremes).all():
            raise GraftbenchError(
                f"method '{plan.name}' gave NaN or Inf for '{parameter.name}', though its inputs are finite"
            )
        if not torch.isfinite(extremes.to(dtype)).all():
            raise GraftbenchError(
                f"merged tensor '{parameter.name}' does not fit into {dtype}; choose dtype=float32 or dtype=bfloat16"
            )
    return merged
