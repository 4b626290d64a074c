"""What every format is read into: an optimizer's state, parameter by parameter, each read only when it is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

Key = str | int
"""What an optimizer calls a parameter: its name, or its number in the order of the optimizer's groups."""


@dataclass(frozen=True)
class StoredState:
    """One tensor of an optimizer's state, as the checkpoint's header describes it."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class ParameterMoments:
    """The second moments of one parameter."""

    shape: tuple[int, ...]
    """The parameter's."""
    parts: Mapping[str, tuple[int, ...]]
    """Shape of each tensor that our file holds of it, by what follows the parameter's name: nothing, or `.row`."""
    read: Callable[[], Mapping[str, Tensor]]
    """Gives those tensors."""


@dataclass(frozen=True)
class ParameterGroup:
    """Some of an optimizer's parameters, with the options that they share."""

    keys: tuple[Key, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerState:
    """An optimizer's state."""

    path: Path
    """The file or folder that it was read from."""
    groups: Sequence[ParameterGroup]
    moments: Mapping[Key, ParameterMoments]
    """Of the parameters that have any: frozen ones do not."""
    optimizer: str
    steps: frozenset[int] = frozenset()
    """How many steps its parameters have made, where the checkpoint tells."""
    bias_corrected: bool = False
    """Whether the moments need no bias correction, as Adafactor's do not."""
