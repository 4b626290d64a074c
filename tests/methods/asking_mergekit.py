"""Asks mergekit for its own numbers, in the interpreter where it is installed."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

REPOSITORY = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "mergekit_script.py"
VARIABLE = "GRAFTBENCH_MERGEKIT_PYTHON"


@dataclass(frozen=True)
class TensorMerge:
    """One call of mergekit's `merge_tensors`."""

    method: str
    tensors: list[Tensor]
    parameters: dict[str, Any]
    base_index: int | None = None
    masks: list[Tensor] = field(default_factory=list)
    """What its draws shall be, one for each expert whose density is under 1."""


@dataclass(frozen=True)
class ModelMerge:
    """One call of mergekit's `run_merge`, on a recipe."""

    recipe: str
    out: str
    masks: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """What its draws shall be, by the model's path and the tensor's name."""


def interpreter() -> Path:
    """The Python that has mergekit; skips the test where there is none."""
    named = os.environ.get(VARIABLE)
    python = Path(named) if named else REPOSITORY / ".mergekit" / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"{python} does not exist: make it with `make mergekit`, or name another one in {VARIABLE}")
    return python


def merged_tensors(merges: Sequence[TensorMerge], folder: Path) -> list[Tensor]:
    """What mergekit makes of each, in one process, since it takes seconds to start."""
    python = interpreter()
    torch.save([asdict(merge) for merge in merges], folder / "merges.pt")
    _call(python, "tensors", folder / "merges.pt", folder / "merged.pt")
    found: list[Tensor] = torch.load(folder / "merged.pt", weights_only=True)
    return found


def merge_models(merges: Sequence[ModelMerge], folder: Path) -> None:
    """Let mergekit write each merged model to its folder, in one process."""
    python = interpreter()
    torch.save([asdict(merge) for merge in merges], folder / "models.pt")
    _call(python, "models", folder / "models.pt")


def _call(python: Path, *arguments: object) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(python), str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
