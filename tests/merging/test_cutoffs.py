"""Where selections end: exactly where a sort would end them, whatever the scores are distributed like."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.errors import GraftbenchError
from harness.merging import Execution, plan_merge
from harness.merging.cutoffs import find_cutoffs
from methods import Method, Parameter, Selection
from methods.ffg import Ffg
from methods.interface import PerExpert, Rounding, Scope
from methods.selection import keep_by_cutoff
from tests.checkpoints.small import write_checkpoint, write_moments
from tests.merging.models import merged

INFINITE = 1e38
"""What a checkpoint cannot hold: an expert's value of at least this much scores infinity."""


@dataclass(frozen=True, kw_only=True)
class Mask(Method):
    """The mask of one expert, whose values are the scores."""

    density: PerExpert = 0.5
    scope: Scope = "model"
    rounding: Rounding = "up"
    shown: int = 0

    def selection(self) -> Selection:
        return Selection(density=self.density, scope=self.scope, rounding=self.rounding)

    def score(self, parameter: Parameter) -> Tensor:
        return torch.where(parameter.experts >= INFINITE, torch.inf, parameter.experts)

    def merge(self, parameter: Parameter) -> Tensor:
        return keep_by_cutoff(self.score(parameter), parameter)[self.shown]


SHAPES = {"c": (13, 17), "a": (151,), "b": (1,), "d": (0, 4)}
ENTRIES = 13 * 17 + 151 + 1
Draw = Callable[[np.random.Generator, int], np.ndarray]

DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda random, n: np.abs(random.normal(size=n)),
    "squared": lambda random, n: random.normal(size=n) ** 2 * 1e-12,
    "denormal": lambda random, n: random.integers(0, 40, n) * 2.0**-149,
    "all equal": lambda random, n: np.full(n, 0.37),
    "all zero": lambda random, n: np.zeros(n),
    "mostly zero": lambda random, n: np.where(random.random(n) < 0.9, 0.0, random.random(n)),
    "huge ranges": lambda random, n: 2.0 ** random.uniform(-149, 126, n),
    "coarse": lambda random, n: random.integers(0, 4, n).astype(float),
    "neighbours": lambda random, n: np.nextafter(np.float32(1), np.float32(2)) ** random.integers(0, 9, n),
    "infinite": lambda random, n: np.where(random.random(n) < 0.3, 3e38, random.random(n)),
    "largest numbers": lambda random, n: np.where(random.random(n) < 0.5, 9.9e37, 9.8e37),
}


def drawn(distribution: str, seed: int) -> dict[str, Tensor]:
    random = np.random.default_rng(seed)
    values = {name: DISTRIBUTIONS[distribution](random, math.prod(shape)) for name, shape in SHAPES.items()}
    return {name: torch.tensor(values[name], dtype=torch.float32).view(shape) for name, shape in SHAPES.items()}


def by_sorting(scores: dict[str, Tensor], count: int) -> dict[str, list[int]]:
    """The entries of the first `count` by score, then name, then flat index; a score of zero never survives."""
    entries = [(-float(s), name, i) for name, t in scores.items() for i, s in enumerate(t.flatten().tolist())]
    kept: dict[str, list[int]] = {name: [] for name in scores}
    for score, name, i in sorted(entries)[:count]:
        if score < 0:
            kept[name].append(i)
    return {name: sorted(found) for name, found in kept.items()}


def kept(mask: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: tensor.flatten().nonzero().flatten().tolist() for name, tensor in mask.items()}


def up(density: float, entries: int) -> int:
    return math.ceil(Fraction(repr(density)) * entries)


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory) -> Path:
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    return write_checkpoint(tmp_path_factory.mktemp("zero") / "base", zeros)


@given(
    distribution=st.sampled_from(sorted(DISTRIBUTIONS)),
    seed=st.integers(0, 10**6),
    count=st.one_of(st.sampled_from([1, 2, ENTRIES - 1, ENTRIES // 2]), st.integers(0, ENTRIES)),
    piece=st.sampled_from([64, 128, 10**6]),
)
@settings(max_examples=60, deadline=None)
def test_the_largest_are_kept(
    tmp_path_factory: pytest.TempPathFactory, zero: Path, distribution: str, seed: int, count: int, piece: int
) -> None:
    scores = drawn(distribution, seed)
    models = {"base": zero, "x": write_checkpoint(tmp_path_factory.mktemp("x") / "x", scores)}
    density = count / ENTRIES
    execution = Execution(threads=1, piece_entries=piece, tile_entries=64)
    found = kept(merged(Mask(density=density), models, execution=execution))
    if density == 1.0:  # nothing is cut
        assert found == {name: list(range(math.prod(shape))) for name, shape in SHAPES.items()}
        return
    assert found == by_sorting(scores, up(density, ENTRIES))
    found = kept(merged(Mask(density=density, scope="tensor"), models, execution=execution))
    for name, values in scores.items():
        assert found[name] == by_sorting({name: values}, up(density, values.numel()))[name]


@given(seed=st.integers(0, 10**6), densities=st.tuples(*[st.floats(0.0, 1.0)] * 3), threads=st.sampled_from([1, 2]))
@settings(max_examples=8, deadline=None)
def test_every_expert_has_its_own_density(
    tmp_path_factory: pytest.TempPathFactory, zero: Path, seed: int, densities: tuple[float, ...], threads: int
) -> None:
    folder, names = tmp_path_factory.mktemp("x"), ("x", "y", "z")
    scores = {name: drawn(kind, seed) for name, kind in zip(names, ("coarse", "normal", "denormal"), strict=True)}
    models = {"base": zero} | {name: write_checkpoint(folder / name, scores[name]) for name in names}
    given_densities = dict(zip(names, densities, strict=True))
    execution = Execution(threads=threads, piece_entries=64, tile_entries=64)
    for shown, name in enumerate(names):
        if densities[shown] < 1.0:
            found = kept(merged(Mask(density=given_densities, shown=shown), models, execution=execution))
            assert found == by_sorting(scores[name], up(densities[shown], ENTRIES))


@pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))
def test_the_threshold_is_the_kth_largest_score(tmp_path: Path, zero: Path, distribution: str) -> None:
    scores = drawn(distribution, 5)
    expert = write_checkpoint(tmp_path / "x", scores)
    ordered = sorted((float(s) for t in scores.values() for s in t.flatten().tolist()), reverse=True)
    for count in (1, 100, 372):
        method = Mask(density=count / ENTRIES)
        with plan_merge("m", method, zero, {"x": expert}, {}, execution=Execution(threads=1)) as plan:
            cutoffs = find_cutoffs(plan)
        assert cutoffs is not None
        kth = ordered[up(count / ENTRIES, ENTRIES) - 1]
        assert cutoffs["x"].threshold == (math.inf if kth >= INFINITE else kth)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.999])
def test_a_model_of_one_entry(tmp_path: Path, density: float) -> None:
    """⌈density·1⌉ is one, and ⌊density·1⌋ at least one."""
    models = {
        "base": write_checkpoint(tmp_path / "base", {"p": [0.0]}),
        "x": write_checkpoint(tmp_path / "x", {"p": [1e-45]}),
    }
    for method in (Mask(density=density), Mask(density=density, scope="tensor", rounding="down")):
        assert merged(method, models)["p"].tolist() == [1.0]


def test_ties_are_counted_by_parameter(tmp_path: Path) -> None:
    """Of seven twos, five are kept: by name a's two, b's one and two of c's four."""
    values = {"c": [2.0, 2.0, 1.0, 2.0, 2.0], "b": [2.0], "a": [2.0, 0.0, 2.0, 3.0]}
    base = write_checkpoint(tmp_path / "base", {name: torch.zeros(len(v)) for name, v in values.items()})
    expert = write_checkpoint(tmp_path / "x", values)
    with plan_merge("m", Mask(density=0.6), base, {"x": expert}, {}, execution=Execution(threads=1)) as plan:
        cutoffs = find_cutoffs(plan)
    assert cutoffs is not None
    assert (cutoffs["x"].threshold, cutoffs["x"].ties) == (2.0, {"a": 2, "b": 1, "c": 2})


def test_saliencies_below_the_normal_range_are_told_apart(tmp_path: Path) -> None:
    """4e-42, 9e-42 and 16e-42."""
    models = {
        "base": write_checkpoint(tmp_path / "base", {"p": [0.0, 0.0, 0.0]}),
        "x": write_checkpoint(tmp_path / "x", {"p": [2e-11, 3e-11, 4e-11]}),
    }
    moments = write_moments(tmp_path / "v", {"p": [1e-20, 1e-20, 1e-20]})
    assert kept(merged(Ffg(density=0.6), models, {"x": moments})) == {"p": [1, 2]}


@pytest.mark.parametrize("bad", [-1.0, math.nan, -math.inf])
def test_a_score_below_zero_is_refused(tmp_path: Path, bad: float) -> None:
    models = {
        "base": write_checkpoint(tmp_path / "base", {"p": [0.0, 0.0]}),
        "x": write_checkpoint(tmp_path / "x", {"p": [1.0, 2.0]}),
    }

    class Bad(Mask):
        def score(self, parameter: Parameter) -> Tensor:
            return parameter.experts.masked_fill(parameter.experts > 1, bad)

    with pytest.raises(GraftbenchError, match="method 'm' scored 'p' with negative numbers or NaN"):
        merged(Bad(), models)


def test_minus_zero_is_zero(tmp_path: Path) -> None:
    class Negative(Mask):
        def score(self, parameter: Parameter) -> Tensor:
            return torch.where(parameter.experts == 0, -0.0, parameter.experts)

    models = {
        "base": write_checkpoint(tmp_path / "base", {"p": [0.0] * 6}),
        "x": write_checkpoint(tmp_path / "x", {"p": [0.0, 0.0, 5.0, 0.0, 1.0, 0.0]}),
    }
    for scope in ("model", "tensor"):
        assert kept(merged(Negative(density=0.3, scope=scope), models)) == {"p": [2, 4]}  # type: ignore[arg-type]
        assert kept(merged(Negative(density=0.6, scope=scope), models)) == {"p": [2, 4]}  # type: ignore[arg-type]
