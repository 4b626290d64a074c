"""What a PEFT LoRA adapter does to each parameter of its base, read from its configuration and its tensors' names.

The rules are those of PEFT 0.21 (`tuners/lora`, `utils/save_and_load.py`), which `merge_and_unload` follows.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.checkpoints.layout import WEIGHT_DTYPES, Checkpoint, WeightsFile, role_and_layer
from harness.checkpoints.pickled import PickledFile
from harness.checkpoints.safetensors_file import SafetensorsFile
from harness.errors import GraftbenchError

CONFIG_NAME = "adapter_config.json"
SINGLE_NAME = "adapter_model.safetensors"
PICKLED_NAME = "adapter_model.bin"

_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<factor>lora_A|lora_B|lora_embedding_A|lora_embedding_B)"
    r"(\.(?!weight$|bias$)\w+)?"  # the adapter's name, in what was saved without PEFT's save_pretrained
    r"(\.(?P<kind>weight|bias))?"
)
_WRAPPER = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")
_UNSUPPORTED_TENSORS = {
    "lora_magnitude_vector": "DoRA",
    "trainable_tokens": "trained token indices",
    "lora_": "a variant of LoRA that is not known here",
}
_UNSUPPORTED_OPTIONS = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "target_parameters": "LoRA on bare parameters (target_parameters)",
    "trainable_token_indices": "trained token indices",
    "layer_replication": "layer replication",
    "alora_invocation_tokens": "activated LoRA, which holds for some tokens only",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "megatron_config": "Megatron's parallel layers",
}
_CHANGING_INITIALISATIONS = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Initialisations that take something out of the base weights, so that the adapter does not fit the published base."""


@dataclass(frozen=True)
class LowRank:
    """An update s·B·A of a matrix, or its transpose, by the names of the factors' tensors."""

    a: str
    b: str
    transposed: bool
    """Whether the parameter is stored as [in, out], as embeddings and GPT-2's layers are."""
    scaling: float


@dataclass(frozen=True)
class Change:
    """What an adapter does to one parameter: replace it, then add to it."""

    replacement: str | None = None
    """Tensor of the adapter that takes the parameter's place (modules_to_save, trained biases)."""
    low_rank: LowRank | None = None
    addition: str | None = None
    """Bias of B."""
    scaling: float = 1.0
    """Factor of the addition."""


@dataclass(frozen=True)
class Adapter:
    """An adapter that has been checked against its base."""

    folder: Path
    file: WeightsFile
    config: Mapping[str, Any]
    changes: Mapping[str, Change]
    """By the base's parameter names."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of the parameters that the adapter replaces; an embedding or a head may have another number of rows."""


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / CONFIG_NAME).is_file() and not (folder / "config.json").is_file()


def read_adapter(base: Checkpoint, folder: Path) -> Adapter:
    """Read an adapter's configuration and header, and check that it fits to the base.

    A base whose head is tied to its embedding has one matrix for both, so an adapter must change both alike (PEFT's
    `ensure_weight_tying`), and the change is applied once; any other adapter made two matrices of them and is refused.

    Raises:
        GraftbenchError: a file is missing or corrupt, or the adapter cannot be applied; all reasons are named at once.
    """
    config = _read_config(folder)
    unsupported = _unsupported_options(config) + _bad_numbers(config)
    if unsupported:
        raise _refusal(base, folder, unsupported)
    file = _open(folder)
    reading = _Reading(base, file, config)
    adapter = Adapter(folder, file, config, reading.changes, reading.shapes)
    if not reading.changes and not reading.problems:
        reading.problems.append("it changes no parameter of the base: it is empty")
    if reading.problems:
        file.close()
        raise _refusal(base, folder, reading.problems)
    return adapter


def _bad_numbers(config: Mapping[str, Any]) -> list[str]:
    """Ranks and scalings that no update can be computed with."""
    problems = []
    for key, patterns in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        given = config.get(patterns) or {}
        if not isinstance(given, Mapping):
            problems.append(f"{patterns} is {given!r}, not a mapping of module names")
            continue
        for name, value in {key: config.get(key, 8), **{f"{patterns}.{name}": v for name, v in given.items()}}.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or (key == "r" and value < 1):
                problems.append(f"{name} is {value!r}, which is no {'rank' if key == 'r' else 'scaling'}")
        for pattern in given:
            try:
                re.compile(pattern)
            except re.error as error:
                problems.append(f"{patterns} has the pattern {pattern!r}, which is not valid ({error})")
    return problems


def whole_tensor(file: WeightsFile, name: str) -> Tensor:
    """One tensor of an adapter."""
    stored = file.tensors[name]
    entries = math.prod(stored.shape)
    scratch = torch.empty(entries * stored.dtype.itemsize, dtype=torch.uint8)
    return file.read(name, 0, entries, scratch).view(stored.shape)


@dataclass
class _Target:
    """The tensors of an adapter that belong to one parameter, named as the adapter names it."""

    a: str | None = None
    b: str | None = None
    embedding: bool = False
    replacement: str | None = None
    addition: str | None = None


@dataclass
class _Reading:
    """The way from an adapter's tensors to changes of the base's parameters, and everything that is wrong on it."""

    base: Checkpoint
    file: WeightsFile
    config: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)
    changes: dict[str, Change] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tied: dict[str, Change] = {}
        embedding = self._tied_embedding()
        for target, tensors in self._targets().items():
            name = self._parameter(target)
            is_tied_head = name is None and embedding is not None and role_and_layer(target)[0] == "head"
            if is_tied_head:
                name = embedding
            if name is None:
                found = tensors.a or tensors.b or tensors.replacement or tensors.addition
                self.problems.append(f"the base has no '{target}' that '{found}' could change")
                continue
            change = self._change(target, name, tensors)
            if change is None:
                continue
            if is_tied_head:
                tied["head"] = change
            else:
                self.changes[name] = change
                if name == embedding:
                    tied["embedding"] = change
        self._check_square_matrices()
        if tied and embedding is not None and not self.problems:
            self._check_tied(embedding, tied)

    def _targets(self) -> dict[str, _Target]:
        targets: dict[str, _Target] = {}
        for key, stored in self.file.tensors.items():
            if stored.dtype not in WEIGHT_DTYPES:
                self.problems.append(f"'{key}' is {str(stored.dtype).removeprefix('torch.')}, not floating point")
                continue
            name = key.removeprefix(_PREFIX)
            match = _FACTOR.fullmatch(name)
            if match is None:
                variant = next((said for part, said in _UNSUPPORTED_TENSORS.items() if part in name), None)
                if variant:
                    self.problems.append(f"'{key}' belongs to {variant}, which is not supported")
                else:
                    targets.setdefault(_WRAPPER.sub("", name), _Target()).replacement = key
                continue
            module, factor = _WRAPPER.sub("", match["module"] + ".")[:-1], match["factor"]
            if match["kind"] == "bias":
                targets.setdefault(f"{module}.bias", _Target()).addition = key
                continue
            target = targets.setdefault(f"{module}.weight", _Target())
            target.embedding = target.embedding or "embedding" in factor
            if factor.endswith("A"):
                target.a = key
            else:
                target.b = key
        return targets

    def _parameter(self, target: str) -> str | None:
        """The base's parameter; hub checkpoints of some models (GPT-2) leave out the first part of the name."""
        return next((name for name in (target, target.partition(".")[2]) if name in self.base.tensors), None)

    def _change(self, target: str, name: str, tensors: _Target) -> Change | None:
        shape = self.base.tensors[name].shape
        if tensors.replacement:
            found = self.file.tensors[tensors.replacement].shape
            resizable = role_and_layer(name)[0] in ("embedding", "head") and len(found) == len(shape)
            if found != shape and not (resizable and found[1:] == shape[1:]):
                self.problems.append(f"'{tensors.replacement}' is {list(found)}, where the base has {list(shape)}")
                return None
            self.shapes[name] = shape = found
        module = target.rpartition(".")[0]
        scaling = self._scaling(module)
        if tensors.addition and self.file.tensors[tensors.addition].shape != shape:
            found = self.file.tensors[tensors.addition].shape
            self.problems.append(f"'{tensors.addition}' is {list(found)}, where the base has {list(shape)}")
            return None
        if not (tensors.a or tensors.b):
            return Change(tensors.replacement, None, tensors.addition, scaling)
        if not (tensors.a and tensors.b):
            self.problems.append(f"'{tensors.a or tensors.b}' has no counterpart: A and B are needed")
            return None
        low_rank = self._low_rank(module, shape, tensors.a, tensors.b, tensors.embedding)
        return Change(tensors.replacement, low_rank) if low_rank else None

    def _low_rank(self, module: str, shape: tuple[int, ...], key_a: str, key_b: str, embedding: bool) -> LowRank | None:
        a, b = (self.file.tensors[key].shape for key in (key_a, key_b))
        if len(a) > 2 or len(b) > 2 or len(shape) > 2:
            self.problems.append(f"'{key_a}' is {list(a)}: LoRA on convolutions and stacked experts is not supported")
            return None
        if len(a) < 2 or len(b) < 2 or a[0] != b[1]:
            self.problems.append(f"'{key_a}' is {list(a)} and '{key_b}' is {list(b)}, which is no product B·A")
            return None
        if a[0] != self._rank(module):
            self.problems.append(f"'{key_a}' has rank {a[0]}, where {CONFIG_NAME} says {self._rank(module)}")
            return None
        update = (b[0], a[1])
        fits, fits_transposed = shape == update, shape == update[::-1]
        if not (fits or fits_transposed) or (embedding and not fits_transposed):
            self.problems.append(f"'{key_b}' · '{key_a}' is {list(update)}, where the base has {list(shape)}")
            return None
        square = fits and fits_transposed
        transposed = embedding or (bool(self.config.get("fan_in_fan_out")) if square else fits_transposed)
        return LowRank(key_a, key_b, transposed, self._scaling(module))

    def _rank(self, module: str) -> int:
        return int(_by_pattern(self.config, "rank_pattern", module, self.config.get("r", 8)))

    def _scaling(self, module: str) -> float:
        alpha = _by_pattern(self.config, "alpha_pattern", module, self.config.get("lora_alpha", 8))
        rank = self._rank(module)
        return float(alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank)

    def _check_square_matrices(self) -> None:
        """PEFT knows which layers are stored as [in, out]; shapes tell as much, except for square matrices."""
        said = bool(self.config.get("fan_in_fan_out"))
        others = [
            name
            for name, change in self.changes.items()
            if change.low_rank
            and role_and_layer(name)[0] not in ("embedding", "head")
            and not _is_square(self._shape(name))
        ]
        squares = [name for name, change in self.changes.items() if change.low_rank and _is_square(self._shape(name))]
        contrary = [name for name in others if (low := self.changes[name].low_rank) and low.transposed != said]
        if squares and contrary:
            self.problems.append(
                f"fan_in_fan_out is {said}, '{contrary[0]}' shows the contrary, and '{squares[0]}' is square, so that "
                "it cannot be told whether its update is to be transposed"
            )

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.shapes.get(name, self.base.tensors[name].shape)

    def _tied_embedding(self) -> str | None:
        """The embedding that is the head as well."""
        roles = {name: role_and_layer(name)[0] for name in self.base.tensors}
        embeddings = [name for name, role in roles.items() if role == "embedding" and name.endswith(".weight")]
        if "head" in roles.values() or not self.base.config.get("tie_word_embeddings", True):
            return None
        # Without a word on tying, a language model that stores no head shares it; a bare encoder has none.
        if "tie_word_embeddings" not in self.base.config and self.base.architecture.endswith("Model"):
            return None
        return embeddings[0] if embeddings else None

    def _check_tied(self, name: str, tied: Mapping[str, Change]) -> None:
        if set(tied) == {"embedding", "head"} and self._same(tied["embedding"], tied["head"]):
            return
        which = " and ".join(sorted(tied)) + (" alone" if len(tied) == 1 else " differently")
        self.problems.append(
            f"the base's head is its embedding '{name}', but the adapter changes the {which}, which takes two matrices "
            "where the base has one (PEFT keeps them together with ensure_weight_tying=True)"
        )

    def _same(self, embedding: Change, head: Change) -> bool:
        """Whether an embedding and a head that are one matrix are changed alike."""
        if (embedding.replacement is None) != (head.replacement is None):
            return False
        if embedding.replacement and head.replacement and not self._equal(embedding.replacement, head.replacement):
            return False
        one, other = embedding.low_rank, head.low_rank
        if one is None or other is None:
            return one is other
        factors = [factors_of(self.file, low_rank) for low_rank in (one, other)]
        return one.scaling == other.scaling and all(map(torch.equal, *factors))

    def _equal(self, one: str, other: str) -> bool:
        entries, step = math.prod(self.file.tensors[one].shape), 1 << 20
        if self.file.tensors[one].shape != self.file.tensors[other].shape:
            return False
        scratches = torch.empty(2, step * 8, dtype=torch.uint8)
        for start in range(0, entries, step):
            stop = min(start + step, entries)
            pair = [self.file.read(key, start, stop, scratches[i]) for i, key in enumerate((one, other))]
            if not torch.equal(*pair):
                return False
        return True


def factors_of(file: WeightsFile, low_rank: LowRank) -> tuple[Tensor, Tensor]:
    """Factors L [rows, rank] and R [rank, columns] of the update L·R·scaling, for the parameter as it is stored."""
    a, b = whole_tensor(file, low_rank.a), whole_tensor(file, low_rank.b)
    return (a.T, b.T) if low_rank.transposed else (b, a)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GraftbenchError(
            f"{path} does not exist: what stands behind the '+' must be the folder of a PEFT adapter"
        ) from None
    except (OSError, ValueError) as error:
        raise GraftbenchError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise GraftbenchError(f"{path} is not an adapter's configuration")
    return config


def _unsupported_options(config: Mapping[str, Any]) -> list[str]:
    kind = config.get("peft_type")
    if kind != "LORA":
        return [f"it is of the type {kind}, and only LORA is supported"]
    problems = [f"{said} is not supported" for option, said in _UNSUPPORTED_OPTIONS.items() if config.get(option)]
    initialisation = str(config.get("init_lora_weights", True)).lower()
    if initialisation.startswith(_CHANGING_INITIALISATIONS):
        problems.append(
            f"it was initialised by {initialisation}, which changes the base weights as well; convert it to a plain "
            "LoRA with PEFT (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    for option in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(option) or {}, dict):
            problems.append(f"{option} is no mapping")
    return problems


def _open(folder: Path) -> WeightsFile:
    if (folder / SINGLE_NAME).exists():
        return SafetensorsFile(folder / SINGLE_NAME)
    if (folder / PICKLED_NAME).exists():
        return PickledFile(folder / PICKLED_NAME)
    raise GraftbenchError(f"{folder} holds neither {SINGLE_NAME} nor {PICKLED_NAME}; fetch or save the adapter again")


def _by_pattern(config: Mapping[str, Any], option: str, module: str, default: Any) -> Any:
    """The first pattern that matches the module's name, or the end of it from a dot on; as PEFT matches."""
    patterns: Mapping[str, Any] = config.get(option) or {}
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _is_square(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and shape[0] == shape[1]


def _refusal(base: Checkpoint, folder: Path, problems: list[str]) -> GraftbenchError:
    shown, more = problems[:8], len(problems) - 8
    reasons = "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
    return GraftbenchError(
        f"the adapter {folder} cannot be applied to {base.source}: {reasons}. Where PEFT can load it, merge it there "
        "(merge_and_unload) and give the merged model's folder"
    )
