"""An export from beginning to end: read headers, match names, write one parameter after another."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.checkpoints import Checkpoint
from harness.checkpoints.opening import open_checkpoint
from harness.curvature.export.formats import AUTO, read_state
from harness.curvature.export.names import named_moments
from harness.curvature.export.state import OptimizerState
from harness.curvature.second_moments import FILE_NAME, SecondMomentsMetadata
from harness.curvature.streaming import streamed_second_moments
from harness.errors import GraftbenchError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportReport:
    """What an export has written."""

    path: Path
    parameters: int
    entries: int
    metadata: SecondMomentsMetadata


def export_second_moments(
    source: Path,
    out: Path,
    model: str | Path | None = None,
    base: str | Path | None = None,
    format: str = AUTO,
    frozen: Sequence[str] = (),
) -> ExportReport:
    """Write an optimizer's second moments under the names of a model's parameters.

    Args:
        source: the optimizer's checkpoint, a file or a folder; see `FORMATS`.
        out: the file to write (`*.safetensors`), or the folder to put `exp_avg_sq.safetensors` into.
        model: the model that was trained, a Hugging Face folder or hub name; None if it lies in `source`.
        base: the model that training began with, whose digest the file shall hold.
        format: one of `FORMATS`, or `auto`.
        frozen: patterns of parameters that were not trained, where a numbered state leaves open which.

    Raises:
        GraftbenchError: something is missing, half written, holds code, or cannot be matched for sure; nothing is
            written then.
    """
    target = out if out.suffix == ".safetensors" else out / FILE_NAME
    if os.path.lexists(target):
        raise GraftbenchError(f"{target} exists already; choose another out= or remove it")
    state = read_state(source, format)
    with Checkpoint(_model_of(source, model)) as trained:
        moments = named_moments(state, trained, frozen)
    digest = None
    if base is not None:
        with open_checkpoint(base) as origin:
            digest = origin.weights_digest
    metadata = metadata_of(state, digest)
    shapes = {name + suffix: shape for name, one in moments.items() for suffix, shape in one.parts.items()}
    with streamed_second_moments(target, shapes, metadata) as writer:
        for name, one in moments.items():
            for suffix, tensor in one.read().items():
                writer.write(name + suffix, tensor)
    entries = sum(trained.tensors[name].entries for name in moments)
    return ExportReport(target, len(moments), entries, metadata)


def metadata_of(state: OptimizerState, base_digest: str | None) -> SecondMomentsMetadata:
    """What the checkpoint tells of its optimizer; what its parameters do not agree on is left out, with a warning."""
    options = [group.options for group in state.groups if group.keys]
    betas = {float(one["betas"][1]) for one in options if one.get("betas")}
    # A schedule ends near 0; what it began with says more, and schedulers leave it there.
    rates = {float(one.get("initial_lr", one.get("lr"))) for one in options if one.get("lr") is not None}
    metadata = SecondMomentsMetadata(
        optimizer=state.optimizer,
        beta2=_agreed("β₂", betas, state),
        step=_agreed("step", state.steps, state),
        learning_rate=_agreed("learning rate", rates, state),
        base_digest=base_digest,
        bias_corrected=state.bias_corrected,
    )
    if metadata.correction is None:
        log.warning("%s does not tell its step and β₂: the file will be used raw, without bias correction", state.path)
    return metadata


def _agreed(what: str, found: Any, state: OptimizerState) -> Any:
    if len(found) > 1:
        log.warning("%s: its parameters differ in %s (%s), so the file has none", state.path, what, sorted(found))
    return next(iter(found)) if len(found) == 1 else None


def _model_of(source: Path, model: str | Path | None) -> str | Path:
    if model is not None:
        return model
    for folder in (source, source.parent):
        if (folder / "config.json").is_file():
            return folder
    raise GraftbenchError(f"no model lies beside {source}; name the one that was trained with model=")
