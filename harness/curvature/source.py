"""The curvatures of all experts of a merge, checked as a set and read parameter by parameter."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from harness.curvature.second_moments import SecondMoments
from harness.errors import GraftbenchError
from harness.files import file_digest
from methods.interface import CurvatureKind

log = logging.getLogger(__name__)


class CurvatureSource:
    """Second moments of several experts, in their order, bias-corrected alike or not at all."""

    def __init__(self, kind: CurvatureKind, files: Mapping[str, Path], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Open one file per expert and check that each covers every parameter in its shape.

        Args:
            kind: what the method asked for; `compressed` reads full files through their row and column sums.
            files: the file of each expert.
            shapes: the parameters that will be read.

        Raises:
            GraftbenchError: a file is missing or corrupt, or lacks a parameter, or has it in another shape.
        """
        self._as_sums = kind == "compressed"
        self._files = ExitStack()
        self._experts = {name: self._files.enter_context(SecondMoments(path)) for name, path in files.items()}
        for expert, moments in self._experts.items():
            _check_kind(kind, moments)
            _check_cover(expert, moments, shapes)
        corrections = [moments.metadata.correction for moments in self._experts.values()]
        self.bias_corrected = None not in corrections
        if not self.bias_corrected:
            unknown = [name for name, c in zip(self._experts, corrections, strict=True) if c is None]
            log.warning(
                "second moments of %s do not say their step and beta2: all are used raw, without bias correction, "
                "so experts trained for fewer steps weigh less",
                ", ".join(unknown),
            )
        self._corrections = [c if self.bias_corrected and c else 1.0 for c in corrections]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def read(self, name: str) -> Tensor:
        """The curvatures of one parameter: fp32, `[experts, *shape]`."""
        parts = [
            moments.read(name, self._as_sums) * correction
            for moments, correction in zip(self._experts.values(), self._corrections, strict=True)
        ]
        return torch.stack(parts)

    @cached_property
    def _digests(self) -> dict[str, str]:
        """Digest of each expert's file, read once: the files are as large as the models."""
        return {name: file_digest(moments.path) for name, moments in self._experts.items()}

    def base_digests(self) -> dict[str, str]:
        """For each expert whose file says so, the digest of the base that it was trained from."""
        known = {name: moments.metadata.base_digest for name, moments in self._experts.items()}
        return {name: digest for name, digest in known.items() if digest}

    def describe(self) -> dict[str, Any]:
        """What the curvatures are, for a recipe: digests and the correction."""
        return {
            "bias_corrected": self.bias_corrected,
            "files": self._digests,
        }


def _check_kind(kind: CurvatureKind, moments: SecondMoments) -> None:
    wanted = "fisher" if kind == "fisher" else "adam"
    if moments.metadata.kind != wanted:
        raise GraftbenchError(
            f"{moments.path} holds curvature of kind '{moments.metadata.kind}', but the method asks for '{kind}'"
        )


def _check_cover(expert: str, moments: SecondMoments, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        found = moments.shapes.get(name)
        if found is None:
            raise GraftbenchError(
                f"{moments.path}: second moments of expert '{expert}' lack '{name}'; export them for every parameter"
            )
        if found != shape:
            raise GraftbenchError(
                f"{moments.path}: second moments of '{name}' have shape {list(found)}, the parameter {list(shape)}"
            )
