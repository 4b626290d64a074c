"""Scores as integers, tile by tile, and entries of equal score dealt out: what every search for a cutoff needs.

A score is ≥ 0, so its fp32 bit pattern, read as an integer, has the order of the score.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.errors import GraftbenchError
from harness.merging.cutoff_store import ExpertCutoff, LastTie
from harness.merging.execution import Workbench
from harness.merging.pieces import Piece, subdivide
from harness.merging.plan import MergePlan

Counts = NDArray[np.integer[Any]]
Inside = tuple[Piece, Counts, Counts]
"""A piece, the codes of its scores that matter, and how often each occurs."""


def scored_together(plan: MergePlan, names: Iterable[str]) -> tuple[str, ...]:
    """The experts that must be read to score some of them."""
    return tuple(names) if plan.scores_alone else tuple(plan.experts)


def score_tiles(bench: Workbench, names: tuple[str, ...], piece: Piece) -> Iterator[tuple[Piece, Tensor]]:
    """Each tile of a piece with the bit patterns of its scores, int32, `[experts, entries]`."""
    plan, reader = bench.plan, bench.reader(names)
    for tile in subdivide(piece, plan.granularity, plan.execution.tile):
        parameter = reader.read(tile, bench.device)
        patterns = plan.kernels.score(parameter)
        if patterns is not None:
            yield tile, patterns
            continue
        scores = plan.method.score(parameter).to(torch.float32)
        if scores.shape != parameter.experts.shape:
            raise GraftbenchError(
                f"method '{plan.name}' scored '{tile.info.name}' in shape {list(scores.shape)}, "
                f"not {list(parameter.experts.shape)}, one score for every entry of every expert"
            )
        if tile.entries and not scores.amin() >= 0:
            raise GraftbenchError(f"method '{plan.name}' scored '{tile.info.name}' with negative numbers or NaN")
        yield tile, scores.contiguous().view(torch.int32).view(len(names), -1)


def pattern_of(score: float) -> int:
    """A score's bit pattern."""
    return int(torch.tensor(score, dtype=torch.float32).view(torch.int32))


def locate(counts: Counts, k: int) -> tuple[int, int]:
    """The place of the k-th largest value among ascending ones that occur so often, and how many of the k it takes."""
    from_above = counts[::-1].cumsum()
    steps = int(np.searchsorted(from_above, k))
    return len(counts) - 1 - steps, k - (int(from_above[steps - 1]) if steps else 0)


def cutoffs_at(
    patterns: Sequence[int], codes: Sequence[int], left: Sequence[int], inside: Sequence[Inside]
) -> list[ExpertCutoff]:
    """The cutoffs at some scores, of whose ties so many are kept.

    Args:
        patterns: the scores.
        codes: what stands for each of them in `inside`.
        left: how many of the entries that have it are kept.
        inside: how often each code occurs in each piece.
    """
    ordered = sorted(inside, key=lambda entry: (entry[0].info.name, entry[0].start))
    tied = np.stack([_counts_of(np.array(codes), found, counts) for _, found, counts in ordered])
    pieces = [piece for piece, _, _ in ordered]
    return [_deal(pattern, kept, pieces, each) for pattern, kept, each in zip(patterns, left, tied.T, strict=True)]


def _deal(pattern: int, left: int, pieces: Sequence[Piece], tied: Counts) -> ExpertCutoff:
    """The cutoff at a score, of whose ties, counted piece by piece, so many are kept: by parameter, then flat index."""
    threshold = float(torch.tensor(pattern, dtype=torch.int32).view(torch.float32))
    if not pattern:
        return ExpertCutoff(threshold)
    up_to = tied.cumsum()
    end = int(np.searchsorted(up_to, left))
    nth = left - int(up_to[end] - tied[end])
    ties: dict[str, int] = {}
    for i in np.flatnonzero(tied[: end + 1]).tolist():
        name = pieces[i].info.name
        ties[name] = ties.get(name, 0) + (int(tied[i]) if i < end else nth)
    if left == up_to[-1]:
        return ExpertCutoff(threshold, ties)
    last = pieces[end]
    return ExpertCutoff(threshold, ties, LastTie(last.info.name, last.start, last.stop, nth))


def _counts_of(targets: NDArray[np.int64], codes: Counts, counts: Counts) -> Counts:
    """How often each target occurs among sorted codes with counts."""
    if not len(codes):
        return np.zeros(len(targets), dtype=np.int64)
    places = np.searchsorted(codes, targets).clip(max=len(codes) - 1)
    return np.where(codes[places] == targets, counts[places], 0).astype(np.int64)
