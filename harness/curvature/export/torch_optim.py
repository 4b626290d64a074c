"""A state dict of `torch.optim`, as `torch.save` wrote it: Trainer's `optimizer.pt`, FSDP's full `optimizer.bin`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.checkpoints.pickled import load_without_code
from harness.curvature.export.entries import Entry, Kind, read_entry
from harness.curvature.export.state import Key, OptimizerState, ParameterGroup, StoredState
from harness.errors import GraftbenchError

FILE_NAMES = ("optimizer.bin",)
"""What accelerate calls the full state of FSDP in a checkpoint's folder."""

ADVICE = (
    "save the state dict of the optimizer alone (torch.save(optimizer.state_dict(), FILE)), "
    "whose tensors and numbers need no code"
)
_NAMES = {"adam8bit": "8-bit Adam, dequantised block by block", "adafactor": "Adafactor"}


def recognises(path: Path) -> bool:
    """Whether it is a file, or a folder with one under its usual name."""
    return path.is_file() or any((path / name).is_file() for name in FILE_NAMES)


def read(path: Path) -> OptimizerState:
    """The state in a file, its tensors mapped: they are read when they are asked for.

    Raises:
        GraftbenchError: the file is cut short, holds code, or is no optimizer's.
    """
    file = path if path.is_file() else next((path / n for n in FILE_NAMES if (path / n).is_file()), path)
    return state_of(file, load_without_code(file, "cpu", advice=ADVICE))


def state_of(path: Path, loaded: Any) -> OptimizerState:
    """The optimizer's state in what a file holds: at the top, or beside a model's under any name."""
    inside = _optimizer_in(path, loaded)
    stored: Mapping[Key, Mapping[str, Any]] = inside["state"]
    groups = inside["param_groups"]
    if not isinstance(stored, Mapping) or not isinstance(groups, list):
        raise GraftbenchError(f"{path}: its state and param_groups are not those of a torch optimizer; {ADVICE}")
    name_of: dict[Key, Key] = {}
    for group in groups:
        # Optimizers that were made of named parameters tell the names (PyTorch 2.6 and newer).
        name_of |= dict(zip(group["params"], group.get("param_names") or group["params"], strict=True))
    named = [ParameterGroup(tuple(name_of[key] for key in group["params"]), options_of(group)) for group in groups]
    entries: dict[Key, Entry] = {}
    for key, entry in stored.items():
        name = name_of.get(key, key)
        where = f"{path}: parameter '{name}'"
        if (found := read_entry(where, described(where, entry))) is not None:
            entries[name] = found
    steps = [entry.get("step") for entry in stored.values()] + [group.get("step") for group in groups]
    return assembled(path, named, entries, steps)


def assembled(
    path: Path, groups: list[ParameterGroup], entries: Mapping[Key, Entry], steps: Iterable[Any]
) -> OptimizerState:
    """The state of an optimizer from its entries, with its name as far as they tell it."""
    kinds: set[Kind] = {entry.kind for entry in entries.values()}
    options = groups[0].options if groups else {}
    decoupled = options.get("decoupled_weight_decay")
    special = next((_NAMES[kind] for kind in ("adam8bit", "adafactor") if kind in kinds), None)
    return OptimizerState(
        path,
        groups,
        {key: entry.moments for key, entry in entries.items()},
        special or ("AdamW" if decoupled else "Adam"),
        frozenset(int(step) for step in steps if step is not None),
        bias_corrected=kinds == {"adafactor"},
    )


def described(where: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry with its tensors described; those of a mapped file are read when they are asked for.

    Raises:
        GraftbenchError: a tensor is no plain one, but a rank's part of one (DTensor), or in a library's own format.
    """
    return {name: _described(where, value) for name, value in entry.items()}


def options_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's options as plain values."""
    plain = {name: value for name, value in group.items() if name not in ("params", "param_names")}
    scalars = {name: value.item() for name, value in plain.items() if isinstance(value, Tensor) and value.numel() == 1}
    return {**plain, **scalars}


def _described(where: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return described(where, value)
    if not isinstance(value, Tensor):
        return value
    if type(value) is not Tensor:
        raise GraftbenchError(
            f"{where}: its state is a {type(value).__name__}, not a plain tensor; gather the whole state before saving "
            "(torch.distributed.checkpoint.state_dict.get_optimizer_state_dict with full_state_dict=True), or save it "
            "with torch.distributed.checkpoint.save"
        )
    return StoredState(tuple(value.shape), value.detach)


def _optimizer_in(path: Path, loaded: Any) -> Mapping[str, Any]:
    candidates = [loaded, *(loaded.values() if isinstance(loaded, Mapping) else ())]
    found = [c for c in candidates if isinstance(c, Mapping) and {"state", "param_groups"} <= set(c)]
    if len(found) == 1:
        return found[0]
    holds = ", ".join(map(str, list(loaded)[:5])) if isinstance(loaded, Mapping) else f"a {type(loaded).__name__}"
    problem = f"{len(found)} optimizers" if found else f"no optimizer's state dict (state, param_groups), but {holds}"
    raise GraftbenchError(f"{path} holds {problem}; {ADVICE}")
