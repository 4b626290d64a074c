"""One merge, from plan to an ordinary checkpoint on disk."""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from harness import __version__
from harness.checkpoints import CheckpointWriter
from harness.checkpoints.layout import TOKENIZER_FILES
from harness.errors import GraftbenchError
from harness.files import folder_written_atomically
from harness.merging.plan import MergePlan
from harness.merging.stream import merged_parameters
from harness.merging.thresholds import find_cutoffs
from methods import Cutoff

RECIPE_FILE = "merge.json"
DEFAULT_SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True)
class MergeReport:
    """What a merge made."""

    folder: Path
    weights_digest: str
    """Digest of names, shapes, data types and bytes of the merged tensors, whatever their shards."""
    thresholds: dict[str, float]
    """The threshold of each expert's cutoff, where the method selects over the whole model."""
    seconds: dict[str, float]
    """Wall time of the pass that finds cutoffs, and of the one that merges and writes."""


def merge_to_folder(
    plan: MergePlan,
    out: Path,
    provenance: Mapping[str, Any] | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> MergeReport:
    """Merge and write the model: weights, configuration, tokenizer, model card and `merge.json`.

    The folder is written beside `out` and takes that name when it is whole.

    Args:
        plan: the merge.
        out: the folder to make; it must not exist.
        provenance: further fields for `merge.json`, such as where the inputs lie.
        shard_bytes: largest size of a weights file.

    Raises:
        GraftbenchError: `out` exists, an input turns out to be bad, or the disk is full.
    """
    if out.exists():
        raise GraftbenchError(f"{out} exists already; choose another folder or remove it")
    try:
        with folder_written_atomically(out) as folder:
            started = time.perf_counter()
            cutoffs = find_cutoffs(plan)
            merging = time.perf_counter()
            digest = _write_weights(plan, cutoffs, folder, shard_bytes)
            finished = time.perf_counter()
            seconds = {"cutoffs": merging - started, "merge": finished - merging}
            thresholds = {name: cutoff.threshold for name, cutoff in (cutoffs or {}).items()}
            _write_companions(plan, folder)
            report = MergeReport(out, digest, thresholds, seconds)
            _write_recipe(plan, report, folder, dict(provenance or {}))
    except (OSError, SafetensorError) as error:
        raise GraftbenchError(
            f"{out} could not be written ({error}); free some space or choose another folder"
        ) from error
    return report


def _write_weights(plan: MergePlan, cutoffs: Mapping[str, Cutoff] | None, folder: Path, shard_bytes: int) -> str:
    writer = CheckpointWriter(folder, plan.parameters, plan.dtype, shard_bytes)
    digests = {}
    for name, tensor in merged_parameters(plan, cutoffs):
        digests[name] = tensor_digest(writer.add(name, tensor))
    writer.close()
    return weights_digest(digests)


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's data type, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_digest(digests: Mapping[str, str]) -> str:
    """Digest of a whole model from its tensors' digests, in the order of their names."""
    return hashlib.sha256(
        "\n".join(f"{name} {digest}" for name, digest in sorted(digests.items())).encode()
    ).hexdigest()


def _write_companions(plan: MergePlan, folder: Path) -> None:
    """Configuration, generation configuration and tokenizer come from the base; the data type is the output's."""
    config = dict(plan.base.config)
    if plan.dtype is not None:
        config["dtype"] = str(plan.dtype).removeprefix("torch.")
        config.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for name in ("generation_config.json", *TOKENIZER_FILES):
        if (plan.base.folder / name).is_file():
            shutil.copyfile(plan.base.folder / name, folder / name)


def _write_recipe(plan: MergePlan, report: MergeReport, folder: Path, provenance: dict[str, Any]) -> None:
    recipe = {
        "graftbench": __version__,
        "torch": torch.__version__,
        "recipe": plan.recipe(),
        "inputs": {"base": plan.base.source, "experts": {name: e.source for name, e in plan.experts.items()}},
        "weights_digest": report.weights_digest,
        "cutoffs": {name: repr(value) for name, value in report.thresholds.items()},
        "seconds": report.seconds,
        "device": str(plan.device),
        **provenance,
    }
    (folder / RECIPE_FILE).write_text(json.dumps(recipe, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_model_card(plan), encoding="utf-8")


def _model_card(plan: MergePlan) -> str:
    experts = "\n".join(f"- {name}: `{expert.source}`" for name, expert in plan.experts.items())
    return (
        f"---\nlibrary_name: transformers\ntags:\n- merge\n- graftbench\n---\n\n"
        f"# A merge by {plan.name}\n\n"
        f"Made by Graftbench {__version__} from the base `{plan.base.source}` and these experts:\n\n"
        f"{experts}\n\n`{RECIPE_FILE}` holds the whole recipe, the digests of the inputs and of the result.\n"
    )
