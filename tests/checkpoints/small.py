"""Small checkpoints on disk for tests: any tensors under any names, with a minimal configuration."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from harness.curvature import SecondMomentsMetadata, write_second_moments

Values = Mapping[str, Any]


def write_checkpoint(
    folder: Path, tensors: Values, dtype: torch.dtype = torch.float32, architecture: str = "TestModel"
) -> Path:
    """A folder with one safetensors file and a configuration."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    save_file(
        {name: torch.as_tensor(value).to(dtype) for name, value in tensors.items()},
        folder / "model.safetensors",
    )
    return folder


def write_moments(path: Path, tensors: Values, beta2: float = 0.5, step: int = 1000) -> Path:
    """Second moments; after 1000 steps at 0.5 the bias correction is 1."""
    values = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in tensors.items()}
    write_second_moments(path, values, SecondMomentsMetadata(optimizer="AdamW", beta2=beta2, step=step))
    return path
