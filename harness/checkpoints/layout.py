"""What a checkpoint holds, read from its headers, and its tensors, read one at a time."""

import json
import re
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.checkpoints.source import local_folder
from harness.errors import GraftbenchError
from harness.files import canonical_json, file_digest, text_digest
from methods.interface import Role

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Data types of weights that can be merged, by their name in a safetensors header."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
"""Files that make a tokenizer and its chat template; a checkpoint has some of them."""

_ROLES: tuple[tuple[str, Role], ...] = (
    (r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in)\.", "embedding"),
    (r"(^|\.)(lm_head|embed_out|output)\.", "head"),
    (r"(norm|layernorm|ln_\w+)\.(weight|bias)$", "norm"),
    (r"\.(q_proj|wq)\.", "q"),
    (r"\.(k_proj|wk)\.", "k"),
    (r"\.(v_proj|wv)\.", "v"),
    (r"\.(o_proj|out_proj|wo)\.", "o"),
    (r"\.(gate_proj|w1)\.", "gate"),
    (r"\.(up_proj|w3)\.", "up"),
    (r"\.(down_proj|w2)\.", "down"),
)
_LAYER = re.compile(r"\.(?:layers|h|blocks|block)\.(\d+)\.")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as its file's header describes it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path

    @property
    def entries(self) -> int:
        """Number of entries."""
        return int(torch.Size(self.shape).numel())


class Checkpoint:
    """A Hugging Face folder of safetensors: its configuration and tensors, from headers alone until `read`.

    Use it as a context manager to close its files; a tied head is not among the tensors, since it is the embedding.
    """

    def __init__(self, source: str | Path) -> None:
        """Open a folder or a hub name (`name` or `name@revision`) and check every header.

        Raises:
            GraftbenchError: the folder, a file or the configuration is missing or corrupt; the file is named.
        """
        self.source = str(source)
        self.folder = local_folder(source)
        self.config = self._read_config()
        self._files = ExitStack()
        self._open: dict[Path, Any] = {}
        self.tensors = self._read_headers()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; the next `read` opens them again."""
        self._files.close()
        self._open.clear()

    @property
    def architecture(self) -> str:
        """The model's class as its configuration names it."""
        return str((self.config.get("architectures") or [self.config.get("model_type", "unknown")])[0])

    @property
    def entries(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(info.entries for info in self.tensors.values())

    @cached_property
    def weights_digest(self) -> str:
        """Digest of the weight files' bytes, each with its name."""
        files = sorted({info.file for info in self.tensors.values()})
        return text_digest(canonical_json([[file.name, file_digest(file)] for file in files]))

    @cached_property
    def tokenizer_digest(self) -> str:
        """Digest of the tokenizer's files, the chat template included."""
        files = [self.folder / name for name in TOKENIZER_FILES]
        return text_digest(canonical_json([[file.name, file_digest(file)] for file in files if file.is_file()]))

    @cached_property
    def config_digest(self) -> str:
        """Digest of the model's and its generation's configuration."""
        files = [self.folder / name for name in ("config.json", "generation_config.json")]
        return text_digest(canonical_json([[file.name, file_digest(file)] for file in files if file.is_file()]))

    def same_vocabulary(self, other: "Checkpoint") -> bool:
        """Whether both give the same numbers to the same tokens, as far as both say (tokenizer.json)."""
        if self.tokenizer_digest == other.tokenizer_digest:
            return True
        ours, theirs = (_vocabulary(checkpoint.folder / "tokenizer.json") for checkpoint in (self, other))
        return ours is None or theirs is None or ours == theirs

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU, as it is stored.

        Raises:
            GraftbenchError: the file vanished or cannot be read, or the tensor holds NaN or Inf; both are named.
        """
        info = self.tensors[name]
        try:
            if info.file not in self._open:
                self._open[info.file] = self._files.enter_context(safe_open(info.file, framework="pt"))
            tensor: Tensor = self._open[info.file].get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise GraftbenchError(f"{info.file}: tensor '{name}' cannot be read ({error})") from error
        if not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise GraftbenchError(
                f"{info.file}: tensor '{name}' has {bad} NaN or Inf among {tensor.numel()} entries; "
                "merging would spread them, so export this checkpoint again"
            )
        return tensor

    def _read_config(self) -> dict[str, Any]:
        path = self.folder / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise GraftbenchError(f"{path} does not exist: {self.source} is not a Hugging Face checkpoint") from None
        except ValueError as error:
            raise GraftbenchError(f"{path} is not valid JSON ({error})") from error
        if not isinstance(config, dict):
            raise GraftbenchError(f"{path} is not a model configuration")
        if config.get("quantization_config"):
            method = config["quantization_config"].get("quant_method", "unknown")
            raise GraftbenchError(f"{self.source} is quantised ({method}); merge the checkpoint that it was made from")
        return config

    def _read_headers(self) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for file, expected in self._weight_files().items():
            found = read_header(file)
            missing = sorted(expected - found.keys())
            if missing:
                raise GraftbenchError(f"{file}: tensor '{missing[0]}' is missing, though {INDEX_NAME} lists it there")
            tensors |= found
        if self.config.get("tie_word_embeddings") and any(_role(name) == "embedding" for name in tensors):
            tensors = {name: info for name, info in tensors.items() if _role(name) != "head"}
        return tensors

    def _weight_files(self) -> dict[Path, set[str]]:
        """The weight files, each with the tensors that the index expects there."""
        index = self.folder / INDEX_NAME
        if not index.exists():
            single = self.folder / SINGLE_NAME
            if not single.exists():
                raise GraftbenchError(
                    f"{self.folder} holds neither {SINGLE_NAME} nor {INDEX_NAME}; "
                    "convert the weights to safetensors with save_pretrained first"
                )
            return {single: set()}
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            entries = sorted((str(name), self.folder / file) for name, file in weight_map.items())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise GraftbenchError(f"{index} is not a valid safetensors index ({error})") from error
        files: dict[Path, set[str]] = {}
        for name, file in entries:
            files.setdefault(file, set()).add(name)
        return files


def _vocabulary(path: Path) -> Any:
    """The tokens and their numbers; None where the file does not tell."""
    try:
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
        return tokenizer["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, in the order of their bytes, from its header alone.

    Raises:
        GraftbenchError: the file is missing, truncated or corrupt, or holds a data type that cannot be merged.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.offset_keys()}
            described = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except FileNotFoundError:
        raise GraftbenchError(f"{file} does not exist; fetch or export the checkpoint again") from None
    except (OSError, SafetensorError) as error:
        raise GraftbenchError(f"{file} is not a whole safetensors file ({error}); fetch or export it again") from error
    for name, (_, dtype) in described.items():
        if dtype not in DTYPES:
            raise GraftbenchError(f"{file}: tensor '{name}' is {dtype}; only {', '.join(DTYPES)} can be merged")
    return {name: TensorInfo(name, shape, DTYPES[dtype], file) for name, (shape, dtype) in described.items()}


def role_and_layer(name: str) -> tuple[Role, int | None]:
    """What a parameter does in the network, and the block that it belongs to, by the usual names."""
    layer = _LAYER.search(name)
    return _role(name), int(layer.group(1)) if layer else None


def _role(name: str) -> Role:
    return next((role for pattern, role in _ROLES if re.search(pattern, name)), "other")
