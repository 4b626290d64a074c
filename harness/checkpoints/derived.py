"""What all checkpoints that are computed while they are read have in common: an adapter on its base, an average."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from harness.checkpoints.layout import SCRATCH_ITEM_BYTES, Checkpoint, TensorInfo, read_whole


class DerivedCheckpoint(ABC):
    """Tensors computed piece by piece; the rest is another checkpoint's. A `TensorSource`.

    Computed values are fp32, whatever `tensors` names as the data type: that is the one a copy of this model would be
    stored in.
    """

    is_adapter: bool
    """Whether a LoRA adapter is part of it, for which there are no second moments."""

    def __init__(
        self, source: str, like: "Checkpoint | DerivedCheckpoint", tensors: Mapping[str, TensorInfo] | None = None
    ) -> None:
        """Take over what does not change.

        Args:
            source: how the user named it.
            like: whose folder, configuration, tokenizer and buffers these are.
            tensors: what it holds, if not the same as `like`.
        """
        self.source = source
        self.folder: Path = like.folder
        """Where its tokenizer is."""
        self.config: dict[str, Any] = like.config
        self.tensors: dict[str, TensorInfo] = dict(like.tensors if tensors is None else tensors)
        self.buffers: dict[str, TensorInfo] = like.buffers
        self._like = like
        self._spares = threading.local()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def architecture(self) -> str:
        """The model's class as its configuration names it."""
        return self._like.architecture

    @property
    def entries(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(info.entries for info in self.tensors.values())

    @property
    def tokenizer_digest(self) -> str:
        """Digest of the tokenizer's files, the chat template included."""
        return self._like.tokenizer_digest

    @property
    def config_digest(self) -> str:
        """Digest of the model's and its generation's configuration."""
        return self._like.config_digest

    @property
    @abstractmethod
    def weights_digest(self) -> str:
        """Digest of everything that the values are computed from."""

    @abstractmethod
    def fetch(self, name: str, start: int, stop: int, scratch: Tensor) -> Tensor:
        """Entries of a tensor; see `TensorSource`."""

    @abstractmethod
    def announce(self, name: str, start: int, stop: int) -> None:
        """Tell the system that a range will be fetched soon."""

    @abstractmethod
    def close(self) -> None:
        """Close the files; the next `fetch` opens them again."""

    def read(self, name: str) -> Tensor:
        """One tensor, weights or buffer, whole."""
        if name in self.buffers:
            return self._like.read(name)
        return read_whole(self, self.tensors[name])

    def _spare(self, entries: int) -> Tensor:
        """Scratch space of this thread for what the values are computed from: the caller's holds the result."""
        spare: Tensor | None = getattr(self._spares, "buffer", None)
        if spare is None or spare.numel() < entries * SCRATCH_ITEM_BYTES:
            spare = self._spares.buffer = torch.empty(entries * SCRATCH_ITEM_BYTES, dtype=torch.uint8)
        return spare
