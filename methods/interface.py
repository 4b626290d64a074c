"""What a merging method sees of a parameter, and what it declares about itself."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Role = Literal["embedding", "q", "k", "v", "o", "gate", "up", "down", "norm", "head", "other"]
Granularity = Literal["element", "row", "matrix"]
CurvatureKind = Literal["adam", "compressed", "fisher"]

PerExpert = float | dict[str, float]
"""One number for every expert, or one by the expert's name."""


@dataclass(frozen=True)
class Cutoff:
    """Where one expert's selection over the whole model ends: keep what scores above the threshold.

    A share of a model's entries rarely ends between two different scores, so entries that score exactly the
    threshold are counted out by parameter name, then flat index; `ties` says how many each parameter gets.
    """

    threshold: float
    ties: Mapping[str, int] | None = None
    """Entries equal to the threshold that are kept, by parameter, the first ones in flat order; None: all of them."""

    def mask(self, scores: Tensor, name: str) -> Tensor:
        """The entries of parameter `name` that survive: bool, in the shape of its scores.

        A score of zero never survives, whatever the threshold, unless nothing is cut at all (threshold −∞).
        """
        if self.threshold == -torch.inf:
            return torch.ones_like(scores, dtype=torch.bool)
        if self.ties is None:
            return (scores >= self.threshold) & (scores > 0)
        above = scores > self.threshold
        kept = self.ties.get(name, 0)
        if kept:
            tied = (scores == self.threshold).flatten()
            above |= (tied & (tied.cumsum(0) <= kept)).view_as(above)
        return above


@dataclass(frozen=True)
class WholeModelSelection:
    """A selection that a method makes over all parameters of an expert at once.

    The harness finds the cutoffs in a pass of its own, with the method's own `score`, and hands them to `merge`.
    Exactly one of the two is given; each is one number or one per expert.
    """

    density: PerExpert | None = None
    """Share of entries to keep, in 0..1: exactly ⌈density·n⌉ of n, as far as their scores are not zero."""
    threshold: PerExpert | None = None
    """Keep the entries that score at least this much, in the score's own unit."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of all models, in fp32 on one device: everything that a method may look at."""

    name: str
    """Its name in the checkpoint."""
    base: Tensor
    """The base's tensor, `[*shape]`."""
    experts: Tensor
    """The experts' tensors, `[experts, *shape]`."""
    expert_names: tuple[str, ...]
    """The experts' names, in the order of the first dimension."""
    curvatures: Tensor | None = None
    """Each expert's curvature, ≥ 0, `[experts, *shape]`; None unless the method asks for it."""
    cutoffs: tuple[Cutoff, ...] | None = None
    """The cutoff of each expert's whole-model selection; None unless the method asks for one."""
    role: Role = "other"
    """What it does in the network."""
    layer: int | None = None
    """Number of the block that it belongs to, from 0; None outside of the blocks."""
    offset: int = 0
    """Flat index of this tensor's first entry in the whole parameter, for a method that works on pieces of it."""

    @cached_property
    def task_vectors(self) -> Tensor:
        """Expert − base, `[experts, *shape]` (Ilharco et al. 2023, arXiv:2212.04089)."""
        return self.experts - self.base

    def per_expert(self, value: PerExpert, default: float | None = None) -> Tensor:
        """A hyper-parameter as a tensor that broadcasts over experts, `[experts, 1, …]`.

        Raises:
            KeyError: the value names some experts, this one not, and there is no default.
        """
        numbers = per_expert(value, self.expert_names, default)
        return torch.tensor(numbers, dtype=torch.float32, device=self.base.device).view(-1, *[1] * self.base.dim())

    def require_curvatures(self) -> Tensor:
        """The curvatures of a method that declared that it needs them."""
        assert self.curvatures is not None, f"{self.name}: the method did not declare that it needs curvature"
        return self.curvatures


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A merging method: its hyper-parameters, and the merge of one parameter.

    A subclass is a frozen dataclass. Its fields are the method's options on the command line, their defaults and
    types are checked there, and their docstrings are the manual. `__post_init__` raises ValueError on a bad value.
    """

    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each expert by name; 1 where none is given."""

    def __post_init__(self) -> None:
        require(
            "weights",
            all(weight >= 0 for weight in self.weights.values()),
            self.weights,
            "must not be negative",
        )

    @abstractmethod
    def merge(self, parameter: Parameter) -> Tensor:
        """The merged parameter, `[*shape]` in fp32."""

    def score(self, parameter: Parameter) -> Tensor:
        """The score that the method's whole-model selection ranks by, ≥ 0, `[experts, *shape]`."""
        raise NotImplementedError(f"{type(self).__name__} selects over the whole model but defines no score")

    def selection(self) -> WholeModelSelection | None:
        """The selection over the whole model that `merge` needs the cutoffs of; None for none."""
        return None

    def curvature_kind(self) -> CurvatureKind | None:
        """The curvature that `merge` or `score` needs; None for none."""
        return None

    def granularity(self) -> Granularity:
        """How much of a parameter `merge` must see at once: the stream may cut large tensors accordingly."""
        return "element"

    def experts_used(self, names: Sequence[str]) -> tuple[str, ...]:
        """The experts that the merge reads, of those that there are.

        Raises:
            ValueError: the hyper-parameters do not fit these experts.
        """
        return tuple(names)

    def expert_weights(self, parameter: Parameter) -> Tensor:
        """The scalar weight of each expert, `[experts, 1, …]`."""
        return parameter.per_expert(self.weights, default=1.0)


def per_expert(value: PerExpert, names: Sequence[str], default: float | None = None) -> list[float]:
    """A hyper-parameter's number for each expert, in the order of `names`."""
    if isinstance(value, Mapping):
        return [value[name] if default is None else value.get(name, default) for name in names]
    return [float(value)] * len(names)


def require(name: str, holds: bool, value: object, rule: str) -> None:
    """Refuse a hyper-parameter: ValueError names it, its value and the rule that it breaks."""
    if not holds:
        raise ValueError(f"{name}={value} {rule}")


def require_share(name: str, value: PerExpert) -> None:
    """Refuse a share that lies outside 0..1, be it one number or one per expert."""
    numbers = value.values() if isinstance(value, Mapping) else [value]
    require(name, all(0.0 <= number <= 1.0 for number in numbers), value, "must lie in 0..1")
