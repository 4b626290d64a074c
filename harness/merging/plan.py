"""The plan of a merge: what is read, how it is merged, and what comes out."""

import logging
import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor

from harness.checkpoints import TensorInfo, TensorSource, role_and_layer
from harness.checkpoints.layout import SCRATCH_ITEM_BYTES, not_finite
from harness.checkpoints.opening import Model
from harness.checkpoints.vocabulary import Vocabulary
from harness.curvature import CurvatureSource
from harness.errors import GraftbenchError
from harness.files import canonical_json, text_digest
from harness.merging.pieces import PIECE_ENTRIES, TILE_ENTRIES, Piece, entries_at_once
from harness.merging.source import method_source_digest
from methods import Method
from methods.interface import Granularity, Site

if TYPE_CHECKING:
    from harness.merging.kernels import Kernels
    from harness.merging.request import MergeRequest

log = logging.getLogger(__name__)

BASE = "base"
"""The name of the base among the models that can give the output its tokenizer."""

_TEMPORARIES = 6
"""Tensors of the experts' size that a method holds at the same time, at most, beside what it is given."""


DEFAULT_MEMORY_BYTES = 10**9
"""What pieces at work take together, unless a method that must see whole tensors needs more."""


KernelChoice = Literal["auto", "plain", "compiled"]

_WORKERS_PER_CORE = 4
"""More only wait for one another."""


@dataclass(frozen=True)
class Execution:
    """How a merge is carried out. None of it changes a bit of the result on one type of device."""

    devices: tuple[torch.device, ...] = (torch.device("cpu"),)
    """Where arithmetic happens; pieces are dealt out to several devices."""
    threads: int = 0
    """Workers, each on one core; 0 means one for every core, or three for every GPU."""
    memory_bytes: int | None = None
    """What all pieces at work may take together, in bytes; None until the plan has settled it."""
    kernels: KernelChoice = "auto"
    """Whether methods are compiled: where that pays, never, or always, as far as a method can be."""
    piece_entries: int = PIECE_ENTRIES
    tile_entries: int = TILE_ENTRIES

    @property
    def workers(self) -> int:
        """Number of workers."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if self.threads:
            return min(self.threads, _WORKERS_PER_CORE * cores)
        return 3 * len(self.devices) if self.devices[0].type == "cuda" else cores

    @property
    def tile(self) -> int:
        """Entries that arithmetic sees at once: what fits into a core's cache, or on a GPU the whole piece."""
        return self.piece_entries if self.devices[0].type == "cuda" else self.tile_entries

    @property
    def budget(self) -> int:
        """The memory that was set, or the default."""
        return self.memory_bytes or DEFAULT_MEMORY_BYTES


@dataclass(frozen=True)
class MergePlan:
    """A merge that is ready to run. Use it as a context manager to close its files."""

    name: str
    method: Method
    base_model: Model
    models: dict[str, Model]
    """The experts that the method reads, in alphabetical order, whatever order the user named them in."""
    base: TensorSource
    """The base's tensors, with the output's vocabulary rows."""
    experts: dict[str, TensorSource]
    """The experts' tensors, with the output's vocabulary rows."""
    curvature: CurvatureSource | None
    vocabulary: Vocabulary
    tokenizer: str
    """The model that gives the output its tokenizer: base, or an expert's name."""
    parameters: tuple[TensorInfo, ...]
    """The output's tensors in the order of the base's bytes on disk."""
    copied: tuple[TensorInfo, ...]
    """Tensors of the base that the output takes as they are."""
    execution: Execution
    dtype: torch.dtype | None
    """Data type of the output; None keeps each tensor's as the base has it."""
    request: "MergeRequest | None" = None
    """What it was planned from, where another process may have to plan the same merge."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as closing:
            for source in (self.base, *self.experts.values()):
                closing.callback(source.close)
            if self.curvature is not None:
                closing.enter_context(self.curvature)

    @cached_property
    def entries(self) -> int:
        """Number of merged entries, tied ones counted once."""
        return sum(info.entries for info in self.parameters)

    @cached_property
    def layers(self) -> int:
        """Number of blocks of the model."""
        numbers = [role_and_layer(info.name)[1] for info in self.parameters]
        return max((number + 1 for number in numbers if number is not None), default=0)

    @cached_property
    def kernels(self) -> "Kernels":
        """The method compiled, where that was worth it."""
        from harness.merging.kernels import Kernels

        return Kernels(self)

    @property
    def arithmetic(self) -> str:
        """What decides about the last bits of a merge that has run: kind of device, and kernels that round apart."""
        device = self.execution.devices[0].type
        return device if self.kernels.rounding == "plain" else f"{device}, compiled"

    @cached_property
    def granularity(self) -> Granularity:
        """How much of a parameter the method must see at once."""
        return self.method.granularity()

    @cached_property
    def reads_base(self) -> bool:
        """Whether the base's values matter: to the method, or to rows that an expert lacks."""
        return self.method.uses_base() or not self.vocabulary.identity

    @cached_property
    def scores_alone(self) -> bool:
        """Whether an expert's score depends on that expert and the base alone."""
        return self.method.scores_alone() and self.vocabulary.identity

    @property
    def tokenizer_model(self) -> Model:
        """The model that gives the output its tokenizer."""
        return self.base_model if self.tokenizer == BASE else self.models[self.tokenizer]

    def copy_of(self, info: TensorInfo) -> Tensor:
        """A tensor that the output takes from the base as it is, weights in the output's data type.

        Raises:
            GraftbenchError: it holds NaN or Inf, or values that the output's data type cannot hold.
        """
        tensor = self.base_model.read(info.name)
        if not tensor.is_floating_point():
            return tensor
        if not _is_finite(tensor):
            raise not_finite(self.base_model, info.name)
        copied = tensor.to(self.dtype or tensor.dtype)
        if not _is_finite(copied):
            raise GraftbenchError(
                f"tensor '{info.name}', copied from the base, does not fit into {copied.dtype}; "
                "choose dtype=float32 or dtype=bfloat16"
            )
        return copied

    def site(self, info: TensorInfo) -> Site:
        """Where a parameter sits in the network."""
        return Site(info.name, *role_and_layer(info.name), self.layers)

    def bytes_of(self, piece: Piece) -> int:
        """Memory that a piece takes while it is worked on: what is read, what the method holds, what comes out."""
        return self.bytes_at_once(piece.info, piece.entries)

    def bytes_at_once(self, info: TensorInfo, entries: int) -> int:
        """Estimate of the memory at work on so many entries of a parameter; on the device, if that is a GPU."""
        tile = min(entries, entries_at_once(info, self.granularity, self.execution.tile))
        experts = len(self.experts)
        rows = experts * (2 if self.curvature is not None else 1)
        at_once = 4 * (1 + rows + _TEMPORARIES * experts) + SCRATCH_ITEM_BYTES
        return tile * at_once + entries * max((self.dtype or info.dtype).itemsize, 4)

    def recipe(self) -> dict[str, Any]:
        """What determines the merged weights, and nothing else: method, hyper-parameters, input digests, data type."""
        return {
            "method": self.name,
            "source": method_source_digest(type(self.method)),
            "hyperparameters": asdict(self.method),
            "base": self.base_model.weights_digest,
            "experts": {name: model.weights_digest for name, model in self.models.items()},
            "curvature": self.curvature.describe() if self.curvature is not None else None,
            "config": self.base_model.config_digest,
            "tokenizer": self.tokenizer_model.tokenizer_digest,
            "vocabulary": self.vocabulary.described(),
            "dtype": str(self.dtype).removeprefix("torch.") if self.dtype else "as the base",
        }

    def score_keys(self) -> dict[str, str]:
        """For each expert a digest of all that its scores depend on, if that is the expert and the base alone."""
        if not self.scores_alone:
            return {}
        options = asdict(self.method)
        curvature = self.curvature.describe() if self.curvature is not None else None
        return {
            name: text_digest(
                canonical_json(
                    {
                        "source": method_source_digest(type(self.method)),
                        "options": {option: options[option] for option in self.method.score_depends_on()},
                        "base": self.base_model.weights_digest,
                        "expert": model.weights_digest,
                        "curvature": curvature and [curvature["bias_corrected"], curvature["files"][name]],
                    }
                )
            )
            for name, model in self.models.items()
        }


def _is_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or Inf; both show in the extremes, which take no memory."""
    return not tensor.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())
