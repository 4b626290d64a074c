"""Checkpoints and methods that the tests of the merge engine share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.merging import CutoffStore, Execution, merge_to_folder, merged_parameters, plan_merge
from methods import Method
from tests.checkpoints.small import write_checkpoint, write_moments, write_shards

SHAPES = {
    "model.layers.0.self_attn.q_proj.weight": (37, 29),
    "model.layers.0.mlp.up_proj.weight": (613,),
    "model.layers.1.self_attn.q_proj.weight": (29, 37),
    "model.norm.weight": (5,),
}
"""The large ones are cut into many pieces, and neither ends at a multiple of the vector width."""

NAMES = ("base", "code", "math", "sums")


def random_tensors(
    seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES, coarse: bool = False
) -> dict[str, Tensor]:
    """Normal numbers; coarse ones tie in their hundreds, as experts in bf16 do."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: (tensor * 2).round() if coarse else tensor for name, tensor in drawn.items()}


class Models:
    """A base, three experts and their second moments on disk, in one file each and in shards."""

    def __init__(self, folder: Path, coarse: bool = False) -> None:
        self.tensors = {name: random_tensors(seed, coarse=coarse) for seed, name in enumerate(NAMES)}
        self.moments = {
            name: {key: value.square() * 1e-6 for key, value in random_tensors(10 + seed).items()}
            for seed, name in enumerate(NAMES[1:])
        }
        self.single = {name: write_checkpoint(folder / name, values) for name, values in self.tensors.items()}
        # In another order than in the single file: only the base's order decides what comes first.
        self.sharded = {
            name: write_shards(folder / f"{name}.sharded", dict(reversed(values.items())), 3)
            for name, values in self.tensors.items()
        }
        self.curvature = {name: write_moments(folder / f"{name}.v", values) for name, values in self.moments.items()}


def merged(
    method: Method,
    models: Mapping[str, Any],
    files: Mapping[str, Path] | None = None,
    execution: Execution | None = None,
    store: CutoffStore | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """The merged tensors in memory; one worker unless something else is asked for."""
    experts = {name: path for name, path in models.items() if name != "base"}
    execution = execution or Execution(threads=1)
    with plan_merge("m", method, models["base"], experts, files or {}, execution=execution, **options) as plan:
        return dict(merged_parameters(plan, store))


def merge(
    out: Path,
    method: Method,
    models: Mapping[str, Any],
    files: Mapping[str, Path] | None = None,
    execution: Execution | None = None,
    shard_bytes: int = 10**9,
    store: CutoffStore | None = None,
    **options: Any,
) -> Path:
    """The folder of a whole merge."""
    experts = {name: path for name, path in models.items() if name != "base"}
    execution = execution or Execution(threads=1)
    with plan_merge("m", method, models["base"], experts, files or {}, execution=execution, **options) as plan:
        return merge_to_folder(plan, out, shard_bytes=shard_bytes, store=store).folder


def same_bytes(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether both hold the same bits under the same names."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and torch.equal(
            a[name].contiguous().view(-1).view(torch.uint8), b[name].contiguous().view(-1).view(torch.uint8)
        )
        for name in a
    )
