"""DARE's masks: the generator against a reference in Python's integers, its statistics, and what it depends on."""

import hashlib
import math
from dataclasses import replace

import pytest
import torch

from methods.dare import Dare
from methods.interface import Parameter
from methods.randomness import permutation, uniform

MASK = (1 << 64) - 1


def splitmix64(counter: int, key: int) -> int:
    """The reference: Steele, Lea and Flood 2014, in integers without a sign."""
    z = ((counter + 1) * 0x9E3779B97F4A7C15 + key) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def parameter(entries: int, experts: tuple[str, ...] = ("x", "y")) -> Parameter:
    return Parameter("p", torch.zeros(entries), torch.ones(len(experts), entries), experts)


def test_it_is_splitmix64() -> None:
    key = int.from_bytes(hashlib.sha256(b"3\x1fx\x1fp").digest()[:8], "little")
    expected = [(splitmix64(index, key) >> 40) / 2**24 for index in range(5)]
    assert uniform(parameter(5), seed=3)[0].tolist() == expected


def test_pieces_draw_what_the_whole_draws() -> None:
    whole = uniform(parameter(1000), seed=1)
    piece = replace(parameter(300), offset=450)
    assert torch.equal(uniform(piece, seed=1), whole[:, 450:750])


def test_the_order_of_experts_does_not_matter() -> None:
    there, back = uniform(parameter(50), 0), uniform(parameter(50, ("y", "x")), 0)
    assert torch.equal(there, back.flip(0))
    assert not torch.equal(there[0], there[1])


def test_seeds_and_names_differ() -> None:
    assert not torch.equal(uniform(parameter(50), 0), uniform(parameter(50), 1))
    assert not torch.equal(uniform(parameter(50), 0), uniform(replace(parameter(50), name="q"), 0))


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_dropping_and_rescaling_keeps_the_mean(p: float) -> None:
    """Mean of the rescaled edits within 4 standard errors of the edit, variance p/(1−p) of its square."""
    entries = 200_000
    merged = Dare(drop_rate=p, scale=1.0).merge(parameter(entries, ("x",)))
    standard_error = math.sqrt(p / (1 - p) / entries)
    assert abs(float(merged.mean()) - 1.0) < 4 * standard_error
    assert merged.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])


def test_a_permutation_holds_every_index_once() -> None:
    drawn = permutation(parameter(1000), seed=5)
    assert drawn.sort().values.tolist() == list(range(1000))
    assert drawn.tolist() != list(range(1000))
