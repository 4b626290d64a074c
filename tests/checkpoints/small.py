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
    folder: Path,
    tensors: Values,
    dtype: torch.dtype = torch.float32,
    architecture: str = "TestModel",
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A folder with one safetensors file and a configuration."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture], **(config or {})}))
    save_file(
        {name: torch.as_tensor(value).to(dtype) for name, value in tensors.items()},
        folder / "model.safetensors",
    )
    return folder


def write_shards(folder: Path, tensors: Values, count: int) -> Path:
    """The same in so many files with an index; tensors are dealt out, so that none lies beside its neighbour."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["TestModel"]}))
    shard_of = {name: f"model-{i % count + 1:05d}-of-{count:05d}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(shard_of.values()):
        inside = {name: torch.as_tensor(value) for name, value in tensors.items() if shard_of[name] == shard}
        save_file(inside, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    return folder


def write_moments(path: Path, tensors: Values, beta2: float = 0.5, step: int = 1000) -> Path:
    """Second moments; after 1000 steps at 0.5 the bias correction is 1."""
    values = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in tensors.items()}
    write_second_moments(path, values, SecondMomentsMetadata(optimizer="AdamW", beta2=beta2, step=step))
    return path
