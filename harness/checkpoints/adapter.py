"""A PEFT LoRA adapter on its base, applied piece by piece as the base is read, and never written out."""

import logging
import threading
from collections import OrderedDict
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from harness.checkpoints.adapter_layout import LowRank, factors_of, read_adapter
from harness.checkpoints.derived import DerivedCheckpoint
from harness.checkpoints.layout import TOKENIZER_FILES, Checkpoint, TensorInfo, digest_of_files, role_and_layer
from harness.checkpoints.source import is_hub_name, local_folder
from harness.files import canonical_json, text_digest

BLOCK_ENTRIES = 1 << 17
"""Entries of the update that are computed at once: whole rows, as many as fit, one at least.

Blocks depend on a parameter's shape alone, so that the bits of an update do not depend on the pieces it is read in.
"""

_KEPT_FACTORS = 4
"""Parameters whose factors are kept in memory: those that threads are reading at the same time."""

_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")

_DIGESTED_OPTIONS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out")

_log = logging.getLogger(__name__)


class AdaptedCheckpoint(DerivedCheckpoint):
    """A base and a LoRA adapter: W + s·B·A in fp32, whatever the adapter's data type (PEFT rounds s·B·A to that one).

    Embeddings, replaced parameters (modules_to_save) and trained biases are applied too; `read_adapter` says what is
    refused. `folder`, which gives the tokenizer, is the adapter's if it holds a vocabulary, since tokens may have been
    added, and otherwise the base's; the configuration is the base's.
    """

    is_adapter = True

    def __init__(self, base: Checkpoint, adapter: str | Path) -> None:
        """Read the adapter's header and check it against the base.

        Args:
            base: the model that the adapter was trained on.
            adapter: a folder or a hub name.

        Raises:
            GraftbenchError: the adapter is missing, corrupt, of an unsupported kind or does not fit to the base.
        """
        folder = local_folder(adapter)
        self._base = base
        self._adapter = read_adapter(base, folder)
        tensors = {
            name: TensorInfo(
                name,
                self._adapter.shapes.get(name, info.shape),
                info.dtype,
                self._adapter.file.path if name in self._adapter.changes else info.file,
            )
            for name, info in base.tensors.items()
        }
        super().__init__(f"{base.source}+{adapter}", base, tensors)
        if any((folder / name).is_file() for name in _VOCABULARY_FILES):
            self.folder = folder
        resized = next((name for name in self._adapter.shapes if role_and_layer(name)[0] == "embedding"), None)
        if resized:
            self.config = base.config | {"vocab_size": self.tensors[resized].shape[0]}
        self._factors: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()
        self._loading = threading.Lock()
        self._blocks = threading.local()
        _warn_of_another_base(base, self._adapter.config.get("base_model_name_or_path"), str(adapter))

    @cached_property
    def weights_digest(self) -> str:
        """Digest of the base's weights, of the adapter's file, and of the options that say how to apply it."""
        options = {name: self._adapter.config.get(name) for name in _DIGESTED_OPTIONS}
        return text_digest(
            canonical_json([self._base.weights_digest, digest_of_files([self._adapter.file.path]), options])
        )

    @cached_property
    def tokenizer_digest(self) -> str:
        """Digest of the tokenizer's files, the chat template included."""
        return digest_of_files(self.folder / name for name in TOKENIZER_FILES)

    def fetch(self, name: str, start: int, stop: int, scratch: Tensor) -> Tensor:
        """Entries of the adapted parameter, fp32, or of the base's as it is stored; see `TensorSource`."""
        change = self._adapter.changes.get(name)
        if change is None:
            return self._base.fetch(name, start, stop, scratch)
        count, file = stop - start, self._adapter.file
        adapted = scratch[: 4 * count].view(torch.float32)
        spare = self._spare(count)
        if change.replacement:
            adapted.copy_(file.read(change.replacement, start, stop, spare))
        else:
            adapted.copy_(self._base.fetch(name, start, stop, spare))
        if change.low_rank:
            self._add(name, change.low_rank, start, adapted)
        if change.addition:
            addition = file.read(change.addition, start, stop, spare).to(torch.float32)
            adapted.add_(addition.mul_(change.scaling))
        return adapted

    def announce(self, name: str, start: int, stop: int) -> None:
        """Tell the system that a range will be fetched soon."""
        change = self._adapter.changes.get(name)
        if change and change.replacement:
            self._adapter.file.announce(change.replacement, start, stop)
        else:
            self._base.announce(name, start, stop)

    def close(self) -> None:
        """Close the base's files and the adapter's; the next `fetch` opens them again."""
        self._base.close()
        self._adapter.file.close()
        with self._loading:
            self._factors.clear()

    def _add(self, name: str, low_rank: LowRank, start: int, adapted: Tensor) -> None:
        """Add the update's entries from `start` on, cut from whole blocks."""
        columns = self.tensors[name].shape[1]
        rows = max(1, BLOCK_ENTRIES // columns)
        stop = start + adapted.numel()
        for index in range(start // (rows * columns), -(-stop // (rows * columns))):
            low = index * rows * columns
            update = self._block(name, low_rank, index, rows)
            begin, end = max(start, low), min(stop, low + update.numel())
            adapted[begin - start : end - start].add_(update[begin - low : end - low])

    def _block(self, name: str, low_rank: LowRank, index: int, rows: int) -> Tensor:
        """Rows of s·B·A, flat; this thread's last one is kept, since the next piece often begins within it."""
        if getattr(self._blocks, "key", None) != (name, index):
            left, right = self._factors_of(name, low_rank)
            part = left[index * rows : (index + 1) * rows].to(torch.float32).contiguous()
            self._blocks.update = (part @ right).mul_(low_rank.scaling).view(-1)
            self._blocks.key = (name, index)
        update: Tensor = self._blocks.update
        return update

    def _factors_of(self, name: str, low_rank: LowRank) -> tuple[Tensor, Tensor]:
        with self._loading:
            if name not in self._factors:
                left, right = factors_of(self._adapter.file, low_rank)
                self._factors[name] = left, right.to(torch.float32).contiguous()
                if len(self._factors) > _KEPT_FACTORS:
                    self._factors.popitem(last=False)
            self._factors.move_to_end(name)
            return self._factors[name]


def _warn_of_another_base(base: Checkpoint, hint: object, adapter: str) -> None:
    """The adapter's word on its base is a hint: names change when a model is copied."""
    given = base.source.partition("@")[0]
    if isinstance(hint, str) and is_hub_name(hint) and is_hub_name(given) and hint.lower() != given.lower():
        _log.warning("the adapter %s says that it was trained on %s, not on %s", adapter, hint, given)
