"""Cutoffs in one pass: a sample guesses two scores between which the cutoff lies, and a pass over all proves it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from harness.checkpoints import TensorInfo
from harness.merging.cutoff_store import ExpertCutoff
from harness.merging.execution import Pool, Workbench
from harness.merging.pieces import Piece
from harness.merging.plan import MergePlan
from harness.merging.scores import Counts, Inside, cutoffs_at, locate, score_tiles, scored_together

_RUN_ENTRIES = 1024
"""Entries that a sample takes together."""
_STRIDE_ENTRIES = 1 << 15
_LARGEST_SAMPLE = 1 << 21
_DEVIATIONS = 4.0
"""Half the width of the bracket, in standard deviations of the sampled share."""
_CLUSTERING = 8.0
"""How many neighbouring entries tell as much as one: rows and tensors differ in their scale."""
_FEWEST_ENTRIES = 1 << 18
_ENTRY_BYTES = 8
_MEMORY_SHARE = 4
"""What lies inside of the brackets may take this part of the memory budget."""

_LARGEST_PATTERN = 0x7F800000
"""The pattern of infinity: no score is larger."""


Bracket = tuple[int, int]
"""The lowest and the highest pattern among which a cutoff is looked for."""

Found = tuple[int, Counts, Counts]
"""How many of an expert's scores in a piece lie above its bracket, and the patterns inside with their counts."""


def bracketed_cutoffs(
    plan: MergePlan, pool: Pool, ranks: Mapping[str, int], parameters: Sequence[TensorInfo]
) -> dict[str, ExpertCutoff]:
    """The cutoffs that keep so many entries of each expert, exactly; none for experts whose bracket failed.

    Args:
        plan: the merge.
        pool: the workers.
        ranks: how many entries of each expert shall survive.
        parameters: among whose entries.
    """
    names = scored_together(plan, ranks)
    brackets = guessed_brackets(plan, pool, ranks, parameters)
    if not brackets:
        return {}
    return proved_cutoffs(names, ranks, pool.run_over(parameters, _CountInside(names, brackets)))


def guessed_brackets(
    plan: MergePlan, pool: Pool, ranks: Mapping[str, int], parameters: Sequence[TensorInfo]
) -> tuple[Bracket, ...]:
    """For each expert that is scored a bracket in which its cutoff most likely lies, from a sample; none where a
    sample does not pay, or what is likely to lie inside does not fit into the memory."""
    entries = sum(info.entries for info in parameters)
    if not ranks or plan.granularity != "element" or entries < _FEWEST_ENTRIES:
        return ()
    names = scored_together(plan, ranks)
    stride = max(_STRIDE_ENTRIES, -(-entries * _RUN_ENTRIES // _LARGEST_SAMPLE // 64) * 64)
    expected = 2 * _margin(0.5, entries * _RUN_ENTRIES // stride) * entries * _ENTRY_BYTES * len(names)
    if expected * _MEMORY_SHARE > pool.budget:
        return ()
    parts = [found for _, found in pool.run_over(parameters, _Sample(names, stride))]
    samples = dict(zip(names, np.concatenate(parts, axis=1), strict=True))
    return tuple(_bracket(samples[name], ranks.get(name), entries) for name in names)


def proved_cutoffs(
    names: Sequence[str], ranks: Mapping[str, int], passed: Iterable[tuple[Piece, Sequence[Found]]]
) -> dict[str, ExpertCutoff]:
    """The cutoffs that a pass over all scores proved to lie inside of their brackets.

    Args:
        names: the experts that were scored.
        ranks: how many entries of each expert shall survive.
        passed: for each piece what was found of every expert.
    """
    above = dict.fromkeys(names, 0)
    inside: dict[str, list[Inside]] = {name: [] for name in names}
    for piece, found in passed:
        for name, (count, patterns, counts) in zip(names, found, strict=True):
            above[name] += count
            inside[name].append((piece, patterns, counts))
    cutoffs = {name: _cutoff(rank - above[name], inside[name]) for name, rank in ranks.items()}
    return {name: cutoff for name, cutoff in cutoffs.items() if cutoff is not None}


class InsideBrackets:
    """Collects what lies inside of the experts' brackets, and counts what lies above, tile by tile."""

    def __init__(self, brackets: Sequence[Bracket]) -> None:
        self._brackets = brackets
        self._above = [0] * len(brackets)
        self._inside: list[list[NDArray[np.int32]]] = [[] for _ in brackets]

    def add(self, expert: int, patterns: NDArray[np.int32]) -> None:
        """The patterns of one more tile of an expert, by its number."""
        low, high = self._brackets[expert]
        self._above[expert] += int(np.count_nonzero(patterns > high))
        # One comparison for both ends: what is below becomes a large number without a sign.
        within = np.subtract(patterns, low).view(np.uint32) <= max(high - low, 0)
        self._inside[expert].append(patterns[np.flatnonzero(within)])

    def found(self) -> list[Found]:
        """What was found of every expert."""
        found: list[Found] = []
        for above, inside in zip(self._above, self._inside, strict=True):
            patterns, counts = np.unique(np.concatenate(inside), return_counts=True)
            found.append((above, patterns, counts.astype(np.int32)))
        return found


def _bracket(sample: NDArray[np.int32], rank: int | None, entries: int) -> tuple[int, int]:
    """Two patterns between which the rank-th largest of all scores most likely lies; an empty bracket for no rank."""
    if rank is None or not len(sample):
        return 1, 0
    share = rank / entries
    margin = _margin(share, len(sample))
    first = len(sample) - math.ceil((share + margin) * len(sample))
    last = len(sample) - math.floor((share - margin) * len(sample))
    ordered = np.sort(sample)
    low = int(ordered[first]) if first >= 0 else 0
    high = int(ordered[last]) if last < len(sample) else _LARGEST_PATTERN
    return max(low, 0), high


def _margin(share: float, sample: int) -> float:
    """By how much a share may differ from that in a sample."""
    return _DEVIATIONS * math.sqrt(share * (1 - share) * _CLUSTERING / sample) + 1 / sample


def _cutoff(rank: int, inside: Sequence[Inside]) -> ExpertCutoff | None:
    """The cutoff at the rank-th largest score inside of the bracket; None if it lies outside."""
    patterns, places = np.unique(np.concatenate([found for _, found, _ in inside]), return_inverse=True)
    counts = np.bincount(places, np.concatenate([count for *_, count in inside]), len(patterns)).astype(np.int64)
    if not 0 < rank <= counts.sum():
        return None
    place, left = locate(counts, rank)
    (cutoff,) = cutoffs_at([int(patterns[place])], [int(patterns[place])], [left], inside)
    return cutoff


@dataclass(frozen=True)
class _Sample:
    """Gives the patterns of some of a piece's scores, int32 `[experts, n]`: a run of entries after every stride.

    Strides are counted over the whole model, or small parameters would weigh more than they do.
    """

    names: tuple[str, ...]
    stride: int

    def __call__(self, bench: Workbench, piece: Piece, slot: int) -> NDArray[np.int32]:
        first = piece.start + -(_entries_before(bench)[piece.info.name] + piece.start) % self.stride
        parts = [np.empty((len(self.names), 0), dtype=np.int32)]
        for start in range(first, piece.stop, self.stride):
            run = Piece(piece.info, start, min(start + _RUN_ENTRIES, piece.stop))
            parts += [patterns.cpu().numpy().copy() for _, patterns in score_tiles(bench, self.names, run)]
        return np.concatenate(parts, axis=1)


def _entries_before(bench: Workbench) -> dict[str, int]:
    """How many entries of the model lie before each parameter."""
    known: dict[str, int] | None = bench.kept.get(_Sample)
    if known is None:
        parameters = bench.plan.parameters
        first = accumulate((info.entries for info in parameters), initial=0)
        known = bench.kept[_Sample] = {info.name: entry for info, entry in zip(parameters, first, strict=False)}
    return known


@dataclass(frozen=True)
class _CountInside:
    """Counts for each expert the scores above its bracket, and gives the patterns inside with their counts."""

    names: tuple[str, ...]
    brackets: tuple[Bracket, ...]

    def __call__(self, bench: Workbench, piece: Piece, slot: int) -> list[Found]:
        inside = InsideBrackets(self.brackets)
        for _, scores in score_tiles(bench, self.names, piece):
            for expert, patterns in enumerate(scores):
                inside.add(expert, patterns.cpu().numpy())
        return inside.found()
