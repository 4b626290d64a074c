"""The file of second moments, and what a set of them gives a method."""

import json
import logging
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.checkpoints import TensorInfo
from harness.checkpoints.layout import TensorSource
from harness.curvature import (
    CurvatureSource,
    SecondMoments,
    SecondMomentsMetadata,
    compress,
    find_second_moments,
    write_second_moments,
)
from harness.curvature.compression import TILE_ENTRIES, Factors
from harness.curvature.stored import Form
from harness.errors import GraftbenchError
from harness.files import file_digest
from tests.checkpoints.small import write_moments

MATRIX = torch.tensor([[1.0, 2.0], [3.0, 10.0]])


def rebuilt(matrix: Tensor) -> Tensor:
    """A matrix from its row and column sums."""
    parts = compress("p", matrix)
    out = torch.empty(matrix.numel())
    Factors.of_sums(parts["p.row"], parts["p.col"]).fill(out, 0)
    return out.view(matrix.shape)


def in_pieces(moments: SecondMoments | CurvatureSource, name: str, entries: int, size: int, **how: Any) -> Tensor:
    """A parameter fetched `size` entries at a time; of all experts, if it is a set of them."""
    scratch = torch.empty(8 * size, dtype=torch.uint8)
    pieces = []
    for start in range(0, entries, size):
        stop = min(start + size, entries)
        if isinstance(moments, SecondMoments):
            pieces.append(moments.fetch(name, start, stop, scratch, **how).to(torch.float32, copy=True))
        else:
            pieces.append(torch.empty(2, stop - start))
            moments.fetch_into(pieces[-1], name, start, stop, scratch)
    return torch.cat(pieces, dim=-1)


def write_shards(folder: Path, shards: Mapping[str, Mapping[str, Tensor]], *fields: Mapping[str, str]) -> Path:
    """Shards with an index as Hugging Face writes it; each shard with its metadata, the last given for the rest."""
    folder.mkdir()
    for number, (name, tensors) in enumerate(shards.items()):
        metadata = fields[min(number, len(fields) - 1)] if fields else {"format": "pt"}
        save_file(dict(tensors), folder / name, metadata=dict(metadata))
    index = folder / "exp_avg_sq.safetensors.index.json"
    weight_map = {key: name for name, tensors in shards.items() for key in tensors}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


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
        assert moments.read("p", "sums").tolist() == [[0.75, 2.25], [3.25, 9.75]]
        assert moments.read("norm", "sums").tolist() == [1.0]


def test_sums_of_zero_reconstruct_zero() -> None:
    assert torch.equal(rebuilt(torch.zeros(2, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize("value", [1e-12, 1e-20, 1e-30, 1e30])
def test_sums_of_tiny_and_huge_values_neither_underflow_nor_overflow(value: float) -> None:
    # Products of two sums of 1e-30 would be 0 in fp32, of 1e30 infinite; (row/Σ)·col is not.
    matrix = torch.full((3, 2), value)
    assert torch.allclose(rebuilt(matrix), matrix, rtol=1e-6, atol=0)


def test_sums_are_rounded_once() -> None:
    # 2²⁴ + 1 is no fp32 number: adding ones to 2²⁴ one by one in fp32 would lose them all.
    matrix = torch.tensor([[2.0**24, 1.0, 1.0, 1.0, 1.0]])
    assert compress("p", matrix)["p.row"].tolist() == [2.0**24 + 4]


def test_sums_over_many_tiles_are_those_of_exact_arithmetic() -> None:
    torch.manual_seed(0)
    for rows, columns in ((3, TILE_ENTRIES + 5), (1000, 70), (TILE_ENTRIES, 2)):
        matrix = torch.rand(rows, columns) ** 4
        parts = compress("p", matrix)
        torch.testing.assert_close(parts["p.row"], matrix.double().sum(1).float(), rtol=1.2e-7, atol=0)
        exact = [math.fsum(column) for column in matrix.t()[:5].tolist()]
        torch.testing.assert_close(parts["p.col"][:5], torch.tensor(exact), rtol=1.2e-7, atol=0)


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


SHAPES = st.one_of(
    st.tuples(st.integers(0, 40)),
    st.tuples(st.integers(0, 12), st.integers(0, 12)),
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)),
)
STORED_DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])


@settings(max_examples=60, deadline=None)
@given(SHAPES, STORED_DTYPES, st.booleans(), st.booleans(), st.integers(0, 9), st.data())
def test_any_pieces_have_the_bits_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    as_sums: bool,
    on_disk_as_sums: bool,
    seed: int,
    data: DataObject,
) -> None:
    value = (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) ** 8 * 1e-3).to(dtype)
    file = tmp_path_factory.mktemp("pieces") / "v"
    save_file(compress("p", value) if on_disk_as_sums else {"p": value}, file)
    size = data.draw(st.integers(1, max(1, value.numel())), label="size of pieces")
    with SecondMoments(file) as moments:
        form: Form | None = "sums" if as_sums else None
        whole = moments.read("p", form)
        assert whole.shape == shape
        assert value.numel() == 0 or torch.equal(
            in_pieces(moments, "p", value.numel(), size, form=form), whole.flatten()
        )
        if len(shape) != 2 or not (as_sums or on_disk_as_sums):
            assert torch.equal(whole, value.float())
        else:
            assert torch.equal(whole, rebuilt(value))


@pytest.mark.parametrize("shape", [(900, 300), (2, 70_000)])
def test_a_matrix_of_many_tiles_is_rebuilt_alike_from_a_file_from_memory_and_in_threads(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    torch.manual_seed(1)
    value = torch.rand(shape) ** 6
    write_moments(tmp_path / "full", {"p": value})
    write_second_moments(tmp_path / "sums", {"p": value}, SecondMomentsMetadata(beta2=0.5, step=9), compressed=True)
    with SecondMoments(tmp_path / "sums") as moments:
        assert torch.equal(moments.read("p"), rebuilt(value))
    with SecondMoments(tmp_path / "full") as moments, ThreadPoolExecutor(4) as pool:
        starts = range(0, value.numel(), 7001)
        pieces = pool.map(
            lambda start: moments.fetch(
                "p",
                start,
                min(start + 7001, value.numel()),
                torch.empty(8 * 7001, dtype=torch.uint8),
                form="sums",
            ),
            starts,
        )
        assert torch.equal(torch.cat(list(pieces)), rebuilt(value).flatten())


def test_the_number_of_threads_does_not_change_sums() -> None:
    torch.manual_seed(2)
    matrix, threads = torch.rand(700, 513) ** 6, torch.get_num_threads()
    found = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.append(compress("p", matrix))
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert torch.equal(other["p.row"], found[0]["p.row"]) and torch.equal(other["p.col"], found[0]["p.col"])


def test_shards_are_read_as_one_file_from_an_index_or_a_folder(tmp_path: Path) -> None:
    parts = compress("p", MATRIX)
    shards = {"a": {"p.row": parts["p.row"], "n": torch.ones(1)}, "b": {"p.col": parts["p.col"], "q": MATRIX}}
    index = write_shards(tmp_path / "v", shards)
    for path in (index, tmp_path / "v"):
        with SecondMoments(path) as moments:
            assert moments.shapes == {"p": (2, 2), "n": (1,), "q": (2, 2)}
            assert moments.read("p").tolist() == [[0.75, 2.25], [3.25, 9.75]]
            assert torch.equal(moments.read("q"), MATRIX)
            assert moments.files == (index, tmp_path / "v" / "a", tmp_path / "v" / "b")


def test_shards_that_contradict_one_another_are_refused(tmp_path: Path) -> None:
    fields = {"format": "graftbench.second_moments", "version": "1", "kind": "adam", "beta2": "0.5"}
    shards = {"a": {"p": MATRIX}, "b": {"q": MATRIX}}
    write_shards(tmp_path / "agree", shards, fields | {"step": "3"})
    assert SecondMoments(tmp_path / "agree").metadata == SecondMomentsMetadata(beta2=0.5, step=3)
    write_shards(tmp_path / "differ", shards, fields | {"step": "3"}, fields | {"step": "4"})
    with pytest.raises(GraftbenchError, match="b: its metadata differ from those of a"):
        SecondMoments(tmp_path / "differ")
    index = write_shards(tmp_path / "lacking", shards)
    index.write_text(json.dumps({"weight_map": {"p": "a", "q": "a"}}))
    with pytest.raises(
        GraftbenchError, match=r"a: 'q' is missing, though exp_avg_sq\.safetensors\.index.json lists it"
    ):
        SecondMoments(index)
    index.write_text(json.dumps({"weight_map": {"p": "c"}}))
    with pytest.raises(GraftbenchError, match="c does not exist"):
        SecondMoments(index)
    index.write_text("{}")
    with pytest.raises(GraftbenchError, match="is not a valid index"):
        SecondMoments(index)


def test_a_folder_with_two_candidates_is_asked_about(tmp_path: Path) -> None:
    folder = tmp_path / "expert"
    with pytest.raises(GraftbenchError, match="do not exist"):
        SecondMoments(folder)
    folder.mkdir()
    with pytest.raises(GraftbenchError, match=r"the folder holds no exp_avg_sq\.safetensors or fisher\.safetensors"):
        SecondMoments(folder)
    adam = write_moments(folder / "exp_avg_sq.safetensors", {"p": [1.0]})
    write_second_moments(folder / "fisher.safetensors", {"p": torch.ones(1)}, SecondMomentsMetadata(kind="fisher"))
    assert find_second_moments(folder, "adam") == adam
    assert SecondMoments(folder, "fisher").metadata.kind == "fisher"
    with pytest.raises(GraftbenchError, match="two kinds"):
        SecondMoments(folder)
    (folder / "exp_avg_sq.safetensors.index.json").write_text("{}")
    with pytest.raises(GraftbenchError, match=r"holds both exp_avg_sq\.safetensors and"):
        find_second_moments(folder, "adam")


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"p.row": torch.ones(2)}, "row sums of 'p' but no column sums"),
        ({"p.col": torch.ones(2)}, "column sums of 'p' but no row sums"),
        ({"p": MATRIX, "p.row": torch.ones(2), "p.col": torch.ones(2)}, "'p' both whole and as sums"),
        ({"p.row": torch.ones(2, 1), "p.col": torch.ones(2)}, "sums of a matrix have one dimension each"),
    ],
)
def test_sums_that_do_not_fit_together_are_refused(tmp_path: Path, stored: dict[str, Tensor], message: str) -> None:
    save_file(stored, tmp_path / "v")
    with pytest.raises(GraftbenchError, match=message):
        SecondMoments(tmp_path / "v")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("form", [None, "sums", "rank", "blocks"])
def test_bad_values_are_found_in_every_data_type(
    tmp_path: Path, dtype: torch.dtype, bad: float, form: Form | None
) -> None:
    value = torch.rand(60, 40).to(dtype)
    value[59, 39] = bad
    save_file({"p": value}, tmp_path / "v")
    with (
        SecondMoments(tmp_path / "v") as moments,
        pytest.raises(GraftbenchError, match="v: second moments of 'p' hold"),
    ):
        moments.read("p", form)


def test_values_and_sums_beyond_fp32_are_refused(tmp_path: Path) -> None:
    save_file({"p": torch.full((2,), 1e300, dtype=torch.float64), "q": torch.full((2, 2), 3e38)}, tmp_path / "v")
    with SecondMoments(tmp_path / "v") as moments:
        with pytest.raises(GraftbenchError, match="'p' hold values from 1e"):
            moments.read("p")
        assert moments.read("q").max() < torch.inf
        with pytest.raises(GraftbenchError, match="'q' hold values from inf"):
            moments.read("q", "sums")


def test_a_file_cut_short_after_it_was_opened_is_named(tmp_path: Path) -> None:
    file = write_moments(tmp_path / "v", {"p": torch.ones(100)})
    with SecondMoments(file) as moments:
        file.write_bytes(file.read_bytes()[:-4])
        assert moments.fetch("p", 0, 99, torch.empty(800, dtype=torch.uint8)).tolist() == [1.0] * 99
        with pytest.raises(GraftbenchError, match="v: tensor 'p' ends 4 bytes too early"):
            moments.read("p")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float8_e4m3fn])
def test_integers_and_fp8_are_refused_by_name_where_they_are_wanted(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"p": MATRIX, "step": torch.ones(1).to(dtype)}, tmp_path / "v")
    CurvatureSource("adam", {"x": tmp_path / "v"}, {"p": (2, 2)})
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(GraftbenchError, match=f"'step' are stored as {name}; only fp64, fp32, fp16 and bf16"):
        CurvatureSource("adam", {"x": tmp_path / "v"}, {"p": (2, 2), "step": (1,)})
    with SecondMoments(tmp_path / "v") as moments, pytest.raises(GraftbenchError, match=f"are stored as {name}"):
        moments.fetch("step", 0, 1, torch.empty(8, dtype=torch.uint8))


def test_all_problems_of_all_experts_are_told_at_once(tmp_path: Path) -> None:
    x = write_moments(tmp_path / "x", {"p": [1.0, 2.0], "extra": [1.0]})
    write_second_moments(tmp_path / "y", {"p": torch.ones(3)}, SecondMomentsMetadata(kind="fisher"))
    files = {"x": x, "y": tmp_path / "y", "z": tmp_path / "z"}
    shapes = {"p": (3,), "q": (1,), "r": (1,), "s": (1,), "t": (1,)}
    problems: list[str] = ["an earlier one"]
    CurvatureSource("adam", files, shapes, problems=problems)
    assert [text.partition(": ")[2] or text for text in problems] == [
        "an earlier one",
        "second moments of expert 'x' lack 'q', 'r', 's' and 1 more; export them for every parameter",
        "second moments of 'p' have shape [2], the parameter [3]; they are another model's, or its vocabulary changed",
        f"{tmp_path / 'y'} holds curvature of kind 'fisher', but the method asks for 'adam'",
        "second moments of expert 'y' lack 'q', 'r', 's' and 1 more; export them for every parameter",
        f"second moments {tmp_path / 'z'} do not exist; export them from the expert's optimizer state",
    ]
    with pytest.raises(GraftbenchError, match=r"lack 'q'(.|\n)*do not exist"):
        CurvatureSource("adam", files, shapes)


@pytest.mark.parametrize("kind", ["adam", "compressed"])
@pytest.mark.parametrize("size", [1, 3, 7, 15])
def test_a_set_is_read_in_pieces_with_each_expert_corrected(tmp_path: Path, kind: Any, size: int) -> None:
    torch.manual_seed(3)
    values = {"x": torch.rand(3, 5), "y": torch.rand(3, 5)}
    files = {
        "x": write_moments(tmp_path / "x", {"p": values["x"]}, beta2=0.5, step=1),
        "y": write_moments(tmp_path / "y", {"p": values["y"]}),
    }
    with CurvatureSource(kind, files, {"p": (3, 5)}) as source:
        raw = torch.stack([rebuilt(value) if kind == "compressed" else value for value in values.values()])
        # 1/(1 − 0.5) = 2 for x, and 1 after the 1000 steps of y.
        assert torch.equal(source.read("p"), raw * torch.tensor([2.0, 1.0])[:, None, None])
        source.announce("p", 0, 15)
        assert torch.equal(in_pieces(source, "p", 15, size), source.read("p").flatten(1))
        assert torch.equal(source.only(["y", "x"]).read("p"), source.read("p").flip(0))
        assert torch.equal(source.only(["x"]).read("p"), source.read("p")[:1])


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def test_the_tied_embedding_is_found_under_the_heads_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    one = write_moments(tmp_path / "one", {HEAD: MATRIX})
    both = write_moments(tmp_path / "both", {EMBEDDING: MATRIX, HEAD: MATRIX * 2})
    for kind in ("adam", "compressed"):
        with CurvatureSource(kind, {"x": one, "y": both}, {EMBEDDING: (2, 2)}) as source:
            value = rebuilt(MATRIX) if kind == "compressed" else MATRIX
            assert torch.equal(source.read(EMBEDDING), torch.stack([value, value]))
    assert f"'{EMBEDDING}' of expert 'x' are stored under its tied name '{HEAD}'" in caplog.text
    assert "expert 'y'" not in caplog.text
    # A model whose only copy is called the head's, and one that has two different matrices.
    embedding = write_moments(tmp_path / "embedding", {EMBEDDING: MATRIX})
    assert torch.equal(CurvatureSource("adam", {"x": embedding}, {HEAD: (2, 2)}).read(HEAD)[0], MATRIX)
    with pytest.raises(GraftbenchError, match=f"lack '{EMBEDDING}'"):
        CurvatureSource("adam", {"x": one}, {EMBEDDING: (2, 2), HEAD: (2, 2)})


class Reversed:
    """A source's rows from last to first, to stand where another order of the vocabulary would."""

    def __init__(self, inner: TensorSource) -> None:
        self._inner = inner
        self.source, self.close, self.announce = inner.source, inner.close, inner.announce

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._inner.tensors

    def fetch(self, name: str, start: int, stop: int, scratch: Tensor) -> Tensor:
        entries, shape = self.tensors[name].entries, self.tensors[name].shape
        whole = self._inner.fetch(name, 0, entries, torch.empty(entries * 8, dtype=torch.uint8)).view(shape)
        return whole.flip(0).flatten()[start:stop]


def test_a_wrapper_stands_between_the_file_and_the_checks(tmp_path: Path) -> None:
    files = {name: write_moments(tmp_path / name, {"p": MATRIX}) for name in ("x", "y")}
    wrap = lambda expert, inner: Reversed(inner) if expert == "y" else inner  # noqa: E731
    with CurvatureSource("adam", files, {"p": (2, 2)}, wrap=wrap) as source:
        assert source.read("p").tolist() == [[[1, 2], [3, 10]], [[3, 10], [1, 2]]]
        assert in_pieces(source, "p", 4, 3).tolist() == [[1, 2, 3, 10], [3, 10, 1, 2]]


def test_digests_are_of_the_file_or_of_an_index_and_its_shards(tmp_path: Path) -> None:
    single = write_moments(tmp_path / "single", {"p": MATRIX})
    write_shards(tmp_path / "v", {"a": {"p": MATRIX}})
    source = CurvatureSource("adam", {"x": single, "y": tmp_path / "v"}, {"p": (2, 2)})
    assert source.digests()["x"] == file_digest(single)
    assert source.only(["y"]).digests() == {"y": source.digests()["y"]}
    assert source.describe() == {"bias_corrected": False, "files": source.digests()}
    write_shards(tmp_path / "w", {"a": {"p": MATRIX * 2}})
    other = CurvatureSource("adam", {"x": single, "y": tmp_path / "w"}, {"p": (2, 2)})
    assert other.digests()["x"] == source.digests()["x"]
    assert other.digests()["y"] != source.digests()["y"]
