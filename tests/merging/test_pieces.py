"""The merged bits depend on the inputs alone: not on pieces, tiles, workers, shards, or the order of experts."""

import math
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.checkpoints import TensorInfo
from harness.merging import Execution
from harness.merging.pieces import Piece, cut, subdivide
from methods import Method
from methods.dare import Dare
from methods.fisher import Fisher
from methods.generalized_task_arithmetic import GeneralizedTaskArithmetic
from methods.linear import Linear
from methods.ota import Ota
from methods.ota_ffg import OtaFfg
from methods.task_arithmetic import TaskArithmetic
from methods.ties import Ties
from methods.umtam import Umtam
from tests.checkpoints.small import write_checkpoint
from tests.merging.models import Models, merge, merged, same_bytes

METHODS: dict[str, Method] = {
    "linear": Linear(weights={"code": 0.3}),
    "task arithmetic": TaskArithmetic(weights={"math": 1.7}),
    "ties, whole model": Ties(density={"code": 0.2, "math": 0.5, "sums": 1.0}),
    "ties, each tensor": Ties(density=0.3, scope="tensor"),
    "dare": Dare(drop_rate=0.4),
    "dare with election": Dare(drop_rate=0.4, elect=True, seed=3),
    "fisher": Fisher(curvature="adam"),
    "ota": Ota(),
    "ota, a power that is computed by series": Ota(power=0.3),
    "ota, sums": Ota(curvature="compressed"),
    "ota_ffg": OtaFfg(density=0.25),
    "ota_ffg, another power": OtaFfg(density={"code": 0.1, "math": 0.33, "sums": 0.7}, power=0.3),
    "ota_ffg, rotated": OtaFfg(density=0.25, pairing="rotated"),
    "ota_ffg, shuffled": OtaFfg(density=0.25, pairing="shuffled"),
    "umtam": Umtam(density=0.4, weights={"math": 1.7}),
    "mergekit's ties": GeneralizedTaskArithmetic(
        select="magnitude",
        elect=True,
        normalize=True,
        density=[0.2, 0.6],
        weight={"code": 1.0, "math": -0.3, "sums": 0.7},
    ),
    "mergekit's dare": GeneralizedTaskArithmetic(select="random", rescale=True, density=0.4),
}

sizes = st.one_of(st.sampled_from([1, 64, 65, 128, 192, 320, 576, 1024]), st.integers(1, 3000))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("coarse"), coarse=True)


@cache
def in_one_piece(name: str, models: Models) -> dict[str, Tensor]:
    return merged(METHODS[name], models.single, models.curvature)


@pytest.mark.parametrize("name", METHODS)
@given(piece=sizes, tile=sizes, sharded=st.booleans(), names=st.permutations(("code", "math", "sums")))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pieces_shards_and_order_change_no_bit(
    name: str, models: Models, coarse: Models, piece: int, tile: int, sharded: bool, names: list[str]
) -> None:
    for each in (models, coarse):
        folders = each.sharded if sharded else each.single
        sources = {expert: folders[expert] for expert in names} | {"base": each.single["base"]}
        execution = Execution(threads=1, piece_entries=piece, tile_entries=tile)
        found = merged(METHODS[name], sources, each.curvature, execution)
        assert same_bytes(found, in_one_piece(name, each))


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_workers_change_no_bit(name: str, threads: int, coarse: Models) -> None:
    execution = Execution(threads=threads, piece_entries=192, tile_entries=128)
    assert same_bytes(merged(METHODS[name], coarse.single, coarse.curvature, execution), in_one_piece(name, coarse))


def test_a_base_in_shards_gives_the_same_tensors_in_its_own_order(models: Models) -> None:
    found = merged(METHODS["ota_ffg"], models.sharded, models.curvature, Execution(threads=2, piece_entries=64))
    assert same_bytes(found, in_one_piece("ota_ffg", models))
    assert list(found) != list(in_one_piece("ota_ffg", models))


def test_the_file_that_is_written_does_not_depend_on_execution(tmp_path: Path, models: Models) -> None:
    files = []
    for number, execution in enumerate(
        (Execution(threads=1), Execution(threads=2, piece_entries=64, tile_entries=64), Execution(memory_bytes=10**6))
    ):
        out = merge(tmp_path / f"out{number}", METHODS["ota_ffg"], models.single, models.curvature, execution)
        files.append((out / "model.safetensors").read_bytes())
    assert files[0] == files[1] == files[2]


def kept_by_sorting(scores: dict[str, Tensor], density: float) -> set[tuple[str, int]]:
    """The first ⌈density·n⌉ by score, then name, then flat index; zeros are never among them."""
    entries = [(-float(s), name, i) for name, t in scores.items() for i, s in enumerate(t.flatten().tolist())]
    count = math.ceil(Fraction(repr(density)) * len(entries))
    return {(name, i) for score, name, i in sorted(entries)[:count] if score != 0}


def nonzero(tensors: dict[str, Tensor]) -> set[tuple[str, int]]:
    return {(name, i) for name, t in tensors.items() for i in t.flatten().nonzero().flatten().tolist()}


@given(
    levels=st.integers(1, 6),
    seed=st.integers(0, 1000),
    density=st.one_of(st.sampled_from([0.001, 0.07, 0.5, 0.999]), st.floats(0.001, 0.999)),
    piece=st.sampled_from([64, 128, 192]),
    tile=st.sampled_from([64, 128]),
)
@settings(max_examples=25, deadline=None)
def test_ties_at_the_threshold_are_dealt_out_across_pieces_and_tensors(
    tmp_path_factory: pytest.TempPathFactory, levels: int, seed: int, density: float, piece: int, tile: int
) -> None:
    """A few levels of |Δ| tie in their hundreds, over all of the pieces; what is kept shows where the base is zero."""
    folder = tmp_path_factory.mktemp("ties")
    generator = torch.Generator().manual_seed(seed)
    # The order in the file (by name) is not the order of definition, and b is large enough for four pieces.
    shapes = {"c": (31, 7), "a": (70,), "b": (401,)}
    deltas = {n: torch.randint(-levels, levels + 1, s, generator=generator).float() for n, s in shapes.items()}
    base = write_checkpoint(folder / "base", {name: torch.zeros(shape) for name, shape in shapes.items()})
    models = {"base": base, "x": write_checkpoint(folder / "x", deltas)}
    execution = Execution(threads=1, piece_entries=piece, tile_entries=tile)
    scores = {name: delta.abs() for name, delta in deltas.items()}
    found = nonzero(merged(Ties(density=density), models, execution=execution))
    assert found == kept_by_sorting(scores, density)
    found = nonzero(merged(Ties(density=density, scope="tensor"), models, execution=execution))
    assert found == {entry for name in scores for entry in kept_by_sorting({name: scores[name]}, density)}


@given(
    shape=st.lists(st.integers(0, 40), min_size=0, max_size=3).map(tuple),
    granularity=st.sampled_from(["element", "row", "matrix"]),
    entries=st.integers(1, 5000),
    tile=st.integers(1, 5000),
)
def test_pieces_cover_a_tensor_once_and_begin_where_vectors_do(
    shape: tuple[int, ...], granularity: str, entries: int, tile: int
) -> None:
    info = TensorInfo("p", shape, torch.float32, Path("file"))
    width = 1
    if granularity == "row" and len(shape) > 1:
        width = max(math.prod(shape[1:]), 1)
    elif granularity == "row":
        width = max(info.entries, 1)
    pieces = list(cut([info], granularity, entries))  # type: ignore[arg-type]
    for found in (pieces, [t for p in pieces for t in subdivide(p, granularity, tile)]):  # type: ignore[arg-type]
        assert [p.start for p in found] == [0, *(p.stop for p in found[:-1])]
        assert found[-1].stop == info.entries and found[-1].is_last
        assert all(p.start % 64 == 0 and p.start % width == 0 for p in found)
        assert all(math.prod(p.shape(granularity)) == p.entries for p in found)  # type: ignore[arg-type]
    assert granularity != "matrix" or pieces == [Piece(info, 0, info.entries)]
