"""The curvatures of all experts of a merge, checked as a set and read in pieces."""

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from harness.checkpoints.layout import SCRATCH_ITEM_BYTES, TensorInfo, TensorSource, role_and_layer
from harness.curvature.second_moments import PIECE_ENTRIES, SecondMoments, StoredKind, refusal
from harness.curvature.stored import Form
from harness.errors import GraftbenchError
from harness.files import canonical_json, file_digests, text_digest
from methods.interface import CurvatureKind, Role

log = logging.getLogger(__name__)

NAMES_SHOWN = 3
"""Names that one problem lists before it counts."""

FORMS: dict[CurvatureKind, Form] = {"compressed": "sums", "rank": "rank", "blocks": "blocks"}
"""What the kinds that compress on the fly compress to."""


class CurvatureSource:
    """Second moments of several experts, in their order, bias-corrected alike or not at all."""

    def __init__(
        self,
        kind: CurvatureKind,
        files: Mapping[str, Path],
        shapes: Mapping[str, tuple[int, ...]],
        wrap: Callable[[str, TensorSource], TensorSource] | None = None,
        problems: list[str] | None = None,
    ) -> None:
        """Open each expert's files and check that they cover every parameter in its shape.

        Args:
            kind: what the method asks for; some read full files through a compressed form (see `FORMS`), and `raw`
                leaves out the bias correction.
            files: for each expert its file, index or folder; see `SecondMoments`.
            shapes: the parameters that will be read.
            wrap: given an expert's name and its curvatures, gives them with their rows rearranged as the parameters
                have them; called before shapes are compared.
            problems: takes everything that is wrong, a sentence each; the source cannot be read if it took any.

        Raises:
            GraftbenchError: something is wrong, and there is no list that takes it; all is named.
        """
        found: list[str] = []
        self._shapes = dict(shapes)
        self._experts: dict[str, _ExpertCurvature] = {}
        self._sources: dict[str, TensorSource] = {}
        for expert, path in files.items():
            try:
                moments = SecondMoments(path, _stored_kind(kind))
                self._experts[expert] = _ExpertCurvature(expert, moments, FORMS.get(kind), shapes)
                self._sources[expert] = wrap(expert, self._experts[expert]) if wrap else self._experts[expert]
            except GraftbenchError as error:
                found.append(str(error))
            else:
                found += _problems_of_kind(kind, moments)
                found += _problems_of_cover(expert, moments, self._sources[expert], shapes)
        found += self._problems_of_mixture()
        if found and problems is None:
            self.close()
            raise GraftbenchError("\n".join(found))
        if problems is not None:
            problems += found
        self.kind = kind
        self.corrections = self._common_corrections()
        """Each expert's bias correction, by which its stored values are multiplied."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files; the next reading opens them again."""
        for expert in self._experts.values():
            expert.close()

    def only(self, experts: Sequence[str]) -> "CurvatureSource":
        """The curvatures of some of the experts, in that order, corrected as in the whole set; the files are shared."""
        part = copy.copy(self)
        part._experts = {name: self._experts[name] for name in experts}
        part._sources = {name: self._sources[name] for name in experts}
        part.corrections = {name: self.corrections[name] for name in experts}
        return part

    def fetch_into(self, out: Tensor, name: str, start: int, stop: int, scratch: Tensor) -> None:
        """Fill `out` with entries `start` to `stop` of a parameter's curvatures; the same bits however it is cut.

        Args:
            out: fp32, `[experts, stop − start]`, on any device.
            name: the parameter.
            start: flat index of the first entry.
            stop: flat index after the last.
            scratch: uint8, 8 bytes per entry, of the calling thread.

        Raises:
            GraftbenchError: values are negative, NaN or Inf, or cannot be read; file and tensor are named.
        """
        for row, (expert, source) in zip(out, self._sources.items(), strict=True):
            plain = source is self._experts[expert] and source.tensors[name].dtype == torch.float32
            if plain and row.is_cpu and row.is_contiguous():
                # What is fp32 in the file, or computed in fp32, needs no room but its own.
                source.fetch(name, start, stop, row.view(torch.uint8))
            else:
                row.copy_(source.fetch(name, start, stop, scratch))
            if self.corrections[expert] != 1.0:
                row.mul_(self.corrections[expert])

    def announce(self, name: str, start: int, stop: int) -> None:
        """Tell the system that a range will be fetched soon."""
        for source in self._sources.values():
            source.announce(name, start, stop)

    def read(self, name: str) -> Tensor:
        """The curvatures of one parameter, whole: fp32, `[experts, *shape]`."""
        shape = self._shapes[name]
        out = torch.empty(len(self._sources), *shape)
        flat = out.view(len(out), -1) if out.numel() else out.new_empty(len(out), 0)
        scratch = torch.empty(PIECE_ENTRIES * SCRATCH_ITEM_BYTES, dtype=torch.uint8)
        for start in range(0, flat.shape[1], PIECE_ENTRIES):
            stop = min(start + PIECE_ENTRIES, flat.shape[1])
            self.fetch_into(flat[:, start:stop], name, start, stop, scratch)
        return out

    @cached_property
    def _digests(self) -> dict[str, str]:
        """Digest of each expert's second moments: of the file, or of names and bytes of the index and its shards."""
        files = {name: expert.moments.files for name, expert in self._experts.items()}
        try:
            digest_of = file_digests(path for paths in files.values() for path in paths)
        except OSError as error:
            raise GraftbenchError(
                f"second moments {error.filename} cannot be read ({error.strerror}); export them again"
            ) from error
        return {
            name: digest_of[paths[0]]
            if len(paths) == 1
            else text_digest(canonical_json([[path.name, digest_of[path]] for path in sorted(paths)]))
            for name, paths in files.items()
        }

    def digests(self) -> dict[str, str]:
        """For each expert, the digest of its second moments; the files are read once."""
        return {name: self._digests[name] for name in self._experts}

    def base_digests(self) -> dict[str, str]:
        """For each expert whose file says so, the digest of the base that it was trained from."""
        known = {name: expert.moments.metadata.base_digest for name, expert in self._experts.items()}
        return {name: digest for name, digest in known.items() if digest}

    def describe(self) -> dict[str, Any]:
        """What the curvatures are, for a recipe: digests and the correction."""
        return {"bias_corrected": self.bias_corrected, "files": self.digests()}

    def _problems_of_mixture(self) -> list[str]:
        """Kinds of curvature differ by orders of magnitude, so that one expert's would drown the others'."""
        kinds = {name: expert.moments.metadata.kind for name, expert in self._experts.items()}
        if len(set(kinds.values())) < 2 or "delta" not in kinds.values():
            return []
        listing = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        return [f"the experts' files hold curvature of different kinds ({listing}), which cannot be compared"]

    def _common_corrections(self) -> dict[str, float]:
        """Each expert's bias correction; 1 for all if that of one is not known, or none is wanted."""
        if self.kind == "raw":
            self.bias_corrected = False
            return dict.fromkeys(self._experts, 1.0)
        corrections = {name: expert.moments.metadata.correction for name, expert in self._experts.items()}
        unknown = [name for name, correction in corrections.items() if correction is None]
        self.bias_corrected = not unknown
        """Whether the bias correction is applied, to all experts alike."""
        if unknown:
            log.warning(
                "second moments of %s do not say their step and beta2: all are used raw, without bias correction, "
                "so experts trained for fewer steps weigh less",
                ", ".join(unknown),
            )
        return {name: 1.0 if unknown or value is None else value for name, value in corrections.items()}


class _ExpertCurvature:
    """One expert's second moments under the model's names, in one form. A `TensorSource`.

    Tied weights are one parameter with two names, and an optimizer may keep its moments under either: where the model
    has an embedding and no head, and the file the reverse, the file's head is the embedding; likewise the other way
    round. Other tensors that the model lacks are ignored.
    """

    def __init__(
        self, expert: str, moments: SecondMoments, form: Form | None, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.moments = moments
        self._form = form
        self._stored_names = {name: name for name in moments.tensors}
        tied = _tied_names(shapes, moments.tensors)
        if tied is not None:
            name, stored = tied
            log.info("second moments of '%s' of expert '%s' are stored under its tied name '%s'", name, expert, stored)
            self._stored_names[name] = self._stored_names.pop(stored)
        self.tensors: Mapping[str, TensorInfo] = {
            name: self._info(name, moments.tensors[stored]) for name, stored in self._stored_names.items()
        }

    @property
    def source(self) -> str:
        """The file or folder as it was given."""
        return self.moments.source

    def fetch(self, name: str, start: int, stop: int, scratch: Tensor) -> Tensor:
        """Entries of a parameter's raw second moments; see `SecondMoments.fetch`."""
        return self.moments.fetch(self._stored_names[name], start, stop, scratch, self._form)

    def announce(self, name: str, start: int, stop: int) -> None:
        """Tell the system that a range will be fetched soon."""
        self.moments.announce(self._stored_names[name], start, stop, self._form)

    def close(self) -> None:
        """Close the files; the next `fetch` opens them again."""
        self.moments.close()

    def _info(self, name: str, stored: TensorInfo) -> TensorInfo:
        return replace(stored, name=name, dtype=self.moments.stored(stored.name, self._form).dtype)


def _tied_names(wanted: Iterable[str], stored: Iterable[str]) -> tuple[str, str] | None:
    """The name of the tied embedding in the model and the one in the file, where they differ."""
    pair: tuple[Role, Role] = ("embedding", "head")
    for role, other in (pair, pair[::-1]):
        name, alias = _of_role(role, wanted), _of_role(other, stored)
        if len(name) == len(alias) == 1 and not _of_role(other, wanted) and not _of_role(role, stored):
            return name[0], alias[0]
    return None


def _of_role(role: Role, names: Iterable[str]) -> list[str]:
    """The weights outside of the blocks that have that role."""
    return [name for name in names if name.endswith(".weight") and role_and_layer(name) == (role, None)]


def _stored_kind(kind: CurvatureKind) -> StoredKind:
    """The kind of file that holds a kind of curvature."""
    return "fisher" if kind == "fisher" else "adam"


def _problems_of_kind(kind: CurvatureKind, moments: SecondMoments) -> list[str]:
    if moments.metadata.kind in (_stored_kind(kind), "delta"):  # which may stand for any other
        return []
    return [f"{moments.path} holds curvature of kind '{moments.metadata.kind}', but the method asks for '{kind}'"]


def _problems_of_cover(
    expert: str, moments: SecondMoments, source: TensorSource, shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """What does not fit to the parameters: a sentence for each way, with the first few names."""
    where = f"{moments.path}: second moments of"
    unreadable = [f"'{name}' {refusal(moments.unreadable[name])}" for name in shapes if name in moments.unreadable]
    missing = [f"'{name}'" for name in shapes if name not in source.tensors and name not in moments.unreadable]
    misshapen = [
        f"'{name}' have shape {list(source.tensors[name].shape)}, the parameter {list(shape)}"
        for name, shape in shapes.items()
        if name in source.tensors and source.tensors[name].shape != shape
    ]
    found = []
    if unreadable:
        found.append(f"{where} {_first(unreadable)}")
    if missing:
        found.append(f"{where} expert '{expert}' lack {_first(missing)}; export them for every parameter")
    if misshapen:
        found.append(f"{where} {_first(misshapen)}; they are another model's, or its vocabulary changed")
    return found


def _first(items: list[str]) -> str:
    shown = ", ".join(items[:NAMES_SHOWN])
    return shown if len(items) <= NAMES_SHOWN else f"{shown} and {len(items) - NAMES_SHOWN} more"
