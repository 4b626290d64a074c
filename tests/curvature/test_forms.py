"""Compressed forms of second moments: what they rebuild, on the fly and from files, in any pieces."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.curvature import CurvatureSource, SecondMoments, SecondMomentsMetadata, write_second_moments
from harness.curvature.blocks import BLOCK_ENTRIES, decode, encode
from harness.curvature.compressing import compress_file, reconstruction_error
from harness.curvature.low_rank import factorise
from harness.curvature.stored import CODED_AT_ONCE, Form
from harness.errors import GraftbenchError
from methods.interface import CurvatureKind
from tests.checkpoints.small import write_moments

KINDS: dict[Form, CurvatureKind] = {"sums": "compressed", "rank": "rank", "blocks": "blocks"}
FORMS = list(KINDS)


def moments_like(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Values over sixteen decades, a tenth of them zero."""
    draw = torch.Generator().manual_seed(seed)
    values = 10.0 ** (torch.rand(shape, generator=draw) * 16.0 - 24.0)
    return values * (torch.rand(shape, generator=draw) > 0.1)


def through_codes(values: Tensor) -> Tensor:
    out = torch.empty(values.numel())
    decode(*encode(values.flatten()), 0, out)
    return out.view(values.shape)


def product(matrix: Tensor, rank: int, name: str = "p") -> Tensor:
    flat = matrix.flatten()
    factors = factorise(name, matrix.sum(1), matrix.sum(0), lambda start, stop: flat[start:stop], rank)
    return factors.left.double() @ factors.right.double()


def divergence(matrix: Tensor, other: Tensor) -> float:
    """Σ v·ln(v/v̂) − v + v̂, the generalised Kullback-Leibler divergence, of a positive matrix."""
    matrix = matrix.double()
    return float((matrix * (matrix / other).log() - matrix + other).sum())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3 * BLOCK_ENTRIES), st.integers(0, 99), st.floats(-44.0, 30.0), st.floats(0.0, 12.0))
def test_8_bits_are_off_by_half_a_level_at_most_and_zero_stays_zero(
    entries: int, seed: int, least: float, decades: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    values = (10.0 ** (least + decades * torch.rand(entries, generator=draw, dtype=torch.float64))).float()
    values *= torch.rand(entries, generator=draw) > 0.2
    found = through_codes(values)
    assert torch.equal(found == 0, values == 0)
    normal = values >= torch.finfo(torch.float32).tiny
    apart = (found[normal].double() / values[normal].double()).log2().abs()
    # 254 steps of whole 256ths of an octave from the smallest to the largest, and the nearest of the grid.
    octaves = decades / torch.tensor(2.0).log10().item()
    assert not len(apart) or apart.max() <= (octaves / 254 + 1 / 256) / 2 + 1 / 256


def test_a_block_of_one_value_and_a_block_of_zeros_are_exact_up_to_the_grid() -> None:
    assert through_codes(torch.full((300,), 2.0**-40)).tolist() == [2.0**-40] * 300
    assert through_codes(torch.zeros(300)).tolist() == [0.0] * 300
    for extreme in (torch.finfo(torch.float32).smallest_normal, torch.finfo(torch.float32).max, 2.0**-149):
        assert through_codes(torch.tensor([extreme])).item() == pytest.approx(extreme, rel=0.003)


def test_rank_one_is_what_sums_give_and_more_ranks_come_closer() -> None:
    matrix = 10.0 ** (torch.rand(40, 60, generator=torch.Generator().manual_seed(0)) * 6 - 12)
    sums = torch.outer(matrix.double().sum(1), matrix.double().sum(0)) / matrix.double().sum()
    torch.testing.assert_close(product(matrix, 1), sums, rtol=1e-5, atol=0)
    apart = [divergence(matrix, product(matrix, rank)) for rank in (1, 2, 4, 8)]
    assert apart == sorted(apart, reverse=True) and apart[-1] < 0.7 * apart[0]
    torch.testing.assert_close(product(matrix, 4).sum(0), matrix.double().sum(0), rtol=1e-5, atol=0)


def test_a_matrix_of_low_rank_is_found_again() -> None:
    draw = torch.Generator().manual_seed(1)
    left, right = torch.rand(30, 2, generator=draw) ** 4, torch.rand(2, 50, generator=draw) ** 4
    matrix = left @ right * 1e-9
    scale = float(matrix.mean())
    assert divergence(matrix, product(matrix, 4)) < 0.01 * divergence(matrix, product(matrix, 1))
    assert float((product(matrix, 4) - matrix).abs().max()) < scale


@pytest.mark.parametrize("shape", [(300, 270), (2, 70_000)])
def test_factors_do_not_depend_on_the_number_of_threads_but_on_the_name(shape: tuple[int, int]) -> None:
    matrix, threads = moments_like(shape), torch.get_num_threads()
    found = []
    for number in (1, 3):
        torch.set_num_threads(number)
        found.append(product(matrix, 2))
    torch.set_num_threads(threads)
    assert torch.equal(*found)
    assert not torch.equal(product(matrix, 2, "another"), found[0])


def test_rows_and_columns_of_zeros_stay_zero() -> None:
    matrix = moments_like((20, 30)) + 1e-20
    matrix[3], matrix[:, 7] = 0.0, 0.0
    found = product(matrix, 3)
    assert torch.equal(found == 0, matrix == 0)
    assert torch.equal(product(torch.zeros(20, 30), 3), torch.zeros(20, 30).double())


@settings(max_examples=25, deadline=None)
@given(
    st.one_of(
        st.tuples(st.integers(0, 600)),
        st.tuples(st.integers(0, 40), st.integers(0, 40)),
        st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
    ),
    st.sampled_from(FORMS),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.integers(0, 9),
    st.data(),
)
def test_any_pieces_of_a_file_and_of_its_source_on_the_fly_have_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, ...],
    form: Form,
    dtype: torch.dtype,
    seed: int,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("forms")
    save_file({"p": moments_like(shape, seed).to(dtype)}, folder / "full")
    compress_file(folder / "full", folder / "compressed", form)
    with SecondMoments(folder / "full") as full, SecondMoments(folder / "compressed") as compressed:
        whole = compressed.read("p")
        assert whole.shape == shape and torch.equal(full.read("p", form), whole)
        size = data.draw(st.integers(1, max(1, whole.numel())), label="size of pieces")
        scratch = torch.empty(4 * size, dtype=torch.uint8)
        for moments, how in ((full, form), (compressed, None)):
            if moments.stored("p", how).dtype != torch.float32:
                continue  # kept as it is: the pieces of whole tensors are tested elsewhere
            for start in range(0, whole.numel(), size):
                stop = min(start + size, whole.numel())
                assert torch.equal(moments.fetch("p", start, stop, scratch, how), whole.flatten()[start:stop])


def test_blocks_of_a_tensor_that_is_coded_in_several_parts(tmp_path: Path) -> None:
    value = moments_like((2, CODED_AT_ONCE - 100))
    save_file({"p": value}, tmp_path / "full")
    compress_file(tmp_path / "full", tmp_path / "codes", "blocks")
    scratch = torch.empty(8 * value.numel(), dtype=torch.uint8)
    with SecondMoments(tmp_path / "full") as full, SecondMoments(tmp_path / "codes") as codes:
        assert torch.equal(codes.read("p"), through_codes(value))
        for start, stop in ((0, value.numel()), (1000, CODED_AT_ONCE + 7), (CODED_AT_ONCE - 3, CODED_AT_ONCE + 3)):
            wanted = through_codes(value).flatten()[start:stop]
            assert torch.equal(codes.fetch("p", start, stop, scratch), wanted)
            assert torch.equal(full.fetch("p", start, stop, scratch, "blocks"), wanted)


@pytest.mark.parametrize("form", FORMS)
def test_a_compressed_file_keeps_its_metadata_and_is_corrected_like_the_full_one(tmp_path: Path, form: Form) -> None:
    """Experts of 1 and 20 steps at β₂ = 0.9, whose corrections differ by a factor of 8.8."""
    shapes, files = {"p": (20, 30), "n": (5,)}, {}
    for seed, (expert, step) in enumerate((("x", 1), ("y", 20))):
        values = {name: moments_like(shape, seed) for name, shape in shapes.items()}
        write_moments(tmp_path / expert, values, beta2=0.9, step=step)
        compress_file(tmp_path / expert, tmp_path / f"{expert}.{form}", form)
        files[expert] = tmp_path / f"{expert}.{form}"
        with SecondMoments(files[expert]) as moments:
            assert (moments.metadata.step, moments.metadata.beta2) == (step, 0.9)
            assert moments.metadata.compression
    full = {expert: tmp_path / expert for expert in files}
    factors = torch.tensor([1 / (1 - 0.9), 1 / (1 - 0.9**20)]).view(2, 1, 1)
    with (
        CurvatureSource("adam", files, shapes) as corrected,
        CurvatureSource("raw", files, shapes) as raw,
        CurvatureSource(KINDS[form], full, shapes) as on_the_fly,
    ):
        assert corrected.describe()["bias_corrected"] is True and raw.describe()["bias_corrected"] is False
        assert torch.equal(corrected.read("p"), raw.read("p") * factors)
        assert torch.equal(on_the_fly.read("p"), corrected.read("p"))
    save_file(load_file(files["y"]), tmp_path / "unknown")  # the same values of an expert that does not tell its step
    with CurvatureSource("adam", {"x": files["x"], "y": tmp_path / "unknown"}, shapes) as mixed:
        assert mixed.describe()["bias_corrected"] is False
        assert torch.equal(mixed.read("p"), raw.read("p"))


def test_the_report_counts_what_it_says(tmp_path: Path) -> None:
    write_moments(tmp_path / "v", {"p": [[1.0, 0.0, 4.0], [3.0, 0.0, 0.0]], "n": [1.0, 0.0]})
    report = compress_file(tmp_path / "v", tmp_path / "sums", "sums")
    assert (report.parameters, report.kept_whole) == (2, 1)
    assert report.bytes_before == (tmp_path / "v").stat().st_size
    assert report.bytes_after == (tmp_path / "sums").stat().st_size
    # (row/Σ)·col of rows 5, 3 and columns 4, 0, 4: 2.5 0 2.5, 1.5 0 1.5
    errors = torch.tensor([2.5 / 1.0, 2.5 / 4.0, 1.5 / 3.0, 1.0]).double().log10().abs()
    found = report.reconstruction
    assert found.mean_error == pytest.approx(float(errors.mean()), rel=1e-6)
    assert found.root_mean_square_error == pytest.approx(float(errors.square().mean().sqrt()), rel=1e-6)
    assert found.largest_error == pytest.approx(float(errors.max()), rel=1e-6)
    assert (found.compared, found.zeros_kept, found.zeros_filled, found.lost) == (4, 3, 1, 0)
    write_moments(tmp_path / "w", {"p": [[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]], "n": [1.0, 0.0]})
    with SecondMoments(tmp_path / "v") as full, SecondMoments(tmp_path / "w") as other:
        assert reconstruction_error(full, other).lost == 2


def test_what_cannot_be_compressed_is_refused(tmp_path: Path) -> None:
    write_moments(tmp_path / "v", {"p": moments_like((9, 9))})
    compress_file(tmp_path / "v", tmp_path / "codes", "blocks")
    with pytest.raises(GraftbenchError, match="compressed already"):
        compress_file(tmp_path / "codes", tmp_path / "twice", "sums")
    with pytest.raises(GraftbenchError, match="exists already"):
        compress_file(tmp_path / "v", tmp_path / "codes", "sums")
    save_file({"p": torch.ones(2, 2, dtype=torch.int64)}, tmp_path / "integers")
    with pytest.raises(GraftbenchError, match="'p' are stored as int64"):
        compress_file(tmp_path / "integers", tmp_path / "out", "sums")
    save_file({"p": -torch.ones(9, 9)}, tmp_path / "negative")
    for form in FORMS:
        with pytest.raises(GraftbenchError, match="second moments of 'p' hold values from -"):
            compress_file(tmp_path / "negative", tmp_path / "out", form)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"p.left": torch.ones(2, 1)}, "left factors of 'p' but no right factors"),
        ({"p.codes": torch.ones(2, 2, dtype=torch.uint8)}, "codes of 'p' but no block ranges"),
        ({"p.ranges": torch.ones(1, 2, dtype=torch.int32)}, "block ranges of 'p' but no codes"),
        ({"p.left": torch.ones(2, 3), "p.right": torch.ones(2, 3)}, r"must be \[rows, rank\] and \[rank, columns\]"),
        ({"p.codes": torch.ones(2, 2), "p.ranges": torch.ones(1, 2)}, "must be uint8, and int32"),
        (
            {"p.codes": torch.ones(20, 20, dtype=torch.uint8), "p.ranges": torch.ones(1, 2, dtype=torch.int32)},
            r"uint8 \[20, 20\] and int32 \[1, 2\]",
        ),
        (
            {"p.row": torch.ones(2), "p.col": torch.ones(2), "p.left": torch.ones(2, 1), "p.right": torch.ones(1, 2)},
            "'p' both as factors and as sums",
        ),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(tmp_path: Path, stored: dict[str, Tensor], message: str) -> None:
    save_file(stored, tmp_path / "v")
    with pytest.raises(GraftbenchError, match=message):
        SecondMoments(tmp_path / "v")


def test_ranges_outside_of_fp32_are_refused(tmp_path: Path) -> None:
    codes = torch.ones(20, 20, dtype=torch.uint8)
    for bad in ([-1, 1], [10**6, 1], [0, 0]):
        ranges = torch.tensor([[0, 1], bad], dtype=torch.int32)
        save_file({"p.codes": codes, "p.ranges": ranges}, tmp_path / "v")
        with SecondMoments(tmp_path / "v") as moments, pytest.raises(GraftbenchError, match="block ranges of 'p' lie"):
            moments.read("p")


def test_squared_task_vectors_stand_for_any_kind_but_are_not_mixed_with_another(tmp_path: Path) -> None:
    write_second_moments(tmp_path / "delta", {"p": torch.ones(3)}, SecondMomentsMetadata(kind="delta"))
    adam = write_moments(tmp_path / "adam", {"p": [2.0, 2.0, 2.0]}, beta2=0.5, step=1)
    for kind in ("adam", "fisher", "compressed"):
        with CurvatureSource(kind, {"x": tmp_path / "delta"}, {"p": (3,)}) as source:
            assert source.read("p").tolist() == [[1.0, 1.0, 1.0]]
    with pytest.raises(GraftbenchError, match="x delta, y adam"):
        CurvatureSource("adam", {"x": tmp_path / "delta", "y": adam}, {"p": (3,)})
