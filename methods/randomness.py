"""Random numbers that depend on what they are for, and not on when or where they are drawn."""

import hashlib

import torch
from torch import Tensor

from methods.interface import Parameter


def uniform(parameter: Parameter, seed: int) -> Tensor:
    """A number in [0, 1) for every entry of every expert, fp32, `[experts, *shape]`.

    Counter-based: the number of an entry is a hash of the seed, the expert's name, the parameter's name and the flat
    index, so that neither the device, nor the order of experts, nor cutting a tensor into pieces changes it.
    """
    entries = parameter.base.numel()
    index = torch.arange(parameter.offset, parameter.offset + entries, device=parameter.base.device)
    draws = [_hash(index, _key(seed, expert, parameter.name)) for expert in parameter.expert_names]
    return torch.stack(draws).view_as(parameter.experts)


def permutation(parameter: Parameter, seed: int) -> Tensor:
    """A permutation of the flat indices of one parameter, int64, `[entries]`, keyed by the seed and its name."""
    index = torch.arange(parameter.base.numel(), device=parameter.base.device)
    return _mix(index, _key(seed, parameter.name)).argsort(stable=True)


def _key(*parts: object) -> int:
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _hash(index: Tensor, key: int) -> Tensor:
    """The upper 24 bits of the mixed counter, as an exact fp32 fraction."""
    return ((_mix(index, key) >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24


def _mix(index: Tensor, key: int) -> Tensor:
    """SplitMix64's output function on `key` + (index + 1)·golden ratio (Steele, Lea and Flood 2014, OOPSLA).

    int64 arithmetic wraps around on every device; shifts are arithmetic, hence the masks.
    """
    state = (index + 1) * _signed(0x9E3779B97F4A7C15) + key
    state = (state ^ _shift(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shift(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64)
