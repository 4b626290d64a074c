"""Cutoffs among hundreds of thousands of scores, where a sample may guess them: they are exact, guessed well or not."""

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.merging import CutoffStore, Execution
from harness.merging.execution import Pool
from methods.ties import Ties
from tests.checkpoints.small import write_checkpoint
from tests.merging.models import merged

SHAPES = {"b": (300, 1000), "c": (17,), "a": (20_000,)}


def unlike_its_samples(count: int) -> Tensor:
    """Large only where a sample of runs of 1,024 entries at multiples of 32,768 looks."""
    place = torch.arange(count) % 32_768
    return torch.where(place < 1024, 5.0, 1.0) + torch.rand(count)


DISTRIBUTIONS: dict[str, Callable[[int], Tensor]] = {
    "normal": torch.randn,
    "as in bf16": lambda count: torch.randn(count).to(torch.bfloat16).float(),
    "a few levels": lambda count: torch.randint(-2, 3, (count,)).float(),
    "all equal": lambda count: torch.full((count,), 0.3),
    "nearly all zero": lambda count: torch.where(torch.rand(count) < 0.001, torch.randn(count), torch.zeros(count)),
    "sorted": lambda count: torch.arange(count) / count,
    "unlike its samples": unlike_its_samples,
    "like nothing but its samples": lambda count: 7 - unlike_its_samples(count),
    "denormal": lambda count: torch.randint(0, 1000, (count,)) * 2.0**-149,
}


def kept_by_sorting(values: dict[str, Tensor], density: float) -> dict[str, Tensor]:
    """Stable sort, largest |Δ| first, of the tensors one after the other by name; zeros are never kept."""
    names = sorted(values)
    flat = torch.cat([values[name].abs().flatten() for name in names])
    order = flat.argsort(descending=True, stable=True)[: math.ceil(Fraction(repr(density)) * len(flat))]
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[order] = True
    parts = (mask & (flat > 0)).split([values[name].numel() for name in names])
    return {name: part.view(values[name].shape) for name, part in zip(names, parts, strict=True)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    return write_checkpoint(tmp_path_factory.mktemp("zero") / "base", zeros)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_largest_of_many_are_kept(
    tmp_path: Path, base: Path, distribution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    values = {name: DISTRIBUTIONS[distribution](math.prod(shape)).view(shape) for name, shape in SHAPES.items()}
    models = {"base": base, "x": write_checkpoint(tmp_path / "x", values)}
    execution = Execution(threads=1, piece_entries=50_000)
    for density, store in ((0.2, None), (0.037, CutoffStore(tmp_path / "store")), (0.9999, None)):
        found = merged(Ties(density=density), models, execution=execution, store=store)
        wanted = kept_by_sorting(values, density)
        assert all(torch.equal(found[name] != 0, wanted[name]) for name in SHAPES), density
        for shared in (1, 4 * 10**9):  # in the memory of one worker, or what no worker holds alone
            monkeypatch.setattr("harness.merging.tensor_cutoffs._MEMORY_SHARE", shared)
            found = merged(Ties(density=density, scope="tensor"), models, execution=execution)
            for name in SHAPES:
                assert torch.equal(found[name] != 0, kept_by_sorting({name: values[name]}, density)[name]), density


def test_small_tensors_do_not_spoil_the_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm vector is a thousandth of a layer, and its edits are unlike the others': it must not weigh more."""

    def second_pass(*_: object) -> None:
        raise AssertionError("the guess failed, and a second pass was needed")

    monkeypatch.setattr("harness.merging.cutoffs._CountLower.__call__", second_pass)
    torch.manual_seed(3)
    values = {f"norm.{number}": 100 + torch.rand(64) for number in range(60)} | {"up": torch.randn(400, 1000)}
    base = write_checkpoint(tmp_path / "base", {name: torch.zeros_like(tensor) for name, tensor in values.items()})
    models = {"base": base, "x": write_checkpoint(tmp_path / "x", values)}
    found = merged(Ties(density=0.3), models)
    wanted = kept_by_sorting(values, 0.3)
    assert all(torch.equal(found[name] != 0, wanted[name]) for name in values)


def test_a_second_density_counts_for_all_further_ones(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One density costs one pass, a second and a third another each, and further hundredths none."""
    passes: list[str] = []
    run_over = Pool.run_over

    def noting(pool: Pool, parameters: Any, task: Any) -> Any:
        passes.append(type(task).__name__.removeprefix("_"))
        return run_over(pool, parameters, task)

    monkeypatch.setattr(Pool, "run_over", noting)
    torch.manual_seed(3)
    values = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    models = {"base": base, "x": write_checkpoint(tmp_path / "x", values)}
    store, ran = CutoffStore(tmp_path / "store"), []
    for density in (0.2, 0.3, 0.4, 0.5):
        passes.clear()
        found = merged(Ties(density=density), models, store=store)
        wanted = kept_by_sorting(values, density)
        assert all(torch.equal(found[name] != 0, wanted[name]) for name in SHAPES), density
        ran.append([task for task in passes if task != "Sample"])
    assert ran == [["CountInside"], ["CountUpper"], ["CountLower"], []]
