"""A distributed checkpoint of PyTorch (`torch.distributed.checkpoint`), as FSDP, accelerate and torchtitan write them.

A folder of `__<rank>_<n>.distcp` files, in which every chunk of every tensor is a small archive of its own, and
`.metadata`, a pickle that says where the chunks are. PyTorch's reader runs whatever that pickle, or a pickled option of
the optimizer, holds; here the one may name PyTorch's own descriptions of tensors only, and the other plain values.
"""

import io
import pickle
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.curvature.export.entries import Entry, read_entry
from harness.curvature.export.state import Key, OptimizerState, ParameterGroup, StoredState
from harness.curvature.export.torch_optim import assembled
from harness.errors import GraftbenchError

METADATA = ".metadata"
INNER_FOLDERS = ("optimizer_0", "optimizer")
"""What accelerate calls the folder inside of a checkpoint."""

_STATE = re.compile(r"(?:.*?\.)?state\.(?P<key>.+)\.(?P<name>\w+)")
_OPTION = re.compile(r"(?:.*?\.)?param_groups\.(?P<group>.+)\.(?P<name>\w+)")
_OPTIONS = ("lr", "initial_lr", "betas", "decoupled_weight_decay", "weight_decay", "params", "param_names", "step")
_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "collections": ("OrderedDict",),
    "pathlib": ("PosixPath", "PurePosixPath"),
    "pathlib._local": ("PosixPath", "PurePosixPath"),
}
"""All that a checkpoint's index may name: descriptions, which do nothing when they are made."""


class _RefusedError(Exception):
    """The index names something that is no description."""


class _Index(pickle.Unpickler):
    """Restores descriptions of tensors and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _CLASSES.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise _RefusedError(f"{module}.{name}")


def recognises(path: Path) -> bool:
    """Whether it is such a folder, or holds one that accelerate wrote."""
    return path.is_dir() and any((folder / METADATA).is_file() for folder in _candidates(path))


def read(path: Path) -> OptimizerState:
    """The optimizer's state; chunks are read when they are asked for.

    Raises:
        GraftbenchError: the index or a rank's file is missing, cut short or holds code, or there is no optimizer.
    """
    folder = next((folder for folder in _candidates(path) if (folder / METADATA).is_file()), path)
    checkpoint = _DistributedCheckpoint(folder)
    stored: dict[Key, dict[str, Any]] = {}
    options: dict[str, dict[str, Any]] = {}
    for item in checkpoint.items:
        if found := _OPTION.fullmatch(item):
            if found["name"] in _OPTIONS:
                options.setdefault(found["group"], {})[found["name"]] = checkpoint.value(item)
        elif found := _STATE.fullmatch(item):
            key: Key = int(found["key"]) if found["key"].isdigit() else found["key"]
            stored.setdefault(key, {})[found["name"]] = checkpoint.item(item)
    entries: dict[Key, Entry] = {}
    for key, entry in stored.items():
        found_entry = read_entry(f"{folder}: parameter '{key}'", entry)
        if found_entry is not None:
            entries[key] = found_entry
    if not entries:
        raise GraftbenchError(
            f"{folder} holds no optimizer's state (…state.<parameter>.exp_avg_sq), but {_some(checkpoint.items)}; name "
            "the folder that the optimizer was saved to"
        )
    return assembled(folder, _groups(options, entries), entries, _steps(stored.values(), options.values()))


class _DistributedCheckpoint:
    """A folder whose index has been read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / METADATA
        try:
            with path.open("rb") as file:
                index = _Index(file).load()
            self.items: dict[str, Any] = dict(index.state_dict_metadata)
            self._places: dict[Any, Any] = dict(index.storage_data)
        except FileNotFoundError:
            raise GraftbenchError(
                f"{folder} has no {METADATA}, without which nobody knows what its files hold; it is written last, so "
                "the save was interrupted: take an earlier checkpoint"
            ) from None
        except _RefusedError as error:
            raise GraftbenchError(
                f"{path} holds more than descriptions of tensors ({error}), and loading it could run code, so it was "
                "not loaded; save the checkpoint again with torch.distributed.checkpoint.save"
            ) from error
        except (pickle.UnpicklingError, OSError, EOFError, AttributeError, TypeError, ValueError, LookupError) as error:
            raise GraftbenchError(f"{path} is not a whole index ({error}); take an earlier checkpoint") from error
        self._check_files()

    def item(self, name: str) -> Any:
        """A tensor as it is described, or a small value."""
        described = self.items[name]
        if not hasattr(described, "chunks"):
            return self.value(name)
        return StoredState(tuple(described.size), partial(self._tensor, name))

    def value(self, name: str) -> Any:
        """A number, an option, or a whole tensor."""
        if hasattr(self.items[name], "chunks"):
            return self._tensor(name)
        return self._load(name, self._places[self._place(name)])

    def _tensor(self, name: str) -> Tensor:
        described = self.items[name]
        whole = torch.empty(described.size, dtype=described.properties.dtype)
        covered = 0
        for chunk in described.chunks:
            part = self._load(name, self._places[self._place(name, chunk.offsets)])
            if not isinstance(part, Tensor) or part.shape != chunk.sizes:
                raise GraftbenchError(f"{self.folder}: '{name}' has a chunk of another size than its index says")
            target = whole
            for dimension, (offset, size) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
                target = target.narrow(dimension, offset, size)
            target.copy_(part)
            covered += part.numel()
        if covered != whole.numel():
            raise GraftbenchError(
                f"{self.folder}: chunks of '{name}' hold {covered:,} of {whole.numel():,} entries; ranks are missing"
            )
        return whole

    def _load(self, name: str, place: Any) -> Any:
        path = self.folder / place.relative_path
        try:
            with path.open("rb") as file:
                file.seek(place.offset)
                content = file.read(place.length)
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise GraftbenchError(
                f"{path}: '{name}' holds more than plain values, and loading it could run code, so it was not loaded"
            ) from error
        except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
            raise GraftbenchError(f"{path}: '{name}' cannot be read ({str(error).splitlines()[0]})") from error

    def _place(self, name: str, offsets: Any = None) -> Any:
        from torch.distributed.checkpoint.metadata import MetadataIndex

        place = MetadataIndex(name, offsets)
        if place not in self._places:
            raise GraftbenchError(f"{self.folder / METADATA} does not say where '{name}' is; take another checkpoint")
        return place

    def _check_files(self) -> None:
        """Refuse missing and short files before anything is read."""
        needed: dict[str, int] = {}
        for place in self._places.values():
            if getattr(place, "transform_descriptors", None):
                raise GraftbenchError(f"{self.folder} is compressed ({place.transform_descriptors}); save it without")
            if Path(place.relative_path).name != place.relative_path:
                raise GraftbenchError(f"{self.folder / METADATA} names '{place.relative_path}', which is not beside it")
            needed[place.relative_path] = max(needed.get(place.relative_path, 0), place.offset + place.length)
        for name, size in sorted(needed.items()):
            path = self.folder / name
            if not path.is_file():
                raise GraftbenchError(f"{path} is missing, which holds a rank's part of the state; copy it there too")
            if path.stat().st_size < size:
                raise GraftbenchError(
                    f"{path} has {path.stat().st_size:,} bytes where its index expects {size:,}; it was half written: "
                    "copy it again, or take an earlier checkpoint"
                )


def _groups(options: Mapping[str, Mapping[str, Any]], entries: Mapping[Key, Entry]) -> list[ParameterGroup]:
    """The optimizer's groups; where options are kept by parameter (`flatten_optimizer_state_dict`), one for each."""
    groups = []
    for group, values in options.items():
        keys = values.get("param_names") or values.get("params") or ([group] if group in entries else [])
        plain = {name: value for name, value in values.items() if name not in ("params", "param_names")}
        groups.append(ParameterGroup(tuple(keys), plain))
    return groups or [ParameterGroup(tuple(entries))]


def _steps(entries: Iterable[Mapping[str, Any]], options: Iterable[Mapping[str, Any]]) -> list[Any]:
    found = [values.get("step") for values in (*entries, *options)]
    return [step.read() if isinstance(step, StoredState) else step for step in found]


def _candidates(path: Path) -> list[Path]:
    return [path, *(path / name for name in INNER_FOLDERS)]


def _some(items: Mapping[str, Any]) -> str:
    return ", ".join(list(items)[:3]) or "nothing"
