"""One merge, from plan to an ordinary checkpoint on disk."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import __version__
from harness.checkpoints import CheckpointWriter, ShardPlan, TensorInfo, plan_shards
from harness.checkpoints.layout import CONFIG_NAME
from harness.checkpoints.vocabulary import write_tokenizer
from harness.errors import GraftbenchError
from harness.files import canonical_json, readable_size, text_digest
from harness.memory import PeakMemory
from harness.merging.cutoff_store import CutoffStore, ExpertCutoff
from harness.merging.cutoffs import find_cutoffs
from harness.merging.journal import FILE_NAME as JOURNAL_NAME
from harness.merging.journal import FinishedElsewhere, Journal, unfinished_folder, unfinished_path
from harness.merging.pieces import cut
from harness.merging.plan import MergePlan
from harness.merging.stream import merged_pieces

RECIPE_FILE = "merge.json"
CARD_FILE = "README.md"
DEFAULT_SHARD_BYTES = 5 * 10**9
_VERSIONS = {"graftbench": __version__, "torch": torch.__version__}


@dataclass(frozen=True)
class MergeReport:
    """What a merge made."""

    folder: Path
    weights_digest: str
    """Digest of names, shapes, data types and bytes of the merged tensors, whatever their shards."""
    cutoffs: dict[str, ExpertCutoff]
    """Each expert's cutoff, where the method selects over the whole model."""
    seconds: dict[str, float]
    """Wall time of the pass that finds cutoffs, and of the one that merges and writes."""
    resumed: int = 0
    """Tensors that an interrupted merge had finished."""
    peak_bytes: int | None = None
    """Largest memory of this process and its workers, on the host; None where the system does not tell."""


def merge_to_folder(
    plan: MergePlan,
    out: Path,
    provenance: Mapping[str, Any] | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    store: CutoffStore | None = None,
) -> MergeReport:
    """Merge and write the model: weights, configuration, tokenizer, model card and `merge.json`.

    The folder is written beside `out`, under a hidden name, and takes that name when it is whole. A merge that was
    interrupted goes on where it was when the same merge is asked for again.

    Args:
        plan: the merge.
        out: the folder to make; it must not exist.
        provenance: further fields for `merge.json`, such as where the inputs lie.
        shard_bytes: largest size of a weights file.
        store: where cutoffs are kept for later merges; None keeps nothing.

    Raises:
        GraftbenchError: `out` exists, an input turns out to be bad, or the disk is full.
    """
    shards = room_for(plan, out, shard_bytes)
    try:
        with unfinished_folder(out) as folder:
            journal = Journal(folder / JOURNAL_NAME, _identity(plan, shard_bytes))
            write_companions(plan, folder)
            with PeakMemory() as memory, CheckpointWriter(folder, shards) as writer:
                started = time.perf_counter()
                cutoffs = find_cutoffs(plan, store)
                merging = time.perf_counter()
                digests, resumed = _write_weights(plan, cutoffs, journal, writer)
                writer.finish()
            finished = time.perf_counter()
            seconds = {"cutoffs": merging - started, "merge": finished - merging}
            report = MergeReport(out, weights_digest(digests), cutoffs or {}, seconds, resumed, memory.bytes)
            _write_recipe(plan, report, folder, dict(provenance or {}))
            (folder / JOURNAL_NAME).unlink()
            _take_name(folder, out)
    except OSError as error:
        raise GraftbenchError(
            f"{out} could not be written ({error}); free some space or choose another folder"
        ) from error
    return report


def _take_name(folder: Path, out: Path) -> None:
    try:
        folder.rename(out)
    except OSError as error:
        raise FinishedElsewhere(
            f"the merge is finished, but it could not be named {out} ({error.strerror}); it lies in {folder}, rename it"
        ) from error


def room_for(plan: MergePlan, out: Path, shard_bytes: int) -> list[ShardPlan]:
    """The files of the output, if they can be written where they shall be.

    Raises:
        GraftbenchError: there is something already, or the disk has no room for it.
    """
    if os.path.lexists(out):
        raise GraftbenchError(f"{out} exists already; choose another folder or remove it")
    there = next(folder for folder in out.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise GraftbenchError(f"{out} cannot be made: {there} is no folder that you may write to; choose another")
    shards = plan_shards([*plan.parameters, *plan.copied], plan.dtype, shard_bytes)
    begun = unfinished_path(out)
    needed = sum(shard.bytes for shard in shards) - sum(file.stat().st_blocks * 512 for file in begun.glob("*"))
    free = shutil.disk_usage(there).free
    if needed > free:
        raise GraftbenchError(
            f"{out} needs {readable_size(needed)}, but {there} has {readable_size(free)} left; free some space, choose "
            "another folder, or a narrower dtype"
        )
    return shards


def _identity(plan: MergePlan, shard_bytes: int) -> str:
    """What the files of an interrupted merge must be of, so that it can go on."""
    with ThreadPoolExecutor(1) as one:  # compiles while files are hashed
        compiling = one.submit(plan.kernels.prepare)
        recipe = plan.recipe()
        compiling.result()
    about = {"recipe": recipe, "shard_bytes": shard_bytes, "arithmetic": plan.arithmetic, **_VERSIONS}
    return text_digest(canonical_json(about))


def _write_weights(
    plan: MergePlan, cutoffs: Mapping[str, ExpertCutoff] | None, journal: Journal, writer: CheckpointWriter
) -> tuple[dict[str, str], int]:
    """Write what is not there yet; returns the digest of every tensor, and how many were there."""
    digests = {
        info.name: journal.finished[info.name]
        for info in plan.parameters
        if info.name in journal.finished and journal.finished[info.name] == _digest_on_disk(plan, info, writer)
    }
    resumed = len(digests)
    for info in plan.copied:  # first, since what is wrong with them is soon known
        tensor = plan.copy_of(info)
        writer.write(info.name, 0, tensor)
        digests[info.name] = tensor_digest(tensor)
    left = [info for info in plan.parameters if info.name not in digests]
    for piece, values in merged_pieces(plan, cutoffs, left):
        if piece.start == 0:
            digest = _begun_digest(values.dtype, piece.info.shape)
        writer.write(piece.info.name, piece.start, values)
        digest.update(_bytes_of(values))
        if piece.is_last:
            digests[piece.info.name] = digest.hexdigest()
            journal.add(piece.info.name, digests[piece.info.name])
    return digests, resumed


def _digest_on_disk(plan: MergePlan, info: TensorInfo, writer: CheckpointWriter) -> str:
    """Digest of what an interrupted merge has left: what a machine lost when it crashed is merged again."""
    dtype = plan.dtype or info.dtype
    digest = _begun_digest(dtype, info.shape)
    for piece in cut([info], "element", plan.execution.piece_entries):
        digest.update(_bytes_of(writer.read(info.name, piece.start, piece.entries, dtype)))
    return digest.hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's data type, shape and bytes."""
    digest = _begun_digest(tensor.dtype, tuple(tensor.shape))
    digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _begun_digest(dtype: torch.dtype, shape: tuple[int, ...]) -> "hashlib._Hash":
    return hashlib.sha256(f"{dtype} {list(shape)} ".encode())


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def weights_digest(digests: Mapping[str, str]) -> str:
    """Digest of a whole model from its tensors' digests, in the order of their names."""
    return hashlib.sha256(
        "\n".join(f"{name} {digest}" for name, digest in sorted(digests.items())).encode()
    ).hexdigest()


def write_companions(plan: MergePlan, folder: Path) -> None:
    """Configuration from the base, tokenizer and generation configuration from the plan's stated source."""
    config = dict(plan.base_model.config)
    if plan.dtype is not None:
        config["dtype"] = str(plan.dtype).removeprefix("torch.")
        config.pop("torch_dtype", None)
    if not plan.vocabulary.identity:
        config["vocab_size"] = plan.vocabulary.rows
    _write_json(folder / CONFIG_NAME, config)
    numbers = write_tokenizer(folder, plan.vocabulary, plan.base_model, plan.tokenizer_model)
    if numbers:
        _write_json(folder / CONFIG_NAME, {**config, **numbers})


def _write_recipe(plan: MergePlan, report: MergeReport, folder: Path, provenance: dict[str, Any]) -> None:
    recipe = {
        "graftbench": __version__,
        "torch": torch.__version__,
        "recipe": plan.recipe(),
        "inputs": {"base": plan.base_model.source, "experts": {name: m.source for name, m in plan.models.items()}},
        "tokenizer_from": plan.tokenizer,
        "weights_digest": report.weights_digest,
        "cutoffs": {
            name: {"threshold": repr(cutoff.threshold), "ties": cutoff.ties} for name, cutoff in report.cutoffs.items()
        },
        "seconds": report.seconds,
        "peak_memory_bytes": report.peak_bytes,
        "arithmetic": plan.arithmetic,
        "devices": [str(device) for device in plan.execution.devices],
        **provenance,
    }
    _write_json(folder / RECIPE_FILE, recipe)
    (folder / CARD_FILE).write_text(_model_card(plan), encoding="utf-8")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _model_card(plan: MergePlan) -> str:
    experts = "\n".join(f"- {name}: `{expert.source}`" for name, expert in plan.models.items())
    return (
        f"---\nlibrary_name: transformers\ntags:\n- merge\n- graftbench\n---\n\n"
        f"# A merge by {plan.name}\n\n"
        f"Made by Graftbench {__version__} from the base `{plan.base_model.source}` and these experts:\n\n"
        f"{experts}\n\n`{RECIPE_FILE}` holds the whole recipe, the digests of the inputs and of the result.\n"
    )
