"""Cutoffs within tensors whose scores fit into a worker's memory: one task scores a tensor once and settles them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.checkpoints import TensorInfo
from harness.merging.execution import Workbench
from harness.merging.pieces import Piece
from harness.merging.plan import MergePlan
from harness.merging.scores import locate, score_tiles, scored_together
from methods import Cutoff

_LOWER_BITS = 16
_BUCKETS = 1 << (31 - _LOWER_BITS)
_PATTERN_BITS = 0x7FFFFFFF
"""All but the sign, so that −0 is 0."""
_PATTERN_BYTES = 4
_MEMORY_SHARE = 4
"""The patterns that all workers hold may take this part of the memory budget."""


def fits_one_worker(plan: MergePlan, info: TensorInfo, ranks: Mapping[str, int]) -> bool:
    """Whether one worker should search a tensor for cutoffs on its own; on a GPU, counting is better done there."""
    held = len(scored_together(plan, ranks)) * info.entries * _PATTERN_BYTES * plan.execution.workers
    on_cpu = plan.execution.devices[0].type == "cpu"
    return bool(ranks) and on_cpu and 0 < held <= plan.execution.budget // _MEMORY_SHARE


@dataclass(frozen=True)
class FindInTensor:
    """Gives the cutoffs that keep so many entries of some experts in a whole tensor, by the experts' names."""

    names: tuple[str, ...]
    """The experts that are scored."""
    ranks: tuple[tuple[str, int], ...]
    """The experts whose cutoffs are wanted, with the number of entries to keep, at least one."""

    def __call__(self, bench: Workbench, piece: Piece, slot: int) -> dict[str, Cutoff]:
        counts = torch.zeros(len(self.names), _BUCKETS, dtype=torch.int64)
        patterns = self._memory(bench, piece.entries)
        for tile, scores in score_tiles(bench, self.names, piece):
            held = torch.bitwise_and(scores, _PATTERN_BITS, out=patterns[:, tile.start : tile.stop])
            for total, row in zip(counts, held, strict=True):
                total += torch.bincount(row >> _LOWER_BITS, minlength=_BUCKETS)
        places = {name: self.names.index(name) for name, _ in self.ranks}
        return {
            name: _cutoff(patterns[places[name]].numpy(), counts[places[name]].numpy(), rank)
            for name, rank in self.ranks
        }

    def _memory(self, bench: Workbench, entries: int) -> Tensor:
        """Room for the patterns of a tensor, `[experts, entries]`; it stays for the next."""
        size = len(self.names) * entries
        known: Tensor | None = bench.kept.get(FindInTensor)
        if known is None or len(known) < size:
            bench.kept[FindInTensor] = None
            known = bench.kept[FindInTensor] = torch.empty(size, dtype=torch.int32)
        return known[:size].view(len(self.names), entries)


def _cutoff(patterns: NDArray[np.int32], counts: NDArray[np.int64], rank: int) -> Cutoff:
    """The cutoff that keeps the `rank` largest, of equal ones the first.

    Args:
        patterns: of all scores of one expert.
        counts: how many of them share their upper bits.
        rank: how many are kept.
    """
    bucket, within = locate(counts, rank)
    # One comparison for both ends: what is below becomes a large number without a sign.
    where = np.flatnonzero(np.subtract(patterns, bucket << _LOWER_BITS).view(np.uint32) < 1 << _LOWER_BITS)
    lower = patterns[where] & ((1 << _LOWER_BITS) - 1)
    low, left = locate(np.bincount(lower, minlength=1 << _LOWER_BITS), within)
    threshold = float(np.int32(bucket << _LOWER_BITS | low).view(np.float32))
    tied = where[lower == low]
    if not threshold or left == len(tied):
        return Cutoff(threshold)
    return Cutoff(threshold, int(tied[left - 1]) + 1)
