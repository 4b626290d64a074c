"""What a worker is to load: a merge that is still to be made, or a checkpoint on disk."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from harness.checkpoints import Checkpoint
from harness.checkpoints.layout import CONFIG_NAME, TOKENIZER_FILES
from harness.errors import GraftbenchError
from harness.evaluation.engines import Weights
from harness.files import canonical_json, digests_kept_in, file_digest, text_digest
from harness.merging import CutoffStore, MergePlan, MergeRequest, merge_to_folder, merged_parameters
from harness.merging.merge import write_companions

Table = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and data type of every tensor of a checkpoint, by name."""


class Opened(Protocol):
    """A subject whose files are open."""

    @property
    def table(self) -> Table:
        """Its tensors; a tied head is none of them."""
        ...

    def weights(self) -> Weights:
        """Their values, in the order of the base's bytes."""
        ...

    @property
    def arithmetic(self) -> str:
        """What decided about the last bits of the values that came; see `MergePlan`."""
        ...

    def write_companions(self, folder: Path) -> None:
        """Write configuration and tokenizer into an empty folder."""
        ...

    def checkpoint(self, room: Path) -> Path:
        """The folder of the whole model: `room`, which does not exist yet, if there is none so far."""
        ...


class Subject(Protocol):
    """A model that can be handed to an engine tensor by tensor. Small: it is sent to another process."""

    def open(self) -> contextlib.AbstractContextManager[Opened]:
        """Open its files.

        Raises:
            GraftbenchError: they cannot be read, or are not what they were when the subject was described.
        """
        ...


@dataclass(frozen=True)
class MergeSubject:
    """A merge, to be made while it is loaded."""

    request: MergeRequest
    recipe: Mapping[str, Any]
    """What the merge must be; another plan is refused."""
    home: Path
    """Where digests of files and cutoffs are kept."""

    @contextlib.contextmanager
    def open(self) -> Iterator["_OpenedMerge"]:
        """Plan the merge, here and now."""
        with digests_kept_in(self.home / "digests.json"), self.request.plan() as plan:
            if canonical_json(plan.recipe()) != canonical_json(self.recipe):
                raise GraftbenchError(
                    f"the models or the method of '{self.request.name}' have changed since this run began; run it again"
                )
            yield _OpenedMerge(plan, CutoffStore(self.home / "cutoffs"))


@dataclass(frozen=True)
class FolderSubject:
    """A checkpoint as it is."""

    folder: Path

    @contextlib.contextmanager
    def open(self) -> Iterator["_OpenedFolder"]:
        """Read its headers."""
        with Checkpoint(self.folder) as checkpoint:
            yield _OpenedFolder(checkpoint)


@dataclass(frozen=True)
class _OpenedMerge:
    plan: MergePlan
    store: CutoffStore

    @property
    def table(self) -> Table:
        infos = (*self.plan.parameters, *self.plan.copied)
        return {info.name: (info.shape, self._dtype(info.dtype)) for info in infos}

    def weights(self) -> Weights:
        yield from merged_parameters(self._alone, self.store)

    @property
    def arithmetic(self) -> str:
        return self._alone.arithmetic

    @cached_property
    def _alone(self) -> MergePlan:
        # One worker is a thread, several are forked processes, and an engine's process must not be forked.
        return replace(self.plan, execution=replace(self.plan.execution, threads=1))

    def write_companions(self, folder: Path) -> None:
        write_companions(self.plan, folder)

    def checkpoint(self, room: Path) -> Path:
        return merge_to_folder(self.plan, room, store=self.store).folder

    def _dtype(self, own: torch.dtype) -> torch.dtype:
        return self.plan.dtype if self.plan.dtype is not None and own.is_floating_point else own


@dataclass(frozen=True)
class _OpenedFolder:
    opened: Checkpoint

    @property
    def table(self) -> Table:
        infos = (*self.opened.tensors.values(), *self.opened.buffers.values())
        return {info.name: (info.shape, info.dtype) for info in infos}

    def weights(self) -> Weights:
        return ((name, self.opened.read(name)) for name in self.table)

    @property
    def arithmetic(self) -> str:
        return "none"

    def write_companions(self, folder: Path) -> None:
        for file in _companions(self.opened.folder):
            shutil.copy(file, folder)

    def checkpoint(self, room: Path) -> Path:
        return self.opened.folder


def companions_digest(folder: Path) -> str:
    """Digest of configuration and tokenizer: an engine reads them once, so models that share one must share these."""
    described: dict[str, Any] = {}
    for file in _companions(folder):
        described[file.name] = file_digest(file)
        if file.name == CONFIG_NAME:
            config = json.loads(file.read_text(encoding="utf-8"))
            config["dtype"] = config.pop("torch_dtype", None) or config.get("dtype")
            for says_nothing in ("transformers_version", "_name_or_path"):
                config.pop(says_nothing, None)
            described[file.name] = config
    return text_digest(canonical_json(described))


def _companions(folder: Path) -> list[Path]:
    names = (CONFIG_NAME, "generation_config.json", *TOKENIZER_FILES)
    return [folder / name for name in names if (folder / name).exists()]
