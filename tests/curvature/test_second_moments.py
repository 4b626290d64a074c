"""The file of second moments, and what a set of them gives a method."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.curvature import CurvatureSource, SecondMoments, SecondMomentsMetadata, compress, write_second_moments
from harness.curvature.second_moments import reconstruct
from harness.errors import GraftbenchError
from tests.checkpoints.small import write_moments

MATRIX = torch.tensor([[1.0, 2.0], [3.0, 10.0]])


def test_metadata_survives_the_file(tmp_path: Path) -> None:
    metadata = SecondMomentsMetadata("adam", "AdamW", 0.999, 200, 6e-4, "abc", False)
    write_second_moments(tmp_path / "v", {"p": MATRIX}, metadata)
    with SecondMoments(tmp_path / "v") as moments:
        assert moments.metadata == metadata
        assert moments.shapes == {"p": (2, 2)}
        assert torch.equal(moments.read("p"), MATRIX)


def test_the_bias_correction_is_adams() -> None:
    # 1 − 0.9² = 0.19
    assert SecondMomentsMetadata(beta2=0.9, step=2).correction == pytest.approx(1 / 0.19)
    assert SecondMomentsMetadata(beta2=0.9, step=2, bias_corrected=True).correction == 1.0
    assert SecondMomentsMetadata(beta2=0.9).correction is None
    assert SecondMomentsMetadata(kind="fisher").correction == 1.0


def test_a_compressed_file_holds_sums_and_whole_vectors(tmp_path: Path) -> None:
    tensors = {"p": MATRIX, "norm": torch.tensor([1.0, 2.0])}
    write_second_moments(tmp_path / "v", tensors, SecondMomentsMetadata(beta2=0.9, step=2), compressed=True)
    stored = load_file(tmp_path / "v")
    assert {name: value.tolist() for name, value in stored.items()} == {
        "p.row": [3.0, 13.0],
        "p.col": [4.0, 12.0],
        "norm": [1.0, 2.0],
    }
    with SecondMoments(tmp_path / "v") as moments:
        assert moments.shapes == {"p": (2, 2), "norm": (2,)}
        # row·col/Σ: 3·4/16, 3·12/16, 13·4/16, 13·12/16
        assert moments.read("p").tolist() == [[0.75, 2.25], [3.25, 9.75]]


def test_compressing_on_the_fly_gives_what_a_compressed_file_gives(tmp_path: Path) -> None:
    write_moments(tmp_path / "v", {"p": MATRIX, "norm": [1.0]})
    with SecondMoments(tmp_path / "v") as moments:
        assert moments.read("p", as_sums=True).tolist() == [[0.75, 2.25], [3.25, 9.75]]
        assert moments.read("norm", as_sums=True).tolist() == [1.0]


def test_sums_of_zero_reconstruct_zero() -> None:
    parts = compress("p", torch.zeros(2, 3))
    assert torch.equal(reconstruct(parts["p.row"], parts["p.col"]), torch.zeros(2, 3))


def test_sums_of_tiny_values_do_not_underflow() -> None:
    # Products of two sums of 1e-30 would be 0 in fp32; (row/Σ)·col is not.
    parts = compress("p", torch.full((2, 2), 1e-30))
    assert torch.allclose(reconstruct(parts["p.row"], parts["p.col"]), torch.full((2, 2), 1e-30), rtol=1e-5, atol=0)


def test_a_public_file_without_metadata_is_raw_adam_of_unknown_step(tmp_path: Path) -> None:
    save_file({"p": MATRIX}, tmp_path / "v")
    with SecondMoments(tmp_path / "v") as moments:
        assert moments.metadata == SecondMomentsMetadata()


def test_corrected_and_raw_are_never_mixed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = write_moments(tmp_path / "known", {"p": [1.0]}, beta2=0.5, step=1)
    unknown = tmp_path / "unknown"
    save_file({"p": torch.tensor([1.0])}, unknown)
    shapes = {"p": (1,)}
    with CurvatureSource("adam", {"x": known, "y": known}, shapes) as source:
        assert source.read("p").tolist() == [[2.0], [2.0]]
    with caplog.at_level(logging.WARNING), CurvatureSource("adam", {"x": known, "y": unknown}, shapes) as source:
        assert source.read("p").tolist() == [[1.0], [1.0]]
        assert source.describe()["bias_corrected"] is False
    assert "y" in caplog.text and "raw" in caplog.text


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_bad_values_are_refused(tmp_path: Path, bad: float) -> None:
    write_moments(tmp_path / "v", {"p": [1.0, bad]})
    with SecondMoments(tmp_path / "v") as moments, pytest.raises(GraftbenchError, match="second moments of 'p'"):
        moments.read("p")


def test_curvature_of_another_kind_is_refused(tmp_path: Path) -> None:
    adam = write_moments(tmp_path / "adam", {"p": [1.0]})
    write_second_moments(tmp_path / "fisher", {"p": torch.ones(1)}, SecondMomentsMetadata(kind="fisher"))
    CurvatureSource("fisher", {"x": tmp_path / "fisher"}, {"p": (1,)})
    with pytest.raises(GraftbenchError, match="holds curvature of kind 'fisher', but the method asks for 'adam'"):
        CurvatureSource("adam", {"x": tmp_path / "fisher"}, {"p": (1,)})
    with pytest.raises(GraftbenchError, match="kind 'adam', but the method asks for 'fisher'"):
        CurvatureSource("fisher", {"x": adam}, {"p": (1,)})


@pytest.mark.parametrize(
    "fields", [{"kind": "banana"}, {"kind": "adam", "beta2": "1.5"}, {"kind": "adam", "beta2": "nan"}]
)
def test_metadata_that_means_nothing_is_refused(tmp_path: Path, fields: dict[str, str]) -> None:
    metadata = {"format": "graftbench.second_moments", "version": "1", **fields}
    save_file({"p": torch.ones(1)}, tmp_path / "v", metadata=metadata)
    with pytest.raises(GraftbenchError, match="its metadata cannot be read"):
        SecondMoments(tmp_path / "v")


def test_files_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    file = write_moments(tmp_path / "v", {"p": [1.0, 2.0]})
    with pytest.raises(GraftbenchError, match="expert 'x' lack 'q'"):
        CurvatureSource("adam", {"x": file}, {"p": (2,), "q": (2,)})
    with pytest.raises(GraftbenchError, match=r"'p' have shape \[2\], the parameter \[3\]"):
        CurvatureSource("adam", {"x": file}, {"p": (3,)})
    with pytest.raises(GraftbenchError, match="do not exist"):
        SecondMoments(tmp_path / "nothing")
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(GraftbenchError, match="not a whole safetensors file"):
        SecondMoments(file)
