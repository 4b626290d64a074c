"""A model that exists already and joins a board from outside of the zoo: where it is, and what its row is called."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from harness.checkpoints.layout import CONFIG_NAME
from harness.checkpoints.opening import Source, split_adapter
from harness.errors import GraftbenchError
from harness.merging.merge import RECIPE_FILE
from harness.zoo.models import named_source
from methods import available


@dataclass(frozen=True)
class ExistingModel:
    """A checkpoint that is evaluated as it is and ranked among the methods: a merge that somebody made before."""

    source: Source
    """A folder, a hub name, or `base+adapter`."""
    label: str
    """What its row is called unless the user says otherwise."""

    @property
    def base(self) -> str:
        """The model itself, or what an adapter stands on."""
        return split_adapter(str(self.source))[0]


def existing_model(given: Any) -> ExistingModel:
    """The model of `model=…`.

    Raises:
        GraftbenchError: there is no such folder, or it holds no checkpoint; hub names are looked for when they are
            opened.
    """
    if not isinstance(given, str | int | float):
        raise GraftbenchError(f"model={given} is no single model; -m model=A,B evaluates several, one row each")
    if not str(given).strip():
        raise GraftbenchError("model= is empty; give a checkpoint's folder or a hub name owner/name[@revision]")
    source = named_source(str(given), "model")
    assert not isinstance(source, list)
    model = ExistingModel(source, _label(source))
    if (folder := Path(model.base)).is_dir() and not (folder / CONFIG_NAME).is_file():
        raise GraftbenchError(f"model={given}: {folder / CONFIG_NAME} does not exist, so this is no checkpoint")
    return model


def _label(source: Any) -> str:
    """What our own `merge.json` says of a merge; else the folder's name, or the hub name with its revision."""
    if isinstance(source, Path):
        return _label_of_merge(source / RECIPE_FILE) or source.name
    base, adapter = split_adapter(source)
    names = [base] if adapter is None else [base, adapter]
    return "+".join(Path(name).name if Path(name).is_dir() else name for name in names)


def _label_of_merge(file: Path) -> str | None:
    """Such as `ties density=0.3 of code+math`; None where no merge of ours says how it was made."""
    try:
        recipe = json.loads(file.read_text(encoding="utf-8"))["recipe"]
        method, experts = str(recipe["method"]), "+".join(sorted(recipe["experts"]))
        chosen = _differing_from_defaults(method, recipe["hyperparameters"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return " ".join([method, *(f"{option}={value}" for option, value in chosen.items()), "of", experts])


def _differing_from_defaults(method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters that somebody set, by option, entries of mappings one by one; of our own methods only."""
    found: dict[str, Any] = {}
    if (known := available().get(method)) is None:
        return found
    defaults = {option.name: getattr(known(), option.name) for option in fields(known)}
    for option, value in sorted(values.items()):
        if isinstance(value, Mapping):
            found |= {
                f"{option}.{name}": entry for name, entry in value.items() if isinstance(entry, str | int | float)
            }
        elif isinstance(value, str | int | float) and value != defaults.get(option):
            found[option] = value
    return found
