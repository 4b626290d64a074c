"""What a checkpoint holds, read from its headers, and its tensors, read in pieces."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from harness.checkpoints.ranges import StoredTensor
from harness.checkpoints.safetensors_file import SafetensorsFile
from harness.checkpoints.source import local_folder
from harness.errors import GraftbenchError
from harness.files import canonical_json, file_digests, text_digest
from methods.interface import Role

CONFIG_NAME = "config.json"
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
PICKLED_INDEX_NAME = "pytorch_model.bin.index.json"
PICKLED_NAME = "pytorch_model.bin"

WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Data types of weights that can be merged."""

QUANTISED_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8)
"""Data types that only quantised weights have; other integers are buffers, such as position ids."""

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


_PIECE_ENTRIES = 1 << 20

SCRATCH_ITEM_BYTES = 8
"""Bytes of scratch space that `fetch` may ask for per entry."""


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


class WeightsFile(Protocol):
    """One file of tensors, be it safetensors or a pickle."""

    path: Path

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Its tensors as its header describes them."""

    def read(self, name: str, start: int, stop: int, scratch: Tensor) -> Tensor:
        """Entries of a tensor, flat; see `TensorSource.fetch`."""

    def announce(self, name: str, start: int, stop: int) -> None:
        """Tell the system that a range will be read soon."""

    def close(self) -> None:
        """Close the file; the next read opens it again."""


class TensorSource(Protocol):
    """Whatever gives tensors in pieces: a checkpoint, an adapter on one, an average of several, second moments."""

    @property
    def source(self) -> str:
        """The folder, file or hub name as the user gave it."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What it holds."""

    def fetch(self, name: str, start: int, stop: int, scratch: Tensor) -> Tensor:
        """Entries `start` to `stop` of a tensor, flat, on the CPU; the same bits however a tensor is cut into pieces.

        Args:
            name: the tensor.
            start: flat index of the first entry.
            stop: flat index after the last.
            scratch: uint8, 8 bytes per entry, of the calling thread; the result may be a view of it.

        Raises:
            GraftbenchError: the tensor cannot be read; file and tensor are named.
        """

    def announce(self, name: str, start: int, stop: int) -> None:
        """Tell the system that a range will be fetched soon."""

    def close(self) -> None:
        """Close its files; the next `fetch` opens them again."""


class Checkpoint:
    """A Hugging Face folder: its configuration and tensors, from headers alone until `fetch`. A `TensorSource`.

    Use it as a context manager to close its files. A tied head is not among the tensors, since it is the embedding;
    neither are buffers of integers, which nobody can average.
    """

    def __init__(self, source: str | Path) -> None:
        """Open a folder or a hub name (`name` or `name@revision`) and check every header.

        Raises:
            GraftbenchError: the folder, a file or the configuration is missing or corrupt, or the weights are
                quantised; the file is named.
        """
        self.source = str(source)
        self.folder = local_folder(source)
        self.config = self._read_config()
        self._file_of: dict[str, WeightsFile] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self.buffers: dict[str, TensorInfo] = {}
        """Tensors of integers, in their files beside the weights."""
        self._read_headers()

    is_adapter = False
    """Whether an adapter is part of it, for which there are no second moments."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; the next `fetch` opens them again."""
        for file in self._files():
            file.close()

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
        return digest_of_files({info.file for info in (*self.tensors.values(), *self.buffers.values())})

    @cached_property
    def tokenizer_digest(self) -> str:
        """Digest of the tokenizer's files, the chat template included."""
        return digest_of_files(self.folder / name for name in TOKENIZER_FILES)

    @cached_property
    def config_digest(self) -> str:
        """Digest of the model's and its generation's configuration."""
        return digest_of_files(self.folder / name for name in (CONFIG_NAME, "generation_config.json"))

    def fetch(self, name: str, start: int, stop: int, scratch: Tensor) -> Tensor:
        """Entries of a tensor as they are stored; see `TensorSource`."""
        return self._file_of[name].read(name, start, stop, scratch)

    def announce(self, name: str, start: int, stop: int) -> None:
        """Tell the system that a range will be fetched soon."""
        self._file_of[name].announce(name, start, stop)

    def read(self, name: str) -> Tensor:
        """One tensor, weights or buffer, whole, as it is stored."""
        return read_whole(self, self.tensors.get(name) or self.buffers[name])

    def _files(self) -> list[WeightsFile]:
        return list({file.path: file for file in self._file_of.values()}.values())

    def _read_config(self) -> dict[str, Any]:
        path = self.folder / CONFIG_NAME
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise GraftbenchError(f"{path} does not exist: {self.source} is not a Hugging Face checkpoint") from None
        except (OSError, ValueError) as error:
            raise GraftbenchError(f"{path} is not valid JSON ({error})") from error
        if not isinstance(config, dict):
            raise GraftbenchError(f"{path} is not a model configuration")
        if config.get("quantization_config"):
            quantised = config["quantization_config"]
            method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else quantised
            raise GraftbenchError(f"{self.source} is quantised ({method}); merge the checkpoint that it was made from")
        return config

    def _read_headers(self) -> None:
        for path, expected in self._weight_files().items():
            file = _opened(path)
            missing = sorted(expected - file.tensors.keys())
            if missing:
                raise GraftbenchError(f"{path}: tensor '{missing[0]}' is missing, though the index lists it there")
            for name, stored in file.tensors.items():
                if stored.dtype in QUANTISED_DTYPES:
                    kind = str(stored.dtype).removeprefix("torch.")
                    raise GraftbenchError(
                        f"{path}: tensor '{name}' is quantised ({kind}); merge the checkpoint that it was made from"
                    )
                if expected and name not in expected:
                    continue  # left over from another export: the index says where tensors are
                self._file_of[name] = file
                among = self.tensors if stored.dtype in WEIGHT_DTYPES else self.buffers
                among[name] = TensorInfo(name, stored.shape, stored.dtype, path)
        if self.config.get("tie_word_embeddings") and any(_role(name) == "embedding" for name in self.tensors):
            self.tensors = {name: info for name, info in self.tensors.items() if _role(name) != "head"}

    def _weight_files(self) -> dict[Path, set[str]]:
        """The weight files, each with the tensors that the index expects there; safetensors where there are both."""
        for index_name, single_name in ((INDEX_NAME, SINGLE_NAME), (PICKLED_INDEX_NAME, PICKLED_NAME)):
            if (self.folder / index_name).exists():
                return _indexed(self.folder / index_name)
            if (self.folder / single_name).exists():
                return {self.folder / single_name: set()}
        raise GraftbenchError(
            f"{self.folder} holds neither {SINGLE_NAME} nor {INDEX_NAME} nor {PICKLED_NAME}; "
            "save the model there with save_pretrained"
        )


def read_whole(source: TensorSource, info: TensorInfo) -> Tensor:
    """One tensor whole, in its shape, as `fetch` gives it."""
    scratch = torch.empty(info.entries * SCRATCH_ITEM_BYTES, dtype=torch.uint8)
    return source.fetch(info.name, 0, info.entries, scratch).view(info.shape)


def require_finite(source: TensorSource) -> None:
    """Read everything once.

    Raises:
        GraftbenchError: a tensor holds NaN or Inf; file and tensor are named.
    """
    scratch = torch.empty(_PIECE_ENTRIES * SCRATCH_ITEM_BYTES, dtype=torch.uint8)
    for name, info in source.tensors.items():
        for start in range(0, info.entries, _PIECE_ENTRIES):
            values = source.fetch(name, start, min(start + _PIECE_ENTRIES, info.entries), scratch)
            if not torch.isfinite(values).all():
                raise not_finite(source, name)


def not_finite(source: TensorSource, name: str) -> GraftbenchError:
    """The error that a tensor holds NaN or Inf."""
    return GraftbenchError(
        f"{source.tensors[name].file}: tensor '{name}' has NaN or Inf; merging would spread them, "
        f"so export {source.source} again"
    )


def digest_of_files(files: Iterable[Path]) -> str:
    """Digest of those files that exist: their names and bytes."""
    digests = file_digests(file for file in files if file.is_file())
    return text_digest(canonical_json([[file.name, digest] for file, digest in digests.items()]))


def _opened(path: Path) -> WeightsFile:
    if path.suffix != ".bin":
        return SafetensorsFile(path)
    from harness.checkpoints.pickled import PickledFile

    return PickledFile(path)


def read_index(index: Path) -> dict[str, Path]:
    """The file of each tensor, as an index of shards names them (`weight_map`); all lie beside it.

    Raises:
        GraftbenchError: it is no such index.
    """
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not weight_map or any(Path(file).name != file for file in weight_map.values()):
            raise ValueError("it must name files beside it")
        return {str(name): index.parent / file for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise GraftbenchError(f"{index} is not a valid index of shards ({error}); export it again") from error


def _indexed(index: Path) -> dict[Path, set[str]]:
    files: dict[Path, set[str]] = {}
    for name, file in read_index(index).items():
        files.setdefault(file, set()).add(name)
    return dict(sorted(files.items()))


@cache
def role_and_layer(name: str) -> tuple[Role, int | None]:
    """What a parameter does in the network, and the block that it belongs to, by the usual names."""
    layer = _LAYER.search(name)
    return _role(name), int(layer.group(1)) if layer else None


def _role(name: str) -> Role:
    return next((role for pattern, role in _ROLES if re.search(pattern, name)), "other")
