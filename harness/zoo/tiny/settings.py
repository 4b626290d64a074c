"""What the embedded zoo is built from: typed, checked, and digested, since a folder is named by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from harness.errors import GraftbenchError, unknown_name
from harness.zoo.tiny.items import CAPABILITIES, Counts

MAXIMAL_REPLAY = 0.2


@dataclass(frozen=True)
class Architecture:
    """The Llama architecture that all models of the set share; embeddings are tied."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_value_heads: int
    max_length: int
    """Positions that the models know, in tokens, which are characters."""


@dataclass(frozen=True)
class Training:
    """The length and speed of one training."""

    steps: int
    learning_rate: float
    """Its peak."""


@dataclass(frozen=True)
class Dose:
    """How much of one capability the base's mixture holds."""

    share: float
    """Weight of the capability in the mixture, relative to the others."""
    advanced: float
    """Share of advanced items among the capability's own; the rest are basic."""


@dataclass(frozen=True)
class Base(Training):
    """The base's training, on a mixture of all capabilities."""

    mixture: Mapping[str, Dose]


@dataclass(frozen=True)
class Expert(Training):
    """The fine-tuning of one expert, from the base."""

    advanced: float
    """Share of advanced items among the capability's own."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the set's bytes on one machine."""

    seed: int
    """Of the items, and of the facts among them."""
    architecture: Architecture
    items: Mapping[str, Counts]
    batch_size: int
    base: Base
    replay: float
    """Share of the base's mixture among an expert's examples."""
    experts: Mapping[str, Expert]
    multitask: Training
    fisher_examples: int
    """Examples of an expert's own training data that its Fisher information is estimated from."""
    training_seed: int = 0
    """Of initial weights, batches, and the examples of Fisher information: sets that differ in it alone share their
    items, so that scores can be paired."""

    def __post_init__(self) -> None:
        for group, mapping in (
            ("items", self.items),
            ("base.mixture", self.base.mixture),
            ("experts", self.experts),
        ):
            if set(mapping) != set(CAPABILITIES):
                raise GraftbenchError(
                    f"zoo.build.{group} names {', '.join(sorted(mapping)) or 'nothing'}; "
                    f"it must name each of: {', '.join(CAPABILITIES)}"
                )
        if not 0 <= self.replay <= MAXIMAL_REPLAY:
            raise GraftbenchError(f"zoo.build.replay={self.replay}: experts may replay from 0 to {MAXIMAL_REPLAY}")

    def as_dict(self) -> dict[str, Any]:
        """Plain containers, as they came from the configuration."""
        return asdict(self)


def settings_from_mapping(given: Mapping[str, Any]) -> Settings:
    """The settings of a configuration's ``zoo.build``.

    Raises:
        GraftbenchError: a key is unknown or missing, or a value is of the wrong type.
    """
    settings: Settings = _parse(Settings, given, "zoo.build")
    return settings


def _parse(kind: Any, given: Any, where: str) -> Any:
    names = ", ".join(field.name for field in fields(kind))
    if not isinstance(given, Mapping):
        raise GraftbenchError(f"{where} is {given!r}, not a mapping of {names}")
    hints = get_type_hints(kind)
    for name in given:
        if name not in hints:
            raise unknown_name(f"setting of {where}", str(name), hints)
    values: dict[str, Any] = {}
    for field in fields(kind):
        path = f"{where}.{field.name}"
        if field.name in given:
            values[field.name] = _value(hints[field.name], given[field.name], path)
        elif field.default is MISSING:
            raise GraftbenchError(f"{path} is missing; see conf/zoo/tiny.yaml")
    return kind(**values)


def _value(hint: Any, given: Any, where: str) -> Any:
    if is_dataclass(hint) and isinstance(hint, type):
        return _parse(hint, given, where)
    if get_origin(hint) is not None:
        if not isinstance(given, Mapping):
            raise GraftbenchError(f"{where} is {given!r}, not a mapping of capabilities")
        return {str(name): _value(get_args(hint)[1], value, f"{where}.{name}") for name, value in given.items()}
    if isinstance(given, bool) or not isinstance(given, (int, float) if hint is float else int):
        raise GraftbenchError(f"{where} is {given!r}, not {'a number' if hint is float else 'a whole number'}")
    return hint(given)
