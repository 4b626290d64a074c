"""Every method on tensors small enough to merge by hand."""

import pytest

from methods import available
from tests.methods.cases import CASES, Case
from tests.methods.merging_by_hand import mismatch


@pytest.mark.parametrize("case", CASES, ids=[f"{case.method}: {case.name}" for case in CASES])
def test_the_merge_is_the_one_worked_out_by_hand(case: Case) -> None:
    assert mismatch(case) is None


def test_every_method_has_cases() -> None:
    assert {case.method for case in CASES} == set(available())
