"""Hyper-parameters that differ by layer or by tensor: a number, a gradient over the blocks, or rules by name.

The meaning is mergekit's, so that its recipes can be read. A gradient is a list of numbers spread evenly over the
blocks and interpolated linearly between them; a rule holds for the tensors whose name contains its filter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from methods.interface import Site, require


@dataclass(frozen=True)
class Rule:
    """A value for the tensors whose name contains a text."""

    value: float | list[float]
    """A number, or a gradient."""
    filter: str | None = None
    """What the name must contain; None or `*` for every tensor."""

    def holds(self, name: str) -> bool:
        """Whether it is this rule's tensor."""
        return self.filter in (None, "*") or str(self.filter) in name


Schedule = float | list[float] | list[Rule]
"""One number, a gradient over the blocks, or rules of which the first that holds counts."""

PerExpertSchedule = float | list[float] | list[Rule] | dict[str, float | list[float] | list[Rule]]
"""One schedule for every expert, or one by the expert's name."""


def value_at(schedule: Schedule, site: Site) -> float:
    """The schedule's value for one tensor.

    The first number of a gradient counts for the first block and the last for the last one, and a single block takes
    the last. Tensors outside of the blocks (embedding, final norm, head) take the first.
    """
    if not isinstance(schedule, list):
        return float(schedule)
    if isinstance(schedule[0], Rule):
        rules = [rule for rule in schedule if isinstance(rule, Rule)]
        return value_at(next(rule.value for rule in rules if rule.holds(site.name)), site)
    return _interpolated([number for number in schedule if not isinstance(number, Rule)], site)


def values_at(value: PerExpertSchedule, site: Site, names: Sequence[str]) -> list[float]:
    """The schedule's value for one tensor of each expert, in the order of `names`."""
    if isinstance(value, Mapping):
        return [value_at(value[name], site) for name in names]
    return [value_at(value, site)] * len(names)


def numbers_in(value: PerExpertSchedule) -> list[float]:
    """Every number that a schedule, or the schedules of all experts, consist of."""
    if isinstance(value, Mapping):
        return [number for schedule in value.values() for number in numbers_in(schedule)]
    if not isinstance(value, list):
        return [float(value)]
    return [number for part in value for number in (numbers_in(part.value) if isinstance(part, Rule) else [part])]


def require_complete(name: str, value: PerExpertSchedule) -> None:
    """Refuse a schedule that is empty or leaves some tensor without a value."""
    for schedule in value.values() if isinstance(value, Mapping) else [value]:
        if not isinstance(schedule, list):
            continue
        require(name, bool(schedule), schedule, "is an empty list")
        if isinstance(schedule[0], Rule):
            rules = [rule for rule in schedule if isinstance(rule, Rule)]
            require(name, all(rule.value != [] for rule in rules), schedule, "has a rule with an empty list")
            complete = any(rule.filter in (None, "*") for rule in rules)
            require(name, complete, schedule, "needs a last rule without a filter, for all other tensors")


def _interpolated(gradient: Sequence[float], site: Site) -> float:
    if site.layer is None:
        return gradient[0]
    place = site.layer / (site.layers - 1) if site.layers > 1 else 1.0
    scaled = place * (len(gradient) - 1)
    before = int(scaled)
    after = min(before + 1, len(gradient) - 1)
    share = scaled - before
    return (1 - share) * gradient[before] + share * gradient[after]
