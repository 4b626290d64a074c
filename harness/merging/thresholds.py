"""Exact cutoffs of a selection over a whole model, in bounded memory and without sorting."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from harness.errors import GraftbenchError
from harness.merging.plan import MergePlan
from harness.merging.stream import parameters
from methods import Cutoff
from methods.interface import per_expert
from methods.selection import entries_to_keep

_HALF_BITS = 16
_BUCKETS = 1 << _HALF_BITS


def find_cutoffs(plan: MergePlan) -> dict[str, Cutoff] | None:
    """The cutoff of each expert's selection, exactly; None if the method selects nothing over the whole model."""
    selection = plan.method.selection()
    if selection is None:
        return None
    names = tuple(plan.experts)
    if selection.threshold is not None:
        return {name: Cutoff(value) for name, value in zip(names, per_expert(selection.threshold, names), strict=True)}
    assert selection.density is not None, f"method '{plan.name}' declares a selection without density or threshold"
    densities = dict(zip(names, per_expert(selection.density, names), strict=True))
    cutoffs = {name: Cutoff(-torch.inf) for name in names}
    wanted = {name: entries_to_keep(density, plan.base.entries) for name, density in densities.items() if density < 1.0}
    return cutoffs | _largest(plan, wanted)


def _largest(plan: MergePlan, wanted: Mapping[str, int]) -> dict[str, Cutoff]:
    """For each expert the cutoff that keeps exactly its `wanted` largest scores, or all that are not zero.

    A score is ≥ 0, so its fp32 bit pattern, read as an integer, has the order of the score. One pass counts the
    upper halves of the patterns, a second the lower halves below the upper half where the k-th score lies: together
    they give the k-th largest of any number of scores. A third counts the entries that tie with it by parameter.
    """
    if not wanted:
        return {}
    upper = {name: torch.zeros(_BUCKETS, dtype=torch.int64) for name in wanted}
    positive = dict.fromkeys(wanted, 0)
    for _, expert, patterns in _patterns(plan, wanted):
        upper[expert] += _histogram(patterns >> _HALF_BITS)
        positive[expert] += int(patterns.count_nonzero())
    kept = {name: min(count, positive[name]) for name, count in wanted.items()}
    bucket = {name: _locate(upper[name], kept[name]) for name in wanted}

    lower = {name: torch.zeros(_BUCKETS, dtype=torch.int64) for name in wanted}
    for _, expert, patterns in _patterns(plan, wanted):
        inside = patterns[(patterns >> _HALF_BITS) == bucket[expert][0]]
        lower[expert] += _histogram(inside & (_BUCKETS - 1))
    within = {name: _locate(lower[name], bucket[name][1]) for name in wanted}
    threshold = {name: (bucket[name][0] << _HALF_BITS) | within[name][0] for name in wanted}

    tied: dict[str, dict[str, int]] = {name: {} for name in wanted}
    for parameter, expert, patterns in _patterns(plan, wanted):
        tied[expert][parameter] = int((patterns == threshold[expert]).sum())
    return {
        name: Cutoff(_score(threshold[name]), _deal(tied[name], within[name][1])) if kept[name] else Cutoff(torch.inf)
        for name in wanted
    }


def _patterns(plan: MergePlan, wanted: Mapping[str, int]) -> Iterator[tuple[str, str, Tensor]]:
    """Parameter, expert, and the bit patterns of the scores, int32, flat."""
    for parameter in parameters(plan):
        with torch.inference_mode():
            # Adding zero makes −0 the 0 that it equals.
            scores = plan.method.score(parameter).to(torch.float32) + 0.0
        if scores.shape != parameter.experts.shape:
            raise GraftbenchError(
                f"method '{plan.name}' scored '{parameter.name}' in shape {list(scores.shape)}, "
                f"not {list(parameter.experts.shape)}, one score for every entry of every expert"
            )
        if not (scores >= 0).all():
            raise GraftbenchError(f"method '{plan.name}' scored '{parameter.name}' with negative numbers or NaN")
        for index, expert in enumerate(parameter.expert_names):
            if expert in wanted:
                yield parameter.name, expert, scores[index].flatten().view(torch.int32)


def _histogram(values: Tensor) -> Tensor:
    return torch.bincount(values, minlength=_BUCKETS).cpu()


def _locate(counts: Tensor, k: int) -> tuple[int, int]:
    """The bucket that holds the k-th largest value, and how many of the k it holds."""
    from_above = counts.flip(0).cumsum(0)
    steps = int(torch.searchsorted(from_above, max(k, 1)))
    bucket = _BUCKETS - 1 - steps
    return bucket, k - (int(from_above[steps - 1]) if steps else 0)


def _score(pattern: int) -> float:
    return float(torch.tensor(pattern, dtype=torch.int32).view(torch.float32))


def _deal(tied: Mapping[str, int], left: int) -> dict[str, int]:
    """Hand the entries that may still be kept to the parameters that tie, by name."""
    dealt = {}
    for name, count in sorted(tied.items()):
        taken = min(count, left)
        if taken:
            dealt[name] = taken
        left -= taken
    return dealt
