"""The mean of several checkpoints of one run."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.checkpoints import Checkpoint
from harness.checkpoints.averaged import AveragedCheckpoint
from harness.errors import GraftbenchError
from tests.checkpoints.small import Values, write_checkpoint


def average(folder: Path, *members: Values, dtype: torch.dtype = torch.float32) -> AveragedCheckpoint:
    return AveragedCheckpoint(
        [Checkpoint(write_checkpoint(folder / f"step{i}", values, dtype)) for i, values in enumerate(members)]
    )


def test_the_mean_by_hand(tmp_path: Path) -> None:
    mean = average(tmp_path, {"p": [[1.0, 2.0]]}, {"p": [[2.0, 4.0]]}, {"p": [[6.0, 0.0]]})
    assert mean.read("p").tolist() == [[3.0, 2.0]]
    assert not mean.is_adapter


def test_half_precision_is_averaged_in_fp32(tmp_path: Path) -> None:
    """bf16 has no number between 256 and 258."""
    mean = average(tmp_path, {"p": [256.0]}, {"p": [258.0]}, dtype=torch.bfloat16)
    assert mean.read("p").tolist() == [257.0]
    assert mean.tensors["p"].dtype == torch.bfloat16


def test_the_sum_goes_in_the_order_given(tmp_path: Path) -> None:
    """2²⁴ + 1 + 1 in fp32 is 2²⁴, but 1 + 1 + 2²⁴ is 2²⁴ + 2."""
    values = ({"p": [2.0**24]}, {"p": [1.0]}, {"p": [1.0]}, {"p": [0.0]})
    assert average(tmp_path / "one", *values).read("p").tolist() == [2.0**22]
    assert average(tmp_path / "other", *reversed(values)).read("p").tolist() == [2.0**22 + 0.5]


@given(cut=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_bits_do_not_depend_on_pieces(mean: AveragedCheckpoint, cut: int) -> None:
    scratches = torch.empty(2, 8000, dtype=torch.uint8)
    parts = [mean.fetch("p", 0, cut, scratches[0]), mean.fetch("p", cut, 1000, scratches[1])]
    assert torch.equal(torch.cat(parts), mean.read("p"))


@pytest.fixture(scope="module")
def mean(tmp_path_factory: pytest.TempPathFactory) -> AveragedCheckpoint:
    torch.manual_seed(1)
    return average(tmp_path_factory.mktemp("mean"), *({"p": torch.randn(1000)} for _ in range(3)))


def test_the_rest_is_the_last_ones(tmp_path: Path) -> None:
    members = [Checkpoint(write_checkpoint(tmp_path / name, {"p": [1.0]})) for name in ("first", "last")]
    (tmp_path / "last" / "tokenizer.json").write_text("{}")
    mean = AveragedCheckpoint(members)
    assert mean.folder == tmp_path / "last"
    assert mean.tokenizer_digest == members[1].tokenizer_digest != members[0].tokenizer_digest
    assert mean.source == f"[{tmp_path / 'first'}, {tmp_path / 'last'}]"


def test_the_digest_follows_members_and_order(tmp_path: Path) -> None:
    one, other = (Checkpoint(write_checkpoint(tmp_path / name, {"p": [len(name)]})) for name in ("a", "bc"))
    digests = {AveragedCheckpoint(members).weights_digest for members in ([one, other], [other, one], [one, one])}
    assert len(digests | {one.weights_digest}) == 4


@pytest.mark.parametrize(
    ("values", "architecture", "said"),
    [
        ({"p": [1.0]}, "OtherModel", "one is a TestModel, the other a OtherModel"),
        ({"p": [1.0], "q": [1.0]}, "TestModel", "step0 lacks 1 tensors of .*step1, such as 'q'"),
        ({"q": [1.0]}, "TestModel", "step1 lacks 1 tensors of .*step0, such as 'p'"),
        ({"p": [1.0, 2.0]}, "TestModel", r"'p' is \[1\] in one and \[2\] in the other"),
    ],
)
def test_members_of_different_layout_are_refused(tmp_path: Path, values: Values, architecture: str, said: str) -> None:
    members = [
        Checkpoint(write_checkpoint(tmp_path / "step0", {"p": [1.0]})),
        Checkpoint(write_checkpoint(tmp_path / "step1", values, architecture=architecture)),
    ]
    with pytest.raises(GraftbenchError, match=f"step0 and .*step1 cannot be averaged: .*{said}"):
        AveragedCheckpoint(members)
