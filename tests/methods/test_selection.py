"""Whole-model and per-tensor selection: counts, ties, zeros, and the exactness of the cutoffs."""

from pathlib import Path

import pytest
import torch

from harness.errors import GraftbenchError
from harness.merging import merged_parameters, plan_merge
from harness.merging.thresholds import find_cutoffs
from methods.ffg import Ffg
from methods.interface import Cutoff, Parameter
from methods.selection import entries_to_keep, keep_per_tensor
from methods.ties import Ties
from tests.checkpoints.small import write_checkpoint, write_moments


@pytest.mark.parametrize(
    ("density", "entries", "kept"),
    [(0.07, 100, 7), (0.1, 10, 1), (0.3, 10, 3), (0.31, 10, 4), (1.0, 7, 7), (0.0, 7, 0)],
)
def test_a_share_is_rounded_up_in_decimal(density: float, entries: int, kept: int) -> None:
    assert entries_to_keep(density, entries) == kept


def test_ties_go_by_flat_index_within_a_tensor() -> None:
    scores = torch.tensor([[2.0, 1.0], [2.0, 2.0]])
    kept = Cutoff(2.0, {"p": 2}).mask(scores, "p")
    assert kept.tolist() == [[True, False], [True, False]]


def test_a_score_of_zero_never_survives_a_threshold_of_zero() -> None:
    assert Cutoff(0.0).mask(torch.tensor([0.0, 1e-30, 3.0]), "p").tolist() == [False, True, True]


def test_no_cut_keeps_zeros_too() -> None:
    assert Cutoff(-torch.inf).mask(torch.zeros(3), "p").all()


def test_per_tensor_selection_keeps_exactly_the_share() -> None:
    scores = torch.tensor([[5.0, 5.0, 5.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 2.0]])
    parameter = Parameter("p", torch.zeros(5), scores, ("x", "y"))
    kept = keep_per_tensor(scores, parameter, {"x": 0.4, "y": 0.8})
    assert kept.tolist() == [[True, True, False, False, False], [False, False, False, False, True]]


@pytest.mark.parametrize("density", [0.0, 0.001, 0.05, 0.37, 0.5, 0.99])
@pytest.mark.parametrize("coarse", [False, True])
def test_cutoffs_keep_the_largest_of_the_whole_model(tmp_path: Path, density: float, coarse: bool) -> None:
    """Against a sort over all parameters; coarse values tie in their thousands, as experts in bf16 do."""
    generator = torch.Generator().manual_seed(7)
    shapes = {"c": (40, 30), "a": (500,), "b": (20, 10)}
    base = {name: torch.zeros(shape) for name, shape in shapes.items()}
    deltas = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if coarse:
        deltas = {name: (delta * 2).round() for name, delta in deltas.items()}
    folder = write_checkpoint(tmp_path / "base", base)
    expert = write_checkpoint(tmp_path / "expert", deltas)
    method = Ties(density=density)
    with plan_merge("ties", method, folder, {"x": expert}, {}) as plan:
        cutoffs = find_cutoffs(plan)
    assert cutoffs is not None
    masks = {name: cutoffs["x"].mask(delta.abs(), name) for name, delta in deltas.items()}

    # Largest first; among equals by parameter name, then flat index.
    entries = [
        (-abs(float(value)), name, index)
        for name, delta in deltas.items()
        for index, value in enumerate(delta.flatten())
        if value != 0
    ]
    wanted = sorted(entries)[: entries_to_keep(density, 1900)]
    kept = {(name, index) for name, mask in masks.items() for index in mask.flatten().nonzero().flatten().tolist()}
    assert kept == {(name, index) for _, name, index in wanted}


class Scored(Ties):
    """TIES with another score."""

    def score(self, parameter: Parameter) -> torch.Tensor:
        return SCORES[self.seed](super().score(parameter))

    seed = 0


SCORES = [lambda s: s.bfloat16(), lambda s: s.double(), lambda s: torch.where(s > 0, s, -0.0)]


@pytest.mark.parametrize("which", range(len(SCORES)))
def test_scores_of_other_types_are_counted_right(tmp_path: Path, which: int) -> None:
    folder = write_checkpoint(tmp_path / "base", {"p": [0.0] * 10})
    expert = write_checkpoint(tmp_path / "x", {"p": [0.0, 1.0, -2.0, 3.0, 4.0, -5.0, 6.0, 7.0, 8.0, 9.0]})
    method = Scored(density=0.3)
    object.__setattr__(method, "seed", which)
    with plan_merge("ties", method, folder, {"x": expert}, {}) as plan:
        merged = dict(merged_parameters(plan, find_cutoffs(plan)))
    assert merged["p"].tolist() == [0.0] * 7 + [7.0, 8.0, 9.0]


def test_a_score_of_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    class Shapeless(Ties):
        def score(self, parameter: Parameter) -> torch.Tensor:
            return parameter.base.abs()

    folder = write_checkpoint(tmp_path / "base", {"p": [0.0, 1.0]})
    with plan_merge("m", Shapeless(), folder, {"x": folder}, {}) as plan, pytest.raises(GraftbenchError, match="shape"):
        find_cutoffs(plan)


def test_tiny_and_denormal_scores_are_told_apart(tmp_path: Path) -> None:
    """Saliencies of 4e-42, 9e-42 and 16e-42 lie below fp32's normal range."""
    folder = write_checkpoint(tmp_path / "base", {"p": [0.0, 0.0, 0.0]})
    expert = write_checkpoint(tmp_path / "x", {"p": [2e-11, 3e-11, 4e-11]})
    moments = write_moments(tmp_path / "v", {"p": [1e-20, 1e-20, 1e-20]})
    with plan_merge("ffg", Ffg(density=0.6), folder, {"x": expert}, {"x": moments}) as plan:
        cutoffs = find_cutoffs(plan)
        assert cutoffs is not None
        scores = torch.tensor([4e-42, 9e-42, 16e-42])
        assert cutoffs["x"].mask(scores, "p").tolist() == [False, True, True]
