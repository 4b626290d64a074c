"""What a merge needs besides time, by hand."""

from pathlib import Path

import pytest

from harness.curvature import SecondMomentsMetadata, write_second_moments
from harness.merging import Execution, merge_to_folder, plan_merge
from harness.merging.cost import needs
from methods import Method
from methods.fisher import Fisher
from methods.linear import Linear
from methods.ota import Ota
from tests.merging.models import NAMES, Models

ENTRIES = 37 * 29 + 613 + 29 * 37 + 5
SUMS = (37 + 29) + 613 + (29 + 37) + 5
"""Rows and columns of the two matrices, and the vectors whole."""
FACTORS = 4 * (37 + 29) + 613 + 4 * (29 + 37) + 5
CODES = 2 * (37 * 29 + 8 * 5) + 4 * (613 + 5)
"""A byte an entry and eight for each of the five blocks of 256 of a matrix; vectors in fp32."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(
    ("method", "extra", "data"),
    [
        (Linear(), 0, "none"),
        (Ota(), 4 * ENTRIES, "second moments"),
        (Ota(curvature="compressed"), 4 * SUMS, "second moments"),
        (Ota(curvature="rank"), 4 * FACTORS, "second moments"),
        (Ota(curvature="blocks"), CODES, "second moments"),
        (Ota(curvature="delta"), 0, "none"),
        (Fisher(), 4 * ENTRIES, "labelled examples"),
    ],
)
def test_files_and_data_follow_from_the_kind_of_curvature(
    tmp_path: Path, models: Models, method: Method, extra: int, data: str
) -> None:
    experts = {name: models.single[name] for name in NAMES[1:]}
    files = models.curvature
    if isinstance(method, Fisher):
        files = {name: tmp_path / f"{name}.safetensors" for name in experts}
        for name, path in files.items():
            write_second_moments(path, models.moments[name], SecondMomentsMetadata(kind="fisher"))
    with plan_merge("m", method, models.single["base"], experts, files, execution=Execution(threads=1)) as plan:
        assert needs(plan) == {"extra_bytes_per_expert": extra, "data_needed": data}


def test_a_merge_says_how_much_memory_it_took(tmp_path: Path, models: Models) -> None:
    experts = {name: models.single[name] for name in NAMES[1:]}
    with plan_merge("m", Linear(), models.single["base"], experts, {}, execution=Execution(threads=2)) as plan:
        report = merge_to_folder(plan, tmp_path / "out")
    assert report.peak_bytes is not None
    assert 2**24 < report.peak_bytes < 2**32
