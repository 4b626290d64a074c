"""How far FFG's masks agree under two curvatures, counted by hand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.curvature import SecondMomentsMetadata, write_second_moments
from harness.errors import GraftbenchError
from harness.merging import Execution
from harness.merging.overlap import mask_overlaps
from tests.checkpoints.small import write_checkpoint
from tests.merging.models import SHAPES, Models


def moments(path: Path, values: dict[str, Tensor], compressed: bool = False) -> Path:
    write_second_moments(path, values, SecondMomentsMetadata(beta2=0.9, step=3), compressed)
    return path


def test_masks_are_counted_over_the_whole_model(tmp_path: Path) -> None:
    """Edits of equal size, so that v alone ranks them; at density 0.5 four of eight entries survive."""
    base = write_checkpoint(tmp_path / "base", {"a": torch.zeros(2, 2), "b": torch.zeros(4)})
    expert = write_checkpoint(tmp_path / "expert", {"a": torch.ones(2, 2), "b": torch.ones(4)})
    first = moments(tmp_path / "1", {"a": torch.tensor([[8.0, 7], [6, 1]]), "b": torch.tensor([5.0, 4, 3, 2])})
    second = moments(tmp_path / "2", {"a": torch.tensor([[8.0, 1], [2, 3]]), "b": torch.tensor([7.0, 6, 5, 4])})
    (half, all_of_them, none) = mask_overlaps(base, expert, first, second, (0.5, 1.0, 0.0))
    assert (half.both, half.either) == (2, 6)  # a[0, 0] and b[0]; of four and four
    assert half.intersection_over_union == pytest.approx(1 / 3)
    assert (all_of_them.both, all_of_them.either, all_of_them.intersection_over_union) == (8, 8, 1.0)
    assert (none.both, none.either, none.intersection_over_union) == (0, 0, 1.0)


def test_compressed_moments_agree_as_far_as_their_top_entries_do(tmp_path: Path) -> None:
    models = Models(tmp_path / "models")
    base, expert, full = (models.tensors["base"], models.tensors["math"], models.moments["math"])
    compressed = {
        key: v.sum(1, keepdim=True) * v.sum(0, keepdim=True) / v.sum() if v.dim() == 2 else v for key, v in full.items()
    }
    kept = []
    for v in (full, compressed):
        scores = torch.cat([(v[key] * (expert[key] - base[key]) ** 2).flatten() for key in SHAPES])
        kept.append(scores >= scores.sort(descending=True).values[-(-len(scores) * 3 // 10) - 1])
    wanted = float((kept[0] & kept[1]).sum() / (kept[0] | kept[1]).sum())
    files = moments(tmp_path / "full", full), moments(tmp_path / "sums", full, compressed=True)
    for threads in (1, 2):
        execution = Execution(threads=threads, piece_entries=64)
        (found,) = mask_overlaps(models.single["base"], models.single["math"], *files, (0.3,), execution)
        assert found.intersection_over_union == pytest.approx(wanted, abs=1e-3)
        assert 0.1 < found.intersection_over_union < 0.9
    same = mask_overlaps(models.single["base"], models.single["math"], files[0], files[0], (0.05, 0.3))
    assert [each.both for each in same] == [each.either for each in same] == [-(-len(scores) // 20), int(kept[0].sum())]


def test_moments_of_another_model_are_refused(tmp_path: Path) -> None:
    models = Models(tmp_path / "models")
    other = moments(tmp_path / "other", {key: torch.ones(3, 3) for key in SHAPES})
    with pytest.raises(GraftbenchError, match="have shape"):
        mask_overlaps(models.single["base"], models.single["math"], models.curvature["math"], other)
