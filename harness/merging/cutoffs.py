"""Exact cutoffs of selections, over a model or over each tensor, in bounded memory and without sorting.

A score is ≥ 0, so its fp32 bit pattern, read as an integer, has the order of the score. One pass counts how many scores
share the upper bits of their patterns: these counts tell in which bucket the k-th largest score lies. A second pass
counts the lower bits inside of the buckets that matter. Together they give the k-th largest of any number of scores.
The first pass depends on the expert alone, and the second resolves many densities at once, so both can be kept. Where a
sample can guess between which scores a cutoff lies, a pass that counts no more than that proves it: what is kept for
other densities is counted when a second one is asked for.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from harness.checkpoints import TensorInfo
from harness.errors import GraftbenchError
from harness.merging.bracket import (
    Bracket,
    Found,
    InsideBrackets,
    bracketed_cutoffs,
    guessed_brackets,
    proved_cutoffs,
)
from harness.merging.cutoff_store import CutoffStore, ExpertCutoff, KnownCutoffs, LastTie
from harness.merging.execution import Pool, Workbench, ahead
from harness.merging.pieces import Piece
from harness.merging.plan import MergePlan
from harness.merging.scores import Counts, Inside, cutoffs_at, locate, pattern_of, score_tiles, scored_together
from harness.merging.tensor_cutoffs import FindInTensor, fits_one_worker
from methods import Cutoff, Selection
from methods.interface import per_expert
from methods.selection import entries_to_keep

_COUNT_BYTES = 8

_LOWER_BITS = {"model": 12, "tensor": 16}
"""Bits of a pattern that the first pass leaves to the second: few, where many densities are resolved together."""

_NOTHING = ExpertCutoff(torch.inf, {}, LastTie("", 0, 0, 0, until=0))
"""Keeps no entry, even of those that score infinity: they are ties, and the last that is kept lies before all names."""


def find_cutoffs(plan: MergePlan, store: CutoffStore | None = None) -> dict[str, ExpertCutoff] | None:
    """The cutoff of each expert's selection over the whole model, exactly; None if the method makes none.

    Args:
        plan: the merge.
        store: where cutoffs are kept for later merges of the same experts; None keeps nothing.
    """
    selection = plan.method.selection()
    if selection is None or selection.scope != "model":
        return None
    wanted = _ranks(selection, tuple(plan.experts), plan.entries)
    found = {name: cutoff for name, cutoff in wanted.items() if isinstance(cutoff, ExpertCutoff)}
    ranks = {name: rank for name, rank in wanted.items() if isinstance(rank, int)}
    keys = plan.score_keys() if store is not None and ranks else {}
    known = {name: before for name, key in keys.items() if store is not None and (before := store.get(key)) is not None}
    found |= {name: known[name].cutoffs[rank] for name, rank in ranks.items() if rank in _kept(known, name)}
    missing = {name: rank for name, rank in ranks.items() if name not in found}
    if missing:
        upper = {name: counts for name in missing if name in known and (counts := known[name].upper) is not None}
        plan.kernels.prepare(scored_together(plan, missing))
        with Pool(plan, own_bytes=_own_bytes(plan, missing)) as pool:
            # Counting takes as long as all else in a pass; it is for whoever asks for a second density.
            proved = {} if missing.keys() & known.keys() else bracketed_cutoffs(plan, pool, missing, plan.parameters)
            fresh = {name: KnownCutoffs(None, {missing[name]: cutoff}) for name, cutoff in proved.items()}
            if left := {name: rank for name, rank in missing.items() if name not in proved}:
                search = _Search(plan, left, plan.parameters, _LOWER_BITS["model"])
                fresh |= search.result(pool, upper, hundredths=bool(keys))
        found |= {name: each.cutoffs[missing[name]] for name, each in fresh.items()}
        if store is not None:
            for name in fresh.keys() & keys.keys():
                store.put(keys[name], replace(fresh[name], cutoffs={**_kept(known, name), **fresh[name].cutoffs}))
    return {name: found[name] for name in plan.experts}


def cutoffs_in_turn(
    plan: MergePlan, pool: Pool, parameters: Iterator[TensorInfo], model: Mapping[str, ExpertCutoff] | None
) -> Iterator[tuple[TensorInfo, tuple[Cutoff, ...] | None]]:
    """Parameters with the cutoffs of all experts in each: the model's, or found tensor by tensor ahead of their use."""
    if model is not None:
        settled = {name: _settled(plan, pool, name, cutoff) for name, cutoff in model.items()}
        for info in parameters:
            yield info, tuple(cutoff.within(info.name) for cutoff in settled.values())
    elif plan.method.selection() is not None:
        yield from ahead(_in_tensors(plan, pool, parameters), depth=2)
    else:
        for info in parameters:
            yield info, None


_Wanted = tuple[TensorInfo, dict[str, ExpertCutoff], dict[str, int]]
"""A parameter, its experts' cutoffs that need no search, and how many entries of the other experts shall survive."""


def _in_tensors(
    plan: MergePlan, pool: Pool, parameters: Iterator[TensorInfo]
) -> Iterator[tuple[TensorInfo, tuple[Cutoff, ...]]]:
    """Cutoffs within each parameter: of those that fit into a worker's memory, several at the same time."""
    wanted = (_wanted_in(plan, info) for info in parameters)
    for fit, group in groupby(wanted, lambda each: fits_one_worker(plan, each[0], each[2])):
        if fit:
            yield from _by_one_worker_each(plan, pool, group)
        else:
            yield from ((each[0], _in_tensor(plan, pool, *each)) for each in group)


def _by_one_worker_each(
    plan: MergePlan, pool: Pool, wanted: Iterator[_Wanted]
) -> Iterator[tuple[TensorInfo, tuple[Cutoff, ...]]]:
    begun: deque[dict[str, ExpertCutoff]] = deque()

    def tasks() -> Iterator[tuple[FindInTensor, Piece]]:
        for info, found, ranks in wanted:
            begun.append(found)
            yield FindInTensor(scored_together(plan, ranks), tuple(ranks.items())), Piece(info, 0, info.entries)

    for piece, searched, _ in pool.run(tasks()):
        cutoffs = {name: cutoff.within(piece.info.name) for name, cutoff in begun.popleft().items()} | searched
        yield piece.info, tuple(cutoffs[name] for name in plan.experts)


def _wanted_in(plan: MergePlan, info: TensorInfo) -> _Wanted:
    selection = plan.method.selection_in(plan.site(info))
    if selection is None:
        return info, {name: ExpertCutoff(-torch.inf) for name in plan.experts}, {}
    wanted = _ranks(selection, tuple(plan.experts), info.entries)
    found = {name: cutoff for name, cutoff in wanted.items() if isinstance(cutoff, ExpertCutoff)}
    return info, found, {name: rank for name, rank in wanted.items() if isinstance(rank, int)}


def _in_tensor(
    plan: MergePlan, pool: Pool, info: TensorInfo, found: Mapping[str, ExpertCutoff], ranks: Mapping[str, int]
) -> tuple[Cutoff, ...]:
    searched = bracketed_cutoffs(plan, pool, ranks, [info])
    missing = {name: rank for name, rank in ranks.items() if name not in searched}
    if missing:
        search = _Search(plan, missing, [info], _LOWER_BITS["tensor"])
        fresh = search.result(pool, {}, hundredths=False)
        searched |= {name: fresh[name].cutoffs[rank] for name, rank in missing.items()}
    settled = {name: _settled(plan, pool, name, cutoff) for name, cutoff in searched.items()}
    return tuple({**found, **settled}[name].within(info.name) for name in plan.experts)


def _kept(known: Mapping[str, KnownCutoffs], name: str) -> Mapping[int, ExpertCutoff]:
    return known[name].cutoffs if name in known else {}


def _ranks(selection: Selection, names: Sequence[str], entries: int) -> dict[str, "int | ExpertCutoff"]:
    """For each expert how many entries shall survive, or at once the cutoff that needs no search."""
    if selection.threshold is not None:
        thresholds = per_expert(selection.threshold, names)
        return {name: ExpertCutoff(value) for name, value in zip(names, thresholds, strict=True)}
    assert selection.density is not None, "a method declares a selection without density or threshold"
    wanted: dict[str, int | ExpertCutoff] = {}
    for name, density in zip(names, per_expert(selection.density, names), strict=True):
        rank = entries_to_keep(density, entries, selection.rounding)
        if rank == 0:
            wanted[name] = _NOTHING
        else:
            wanted[name] = rank if density < 1.0 else ExpertCutoff(-torch.inf)
    return wanted


class _Search:
    """The search for the k-th largest score of several experts over some parameters."""

    def __init__(
        self, plan: MergePlan, ranks: Mapping[str, int], parameters: Sequence[TensorInfo], lower_bits: int
    ) -> None:
        self._plan = plan
        self._ranks = ranks
        self._parameters = parameters
        self._entries = sum(info.entries for info in parameters)
        self._names = scored_together(plan, ranks)
        self._lower_bits = lower_bits

    def result(self, pool: Pool, upper: Mapping[str, Counts], hundredths: bool) -> dict[str, KnownCutoffs]:
        """What was found for each expert.

        Args:
            pool: the workers.
            upper: the counts of upper bits that are known already.
            hundredths: resolve all multiples of 0.01 together with the ranks asked for, if memory allows.
        """
        proved: dict[str, KnownCutoffs] = {}
        if any(name not in upper for name in self._ranks):
            counted, cutoffs = self._count_upper(pool)
            upper = {**counted, **upper}
            proved = {name: KnownCutoffs(upper[name], {self._ranks[name]: each}) for name, each in cutoffs.items()}
        ranks = {name: [rank] for name, rank in self._ranks.items() if name not in proved}
        if not ranks:
            return proved
        if hundredths:
            all_ranks = {entries_to_keep(hundredth / 100, self._entries) for hundredth in range(1, 100)}
            more = {name: sorted({*rank, *all_ranks}) for name, rank in ranks.items()}
            if _bytes_to_resolve(upper, more) <= pool.budget:
                ranks = more
        buckets = {name: [locate(upper[name], rank) for rank in each] for name, each in ranks.items()}
        tables = {name: sorted({bucket for bucket, _ in found}) for name, found in buckets.items()}
        inside = self._count_lower(pool, tables)
        return proved | {
            name: KnownCutoffs(
                upper[name], dict(zip(ranks[name], self._resolve(inside[name], tables[name], found), strict=True))
            )
            for name, found in buckets.items()
        }

    def _count_upper(self, pool: Pool) -> tuple[dict[str, Counts], dict[str, ExpertCutoff]]:
        """How many scores fall into each bucket, and the cutoffs that the same pass can prove from a sample's guess."""
        shape = (len(self._names), _buckets(self._lower_bits))
        totals = torch.zeros(shape, dtype=torch.int64)
        # Within one tensor a guess was tried before, and failed.
        tried = self._lower_bits == _LOWER_BITS["tensor"]
        guessed = () if tried else guessed_brackets(self._plan, pool, self._ranks, self._parameters)
        passed = []
        for piece, (counts, inside) in pool.run_over(
            self._parameters, _CountUpper(self._names, self._lower_bits, guessed)
        ):
            passed.append((piece, inside))
            if counts is not None:
                totals += torch.from_numpy(counts)
        proved = proved_cutoffs(self._names, self._ranks, passed) if guessed else {}
        for own in pool.own if _is_kept(self._lower_bits) else []:
            totals += _kept_counts(own, shape)
            own.zero_()
        by_name = zip(self._names, totals.numpy(), strict=True)
        return {name: counts for name, counts in by_name if name in self._ranks}, proved

    def _count_lower(self, pool: Pool, tables: Mapping[str, list[int]]) -> dict[str, list[Inside]]:
        """The scores inside of the buckets, for each expert and piece: one pass."""
        task = _CountLower(self._names, self._lower_bits, tuple(tuple(tables.get(name, ())) for name in self._names))
        inside: dict[str, list[Inside]] = {name: [] for name in tables}
        for piece, each in pool.run_over(self._parameters, task):
            for name, (codes, counts) in zip(self._names, each, strict=True):
                if name in inside:
                    inside[name].append((piece, codes, counts))
        return inside

    def _resolve(
        self, inside: Sequence[Inside], table: Sequence[int], found: Sequence[tuple[int, int]]
    ) -> list[ExpertCutoff]:
        """The cutoff of each rank, given its bucket and its rank inside of that."""
        totals = np.zeros(len(table) << self._lower_bits, dtype=np.int64)
        for _, each, counts in inside:
            totals[each] += counts
        by_bucket = totals.reshape(len(table), -1)
        places = [table.index(bucket) for bucket, _ in found]
        located = [locate(by_bucket[place], within) for place, (_, within) in zip(places, found, strict=True)]
        codes = [(place << self._lower_bits) | low for place, (low, _) in zip(places, located, strict=True)]
        patterns = [(bucket << self._lower_bits) | low for (bucket, _), (low, _) in zip(found, located, strict=True)]
        return cutoffs_at(patterns, codes, [left for _, left in located], inside)


@dataclass(frozen=True)
class _CountUpper:
    """Counts the upper bits of a piece's scores, and with brackets finds what lies inside of them.

    Returns the counts, or adds them up where they are many; and what was found.
    """

    names: tuple[str, ...]
    lower_bits: int
    brackets: tuple[Bracket, ...] = ()

    def __call__(self, bench: Workbench, piece: Piece, slot: int) -> tuple[Counts | None, list[Found]]:
        shape = (len(self.names), _buckets(self.lower_bits))
        kept = _is_kept(self.lower_bits)
        totals = _kept_counts(bench.own, shape).numpy() if kept else np.zeros(shape, dtype=np.int64)
        inside = InsideBrackets(self.brackets)
        for _, scores in score_tiles(bench, self.names, piece):
            for expert, (counts, patterns) in enumerate(zip(totals, scores, strict=True)):
                _count(counts, patterns >> self.lower_bits)
                if self.brackets:
                    inside.add(expert, patterns.cpu().numpy())
        return None if kept else totals, inside.found() if self.brackets else []


@dataclass(frozen=True)
class _CountLower:
    """Gives for each expert the codes of those scores of a piece that lie inside of its buckets, and their counts.

    A code is the bucket's place in the expert's table, followed by the lower bits.
    """

    names: tuple[str, ...]
    lower_bits: int
    tables: tuple[tuple[int, ...], ...]

    def __call__(self, bench: Workbench, piece: Piece, slot: int) -> list[tuple[Counts, Counts]]:
        codes: list[list[Counts]] = [[] for _ in self.names]
        for _, scores in score_tiles(bench, self.names, piece):
            for found, table, patterns in zip(codes, self._lookup(bench), scores, strict=True):
                place = table.index_select(0, (patterns >> self.lower_bits) & (_buckets(self.lower_bits) - 1))
                places, lower = _where_not_zero(place, patterns)
                found.append(((places - 1) << self.lower_bits) | (lower & ((1 << self.lower_bits) - 1)))
        counted = [np.unique(np.concatenate(found), return_counts=True) for found in codes]
        return [(values, counts.astype(np.int32)) for values, counts in counted]

    def _lookup(self, bench: Workbench) -> Tensor:
        """For each expert and bucket its place in the table, from 1; 0 where it does not matter."""
        known = bench.kept.get(_CountLower)
        if known is None or known[0] != self:
            lookup = torch.zeros(len(self.names), _buckets(self.lower_bits), dtype=torch.uint8)
            for row, table in zip(lookup, self.tables, strict=True):
                row[list(table)] = torch.arange(1, len(table) + 1, dtype=torch.uint8)
            known = bench.kept[_CountLower] = (self, lookup.to(bench.device))
        tensor: Tensor = known[1]
        return tensor


@dataclass(frozen=True)
class _FindTie:
    """Gives the flat index after the nth entry of an expert that has a score, from 1, counted within a piece."""

    names: tuple[str, ...]
    expert: int
    pattern: int
    nth: int

    def __call__(self, bench: Workbench, piece: Piece, slot: int) -> int | None:
        left = self.nth
        for tile, patterns in score_tiles(bench, self.names, piece):
            tied = (patterns[self.expert] == self.pattern).nonzero().flatten()
            if len(tied) >= left:
                return tile.start + int(tied[left - 1]) + 1
            left -= len(tied)
        return None


def _settled(plan: MergePlan, pool: Pool, expert: str, cutoff: ExpertCutoff) -> ExpertCutoff:
    """The same cutoff with the flat index after the last tie that is kept, looked up in the one piece where it lies."""
    last = cutoff.last
    if last is None or last.until is not None:
        return cutoff
    info = next(info for info in plan.parameters if info.name == last.name)
    names = scored_together(plan, [expert])
    task = _FindTie(names, names.index(expert), pattern_of(cutoff.threshold), last.nth)
    ((_, until, _),) = pool.run([(task, Piece(info, last.start, last.stop))])
    if until is None:
        raise GraftbenchError(
            f"'{last.name}' of expert '{expert}' scores differently than when its cutoff was found; "
            "its files changed meanwhile, or the method's score is not deterministic"
        )
    return cutoff.settled(until)


def _buckets(lower_bits: int) -> int:
    return 1 << (31 - lower_bits)


def _is_kept(lower_bits: int) -> bool:
    """Whether a worker adds up its counts of upper bits, since they are too many to hand over piece by piece."""
    return lower_bits == _LOWER_BITS["model"]


def _own_bytes(plan: MergePlan, names: Iterable[str]) -> int:
    """Memory in which each worker counts upper bits of some experts' scores, where they are many."""
    return len(scored_together(plan, names)) * _buckets(_LOWER_BITS["model"]) * _COUNT_BYTES


def _kept_counts(own: Tensor, shape: tuple[int, int]) -> Tensor:
    """A worker's counts, int64; there is room for as many experts as a search can begin with."""
    return own.view(torch.int64)[: math.prod(shape)].view(shape)


def _bytes_to_resolve(upper: Mapping[str, Counts], ranks: Mapping[str, list[int]]) -> int:
    """What the second pass will hold: a code and a count for each score in a bucket that matters."""
    buckets = {name: {locate(upper[name], rank)[0] for rank in each} for name, each in ranks.items()}
    return 8 * sum(int(upper[name][sorted(each)].sum()) for name, each in buckets.items())


def _count(counts: Counts, buckets: Tensor) -> None:
    """Count how many scores fall into each bucket; −0 has a negative pattern, and belongs to the first."""
    if buckets.device.type == "cpu":
        # A bincount would make, and clear, an array as large as the counts for every tile.
        np.add.at(counts, buckets.long().numpy(), 1)  # counts negative indices from the end, so that −n is the first
    else:
        counts += torch.bincount(buckets & (len(counts) - 1), minlength=len(counts)).cpu().numpy()


def _where_not_zero(place: Tensor, patterns: Tensor) -> tuple[Counts, Counts]:
    """The entries of both, int32, where the first is not zero."""
    if place.device.type == "cpu":
        # NumPy is faster at finding few entries among many.
        where = np.flatnonzero(place.numpy())
        return place.numpy()[where].astype(np.int32), patterns.numpy()[where]
    found = place.nonzero().flatten()
    return place[found].to(torch.int32).cpu().numpy(), patterns[found].cpu().numpy()
