"""What a merging method sees of a parameter, and what it declares about itself."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Role = Literal["embedding", "q", "k", "v", "o", "gate", "up", "down", "norm", "head", "other"]
Granularity = Literal["element", "row", "matrix"]
CurvatureKind = Literal["adam", "raw", "compressed", "rank", "blocks", "fisher"]
"""Curvature that comes from files: Adam's second moments, bias-corrected, or raw, or compressed to row and column sums,
low-rank factors or 8 bits; or Fisher information."""
Curvature = Literal["adam", "raw", "compressed", "rank", "blocks", "fisher", "delta"]
"""What a method may take for curvature: also the squared task vectors, which need no file."""

Scope = Literal["model", "tensor"]
Rounding = Literal["up", "down"]
"""Of density·n: to ⌈density·n⌉; or to ⌊density·n⌋, in binary and at least one unless density is 0, as mergekit does."""

PerExpert = float | dict[str, float]
"""One number for every expert, or one by the expert's name."""


@dataclass(frozen=True)
class Cutoff:
    """Where one expert's selection ends within one parameter: keep what scores above the threshold.

    A share of a model's entries rarely ends between two different scores, so entries that score exactly the
    threshold are counted out by parameter name, then flat index.
    """

    threshold: float
    ties_until: int | None = None
    """Flat index in the parameter before which entries equal to the threshold are kept; None: all of them."""

    def mask(self, scores: Tensor, offset: int = 0, out: Tensor | None = None) -> Tensor:
        """1 where an entry survives and 0 elsewhere, fp32, in the shape of the scores.

        A score of zero never survives, whatever the threshold, unless nothing is cut at all (threshold −∞).

        Args:
            scores: ≥ 0; a flat piece, whole rows, or the whole parameter.
            offset: flat index of the first of them in the whole parameter.
            out: where to write the mask; None makes a tensor.
        """
        mask = torch.empty_like(scores, dtype=torch.float32) if out is None else out
        if self.threshold == -torch.inf:
            return mask.fill_(1.0)
        if self.ties_until is None and self.threshold > 0:
            return torch.ge(scores, self.threshold, out=mask)
        torch.gt(scores, max(self.threshold, 0.0), out=mask)
        tied = 0 if self.ties_until is None else max(self.ties_until - offset, 0)
        if tied and self.threshold > 0:
            mask.view(-1)[:tied] += scores.reshape(-1)[:tied] == self.threshold
        return mask


@dataclass(frozen=True)
class Selection:
    """The entries of an expert that a method keeps: those with the highest scores.

    The harness finds the cutoffs in a pass of its own, with the method's own `score`, and hands them to `merge`.
    Exactly one of density and threshold is given; each is one number or one per expert.
    """

    density: PerExpert | None = None
    """Share of entries to keep, in 0..1: exactly ⌈density·n⌉ of n, as far as their scores are not zero."""
    threshold: PerExpert | None = None
    """Keep the entries that score at least this much, in the score's own unit."""
    scope: Scope = "model"
    """What n counts: all entries of the model, or those of each tensor on its own."""
    rounding: Rounding = "up"


@dataclass(frozen=True)
class Site:
    """Where a parameter sits in the network."""

    name: str
    """Its name in the checkpoint."""
    role: Role = "other"
    """What it does."""
    layer: int | None = None
    """Number of the block that it belongs to, from 0; None outside of the blocks."""
    layers: int = 0
    """Number of blocks of the whole model."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of all models, in fp32 on one device: everything that a method may look at."""

    name: str
    """Its name in the checkpoint."""
    base: Tensor
    """The base's tensor, `[*shape]`; NaN throughout if the method declares that it does not use it."""
    experts: Tensor
    """The experts' tensors, `[experts, *shape]`."""
    expert_names: tuple[str, ...]
    """The experts' names, in the order of the first dimension."""
    curvatures: Tensor | None = None
    """Each expert's curvature, ≥ 0, `[experts, *shape]`; None unless the method asks for it."""
    cutoffs: tuple[Cutoff, ...] | None = None
    """The cutoff of each expert's selection; None unless the method asks for one."""
    role: Role = "other"
    """What it does in the network."""
    layer: int | None = None
    """Number of the block that it belongs to, from 0; None outside of the blocks."""
    layers: int = 0
    """Number of blocks of the whole model."""
    offset: int = 0
    """Flat index of this tensor's first entry in the whole parameter, for a method that works on pieces of it."""

    @property
    def site(self) -> Site:
        """Where it sits in the network."""
        return Site(self.name, self.role, self.layer, self.layers)

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

    def surviving(self, scores: Tensor) -> Tensor:
        """The entries that the cutoffs let through, `[experts, *shape]`: 1 or 0, fp32. `scores` has that shape, too."""
        assert self.cutoffs is not None, f"{self.name}: the method did not declare its selection"
        mask = torch.empty_like(scores, dtype=torch.float32)
        for cutoff, score, into in zip(self.cutoffs, scores, mask, strict=True):
            cutoff.mask(score.to(torch.float32), self.offset, into)
        return mask

    def curvature_of(self, curvature: Curvature) -> Tensor:
        """The curvatures of a method that declared `needed_for(curvature)`, `[experts, *shape]`.

        Squared task vectors are a proxy that costs nothing: what measured curvature adds is its difference to them.
        """
        return self.task_vectors.square() if curvature == "delta" else self.require_curvatures()

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
        """The score that the method's selection ranks by, ≥ 0, `[experts, *shape]`."""
        raise NotImplementedError(f"{type(self).__name__} selects by score but defines none")

    def selection(self) -> Selection | None:
        """The selection that `merge` needs the cutoffs of; None for none."""
        return None

    def selection_in(self, site: Site) -> Selection | None:
        """That selection within one tensor, where its scope is the tensor: densities may differ by layer or role."""
        return self.selection()

    def score_depends_on(self) -> tuple[str, ...]:
        """The hyper-parameters that `score` reads: cutoffs that were found are good as long as these stay the same."""
        return tuple(option.name for option in fields(self))

    def scores_alone(self) -> bool:
        """Whether an expert's score depends on nothing but the base and that expert's own tensors and curvature."""
        return True

    def uses_base(self) -> bool:
        """Whether `merge` or `score` looks at the base's values: an average of experts does not."""
        return True

    def curvature_kind(self) -> CurvatureKind | None:
        """The curvature that `merge` or `score` needs; None for none."""
        return None

    def granularity(self) -> Granularity:
        """How much of a parameter `merge` and `score` must see at once: the stream cuts large tensors accordingly.

        `element` gives them flat pieces, `[n]`, `row` whole rows of the first dimension, `matrix` the whole tensor.
        """
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


def needed_for(curvature: Curvature) -> CurvatureKind | None:
    """The curvature that must come from files; None for squared task vectors."""
    return None if curvature == "delta" else curvature


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
