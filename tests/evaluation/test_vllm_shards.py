"""Where vLLM has a checkpoint's tensors: joined, padded, and cut among ranks by hand, as its layers do it."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from harness.evaluation.engines.samples import SAMPLES, sampled, sampled_in_part
from harness.evaluation.engines.vllm_shards import shards_of

HEAD = 3
"""Entries of an attention head."""


def model_of(parameters: Mapping[str, Tensor]) -> torch.nn.Module:
    model = torch.nn.Module()
    for name, tensor in parameters.items():
        *path, last = name.split(".")
        place = model
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, torch.nn.Module())
            place = getattr(place, part)
        place.register_parameter(last, torch.nn.Parameter(tensor))
    model.packed_modules_mapping = {  # type: ignore[assignment]
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    return model


def checkpoint(kv_heads: int) -> dict[str, Tensor]:
    """Eight query heads over a width of 24; 106 tokens."""
    torch.manual_seed(0)
    return {
        "embed_tokens.weight": torch.randn(106, 24),
        "layer.q_proj.weight": torch.randn(8 * HEAD, 24),
        "layer.k_proj.weight": torch.randn(kv_heads * HEAD, 24),
        "layer.v_proj.weight": torch.randn(kv_heads * HEAD, 24),
        "layer.q_proj.bias": torch.randn(8 * HEAD),
        "layer.k_proj.bias": torch.randn(kv_heads * HEAD),
        "layer.v_proj.bias": torch.randn(kv_heads * HEAD),
        "layer.o_proj.weight": torch.randn(24, 24),
        "layer.gate_proj.weight": torch.randn(48, 24),
        "layer.up_proj.weight": torch.randn(48, 24),
        "layer.down_proj.weight": torch.randn(24, 48),
        "norm.weight": torch.randn(24),
    }


def rank_of(whole: Mapping[str, Tensor], rank: int, ranks: int) -> dict[str, Tensor]:
    """One rank's parameters, head by head and row by row, as Megatron's scheme deals them out."""
    kv_heads = len(whole["layer.k_proj.weight"]) // HEAD
    heads = list(range(8))[rank * 8 // ranks : (rank + 1) * 8 // ranks]
    own_kv = sorted({head * kv_heads // 8 for head in heads})

    def of_heads(tensor: Tensor, chosen: list[int]) -> Tensor:
        return torch.cat([tensor[head * HEAD : (head + 1) * HEAD] for head in chosen])

    padded = torch.cat([whole["embed_tokens.weight"], torch.zeros(128 - 106, 24)])
    rows, half = 128 // ranks, 48 // ranks
    gate, up = whole["layer.gate_proj.weight"], whole["layer.up_proj.weight"]
    return {
        "embed_tokens.weight": padded[rank * rows : (rank + 1) * rows],
        **{
            f"layer.qkv_proj.{kind}": torch.cat(
                [
                    of_heads(whole[f"layer.q_proj.{kind}"], heads),
                    of_heads(whole[f"layer.k_proj.{kind}"], own_kv),
                    of_heads(whole[f"layer.v_proj.{kind}"], own_kv),
                ]
            )
            for kind in ("weight", "bias")
        },
        "layer.o_proj.weight": whole["layer.o_proj.weight"][:, rank * 24 // ranks : (rank + 1) * 24 // ranks],
        "layer.gate_up_proj.weight": torch.cat([part[rank * half : (rank + 1) * half] for part in (gate, up)]),
        "layer.down_proj.weight": whole["layer.down_proj.weight"][:, rank * half : (rank + 1) * half],
        "norm.weight": whole["norm.weight"],
    }


@pytest.mark.parametrize(("ranks", "kv_heads"), [(1, 4), (2, 4), (4, 4), (2, 1), (4, 2), (8, 2)])
def test_a_rank_holds_blocks_of_the_checkpoint(ranks: int, kv_heads: int) -> None:
    """Each is the whole's at its place, and together they are the whole; fewer heads of keys than ranks included."""
    whole = checkpoint(kv_heads)
    shapes = {name: tuple(tensor.shape) for name, tensor in whole.items()}
    seen = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in shapes.items()}
    for rank in range(ranks):
        found = {shard.name: shard for shard in shards_of(model_of(rank_of(whole, rank, ranks)), shapes, rank, ranks)}
        assert found.keys() == whole.keys()
        for name, shard in found.items():
            place = tuple(
                slice(first, first + length) for first, length in zip(shard.start, shard.block.shape, strict=True)
            )
            assert torch.equal(shard.block, whole[name][place]), name
            seen[name][place] = True
    assert all(bool(places.all()) for places in seen.values())


def test_what_vllm_keeps_in_another_form_is_left_out() -> None:
    """A packed matrix is one-dimensional or empty; a share that fits no scheme tells nothing."""
    whole = {"a.weight": torch.randn(8, 4), "b.weight": torch.randn(8, 4), "c.weight": torch.randn(8, 4)}
    shapes = {name: tuple(tensor.shape) for name, tensor in whole.items()}
    held = {"a.weight": torch.randn(32), "b.weight": torch.empty(0, 4), "c.weight": torch.randn(3, 4)}
    assert not list(shards_of(model_of(held), shapes, 0, 2))


def test_samples_of_parts_make_up_those_of_the_whole() -> None:
    whole = torch.arange(50 * 20.0).view(50, 20)
    found = torch.full((SAMPLES,), -1.0)
    for row, column in ((0, 0), (0, 12), (30, 0), (30, 12)):
        part = whole[row : row + (30 if row == 0 else 20), column : column + (12 if column == 0 else 8)]
        held = sampled_in_part("w", part, (50, 20), (row, column))
        assert 0 < held.which.sum() < SAMPLES and (found[held.which] == -1).all()
        found[held.which] = held.values
    assert torch.equal(found, sampled(whole))
    assert (sampled(whole)[0], sampled(whole)[-1]) == (0.0, 999.0)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (1, 1), (300,), (), (0, 4)])
def test_a_whole_tensor_is_a_part_of_itself(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    held = sampled_in_part("w", tensor, shape, (0,) * len(shape))
    assert bool(held.which.all()) and torch.equal(held.values, sampled(tensor))
