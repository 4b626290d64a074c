"""Where the tensors of a checkpoint lie in a model of vLLM's, which joins some of them and may hold a share of each.

Tensor parallelism (Shoeybi et al. 2019, arXiv:1909.08053) cuts matrices by rows or by columns into as many equal parts
as there are ranks; heads of keys and values that are fewer than ranks are on several of them; the vocabulary is padded.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """A block of a checkpoint's tensor as a rank holds it."""

    name: str
    block: Tensor
    start: tuple[int, ...]
    """Where in the whole tensor its first entry lies."""


def shards_of(model: Any, shapes: Mapping[str, tuple[int, ...]], rank: int = 0, ranks: int = 1) -> Iterator[Shard]:
    """What a rank's model holds of the checkpoint's tensors; those that it keeps in another form are left out.

    Args:
        model: vLLM's model, of which some parameters join several tensors by rows (query, key and value).
        shapes: names and shapes of the checkpoint's tensors.
        rank: whose model it is, counted from 0.
        ranks: how many share the model.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.numel()}
    joined: Mapping[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    for name, shape in shapes.items():
        place, siblings = _place_of(name, joined)
        parameter = parameters.get(place)
        if parameter is None or parameter.dim() != len(shape) or not all(sibling in shapes for sibling in siblings):
            continue
        lengths = _rows([shapes[sibling][0] for sibling in siblings], parameter.shape[0], ranks)
        if lengths is None:
            continue
        own = siblings.index(name)
        block = parameter.data[sum(lengths[:own]) :][: lengths[own]]
        start = tuple(_start(part, whole, rank, ranks) for part, whole in zip(block.shape, shape, strict=True))
        if all(each is not None for each in start):
            yield Shard(name, *_within(block, shape, tuple(each or 0 for each in start)))


def _place_of(name: str, joined: Mapping[str, list[str]]) -> tuple[str, list[str]]:
    """The parameter that holds a tensor, and all tensors that it holds, in their order."""
    for whole, parts in joined.items():
        part = next((part for part in parts if f".{part}." in name), None)
        if part is not None and part != whole:
            siblings = [name.replace(f".{part}.", f".{other}.") for other in parts]
            return name.replace(f".{part}.", f".{whole}."), siblings
    return name, [name]


def _rows(wholes: list[int], held: int, ranks: int) -> list[int] | None:
    """How many of the rows held belong to each of the tensors that a parameter joins; None where it cannot be told."""
    if len(wholes) == 1:
        return [held]
    if held * ranks == sum(wholes):
        return [whole // ranks for whole in wholes]
    # Keys and values that are on several ranks: queries are cut in any case, what is left is shared by both.
    first, rest = wholes[0] // ranks, held - wholes[0] // ranks
    if len(set(wholes[1:])) != 1 or rest <= 0 or rest % (len(wholes) - 1):
        return None
    return [first, *[rest // (len(wholes) - 1)] * (len(wholes) - 1)]


def _start(part: int, whole: int, rank: int, ranks: int) -> int | None:
    """Where a rank's part of a dimension begins; None where the sizes do not tell."""
    if part >= whole:
        return 0  # all of it, perhaps padded
    if part * ranks >= whole:
        if whole % part == 0 and ranks % (whole // part) == 0:
            return (rank // (ranks // (whole // part))) * part  # as many ranks as there are copies hold the same
        return rank * part  # the last parts are padded
    return None


def _within(block: Tensor, shape: tuple[int, ...], start: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """The block without what pads the whole."""
    for dimension, (whole, first) in enumerate(zip(shape, start, strict=True)):
        block = torch.narrow(block, dimension, 0, max(0, min(block.shape[dimension], whole - first)))
    return block, start
