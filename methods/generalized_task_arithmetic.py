"""Generalised task arithmetic: sparsified, weighted task vectors, with or without an election, as mergekit has it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods.interface import Granularity, Method, Parameter, Selection, Site, per_expert, require
from methods.randomness import uniform
from methods.schedules import (
    PerExpertSchedule,
    Schedule,
    numbers_in,
    require_complete,
    value_at,
    values_at,
)
from methods.selection import keep_by_cutoff, magnitude

_PIECE = (1 << 15) - 1
"""Entries that torch sums in one thread, and so always in one order: with more it deals them out to all threads."""


@dataclass(frozen=True, kw_only=True)
class GeneralizedTaskArithmetic(Method):
    """mergekit's family of task arithmetic, TIES and DARE (0.1.5), which selects and rescales per tensor: θ₀ + λ·ΣwΔ.

    The presets `ties_mergekit` and `dare_mergekit` are what mergekit's `ties` and `dare_linear` do by default. They
    differ from the published methods: TIES trims each tensor on its own, zero sums elect plus, the mean is weighted
    by signed weights; DARE rescales to the norm before the drop, not by 1/(1−p).
    """

    weight: PerExpertSchedule = 1.0
    """w, the weight of a task vector, negative too; a number, a list over the blocks, or rules by tensor name; one for
    all or one per expert. It multiplies `weights`."""
    density: PerExpertSchedule = 1.0
    """Share of a tensor's entries to keep, ⌊density·n⌋ but at least one; in the same forms as weight."""
    select: Literal["none", "magnitude", "random"] = "none"
    """Which entries are kept: all, the largest, or a random choice."""
    rescale: bool = False
    """Multiply what is kept of a tensor, so that its L1 norm is what it was before."""
    elect: bool = False
    """Elect a sign per entry and drop the task vectors that disagree; a sum of zero elects plus."""
    normalize: bool = False
    """Divide by the sum of the weights that took part."""
    scale: Schedule = 1.0
    """λ, the factor on the merged task vector; a number, a list over the blocks, or rules by tensor name."""
    origin: Literal["base", "zero"] = "base"
    """What task vectors are differences from: the base, or zero, which makes an average of the experts themselves."""
    seed: int = 0
    """Seed of the random choice."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("weight", self.weight), ("density", self.density), ("scale", self.scale)):
            require_complete(name, value)
        require("weight", any(numbers_in(self.weight)), self.weight, "gives every expert 0: there is nothing to merge")
        densities = numbers_in(self.density)
        require("density", all(0.0 <= number <= 1.0 for number in densities), self.density, "must lie in 0..1")

    def uses_base(self) -> bool:
        return self.origin == "base"

    def granularity(self) -> Granularity:
        return "matrix" if self.rescale and self.select != "none" else "element"

    def selection(self) -> Selection | None:
        return self.selection_in(Site(""))

    def selection_in(self, site: Site) -> Selection | None:
        if self.select != "magnitude":
            return None
        density: float | dict[str, float]
        if isinstance(self.density, dict):
            density = {name: value_at(schedule, site) for name, schedule in self.density.items()}
        else:
            density = value_at(self.density, site)
        return Selection(density=density, scope="tensor", rounding="down")

    def score(self, parameter: Parameter) -> Tensor:
        return magnitude(parameter)

    def score_depends_on(self) -> tuple[str, ...]:
        return ()

    def merge(self, parameter: Parameter) -> Tensor:
        weights = self._weights(parameter)
        factors = torch.tensor(weights, dtype=torch.float32, device=parameter.experts.device)
        weighted = self._sparsified(parameter)
        weighted *= factors.view(-1, *[1] * (weighted.dim() - 1))
        merged = _agreeing_mean(weighted, weights, self.normalize) if self.elect else self._mean(weighted, weights)
        merged *= value_at(self.scale, parameter.site)
        return merged.add_(parameter.base) if self.origin == "base" else merged

    def _weights(self, parameter: Parameter) -> list[float]:
        """Each expert's weight for this parameter."""
        names = parameter.expert_names
        scheduled = values_at(self.weight, parameter.site, names)
        plain = per_expert(self.weights, names, default=1.0)
        return [a * b for a, b in zip(scheduled, plain, strict=True)]

    def _sparsified(self, parameter: Parameter) -> Tensor:
        """Task vectors with what is not kept set to zero, in a tensor of their own."""
        differences = parameter.experts - parameter.base if self.origin == "base" else parameter.experts.clone()
        if self.select == "none":
            return differences
        before = _l1_norms(differences) if self.rescale else []
        if self.select == "magnitude":
            differences *= keep_by_cutoff(differences.abs(), parameter)
        else:
            densities = values_at(self.density, parameter.site, parameter.expert_names)
            differences *= random_mask(parameter, densities, self.seed)
        if self.rescale:
            _rescale(differences, before)
        return differences

    def _mean(self, weighted: Tensor, weights: Sequence[float]) -> Tensor:
        """Σ of weighted task vectors, over Σw where they are normalised."""
        total = weighted[0].clone()
        for values in weighted[1:]:
            total += values
        if not self.normalize:
            return total
        divisor = torch.tensor(weights, dtype=torch.float32).sum()
        if self.origin == "base" and abs(divisor) < 1e-8:
            return total
        return total.div_(divisor.to(total.device))


def random_mask(parameter: Parameter, densities: Sequence[float], seed: int) -> Tensor:
    """1 with probability `densities` and 0 otherwise, independently for every entry, fp32, `[experts, *shape]`."""
    draws = uniform(parameter, seed)
    for row, density in zip(draws, densities, strict=True):
        torch.lt(row, density, out=row)
    return draws


def _agreeing_mean(weighted: Tensor, weights: Sequence[float], normalize: bool) -> Tensor:
    """Sum of the weighted task vectors whose sign is that of their sum, over their weights where it is normalised."""
    elected = weighted[0].clone()
    for values in weighted[1:]:
        elected += values
    torch.ge(elected, 0.0, out=elected)
    elected.mul_(2.0).sub_(1.0)
    total = torch.zeros_like(elected)
    divisor = torch.zeros_like(elected)
    for values, weight in zip(weighted, weights, strict=True):
        # Turned to the elected sign, what agrees is positive, and the rest is cut off at zero.
        agreeing = (values * elected).clamp_(min=0.0)
        total += agreeing
        if normalize:
            divisor.add_(agreeing.sign_(), alpha=weight)
    total *= elected
    if normalize:
        divisor += torch.eq(divisor, 0.0, out=elected)
        total /= divisor
    return total


def _l1_norms(values: Tensor) -> list[float]:
    """Each expert's Σ|x|, the same for any number of threads."""
    pieces = [[piece.abs().sum() for piece in row.flatten().split(_PIECE)] for row in values]
    return [math.fsum(torch.stack(parts).tolist()) for parts in pieces]


def _rescale(values: Tensor, norms: Sequence[float]) -> None:
    """Give each expert's tensor the norm that it had, in place; norms under 1e-7 are left as they are."""
    for row, before, after in zip(values, norms, _l1_norms(values), strict=True):
        if before >= 1e-7 and after >= 1e-7:
            row *= before / after
