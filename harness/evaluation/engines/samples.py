"""Entries of a tensor that tell whether an engine holds what was sent to it, also where it holds a part only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLES = 256
"""Entries of each tensor."""


@dataclass(frozen=True)
class Held:
    """What an engine has of one tensor."""

    name: str
    which: Tensor
    """Of the sampled entries, those that are there: bools, [samples]."""
    values: Tensor
    """Their values, in the same order: [those]."""


def sampled(tensor: Tensor) -> Tensor:
    """Entries spread evenly over a whole tensor, the first and the last among them: [samples], on the CPU."""
    flat = tensor.detach().reshape(-1)
    return flat[_places(flat.numel()).to(flat.device)].cpu().clone()


def sampled_in_part(name: str, part: Tensor, shape: Sequence[int], start: Sequence[int]) -> Held:
    """The same entries, as far as they lie in a part of the tensor.

    Args:
        name: the tensor's name.
        part: a block of it.
        shape: the whole tensor's.
        start: where in the whole the block's first entry lies, one number for each dimension.
    """
    if not shape:
        part, shape, start = part.reshape(1), (1,), (0,)
    coordinates = torch.stack(torch.unravel_index(_places(math.prod(shape)), tuple(shape)))
    inside = coordinates - torch.tensor(start).unsqueeze(1)
    which = ((inside >= 0) & (inside < torch.tensor(part.shape).unsqueeze(1))).all(dim=0)
    values = part.detach()[tuple(inside[:, which].to(part.device))].cpu().clone()
    return Held(name, which, values)


def _places(entries: int) -> Tensor:
    return torch.linspace(0, max(entries - 1, 0), min(entries, SAMPLES), dtype=torch.float64).long()
