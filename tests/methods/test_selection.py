"""Selection: counts, ties, zeros, and scores of other types."""

from pathlib import Path

import pytest
import torch

from harness.errors import GraftbenchError
from harness.merging import merged_parameters, plan_merge
from harness.merging.cutoffs import find_cutoffs
from methods.interface import Cutoff, Parameter
from methods.selection import entries_to_keep, keep_by_cutoff
from methods.ties import Ties
from tests.checkpoints.small import write_checkpoint


@pytest.mark.parametrize(
    ("density", "entries", "kept"),
    [(0.07, 100, 7), (0.1, 10, 1), (0.3, 10, 3), (0.31, 10, 4), (1.0, 7, 7), (0.0, 7, 0)],
)
def test_a_share_is_rounded_up_in_decimal(density: float, entries: int, kept: int) -> None:
    assert entries_to_keep(density, entries) == kept


def test_ties_go_by_flat_index_within_a_tensor() -> None:
    scores = torch.tensor([[2.0, 1.0], [2.0, 2.0]])
    assert Cutoff(2.0, 3).mask(scores).tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert Cutoff(2.0, 0).mask(scores).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert Cutoff(2.0).mask(scores).tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert Cutoff(1.0, 0).mask(scores).tolist() == [[1.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize("until", [None, 0, 1, 4, 5, 7])
def test_a_mask_made_in_pieces_is_the_whole_mask(until: int | None) -> None:
    scores = torch.tensor([3.0, 2.0, 2.0, 0.0, 2.0, 2.0, 1.0])
    cutoff = Cutoff(2.0, until)
    whole = [float(s > 2 or (s == 2 and (until is None or i < until))) for i, s in enumerate(scores.tolist())]
    assert cutoff.mask(scores).tolist() == whole
    for size in range(1, 8):
        pieces = [cutoff.mask(scores[start : start + size], start) for start in range(0, 7, size)]
        assert torch.cat(pieces).tolist() == whole


def test_a_mask_is_written_where_it_is_asked_for() -> None:
    into = torch.full((2, 2), 7.0)
    assert Cutoff(2.0, 1).mask(torch.tensor([[2.0, 2.0], [1.0, 3.0]]), out=into) is into
    assert into.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_a_score_of_zero_never_survives_a_threshold_of_zero() -> None:
    for until in (None, 0, 3):
        assert Cutoff(0.0, until).mask(torch.tensor([0.0, 1e-30, 3.0])).tolist() == [0.0, 1.0, 1.0]


def test_no_cut_keeps_zeros_too() -> None:
    assert Cutoff(-torch.inf).mask(torch.zeros(3)).all()


def test_nothing_is_kept_beyond_infinity() -> None:
    assert not Cutoff(torch.inf, 0).mask(torch.tensor([1.0, 3e38])).any()


def test_each_expert_has_its_own_cutoff() -> None:
    scores = torch.tensor([[5.0, 5.0, 5.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 2.0]])
    parameter = Parameter("p", torch.zeros(5), scores, ("x", "y"), cutoffs=(Cutoff(5.0, 12), Cutoff(0.0)), offset=10)
    kept = keep_by_cutoff(scores, parameter)
    assert kept.tolist() == [[1.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]]
    assert kept.dtype == torch.float32


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
        merged = dict(merged_parameters(plan))
    assert merged["p"].tolist() == [0.0] * 7 + [7.0, 8.0, 9.0]


def test_a_score_of_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    class Shapeless(Ties):
        def score(self, parameter: Parameter) -> torch.Tensor:
            return parameter.base.abs()

    folder = write_checkpoint(tmp_path / "base", {"p": [0.0, 1.0]})
    with plan_merge("m", Shapeless(), folder, {"x": folder}, {}) as plan, pytest.raises(GraftbenchError, match="shape"):
        find_cutoffs(plan)
