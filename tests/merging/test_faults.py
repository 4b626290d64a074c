"""Files and disks that fail: a clear word about what and where, and nothing under the final name."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from harness.errors import GraftbenchError
from harness.merging import Execution, merge_to_folder, plan_merge
from methods import Method, Parameter
from methods.linear import Linear
from methods.ota_ffg import OtaFfg
from methods.task_arithmetic import TaskArithmetic
from methods.ties import Ties
from tests.checkpoints.small import write_checkpoint, write_moments, write_shards
from tests.merging.models import merge

TENSORS = [f"t{i}" for i in range(6)]


def values(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3000, generator=generator) for name in TENSORS}


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    return {name: write_checkpoint(tmp_path / name, values(seed)) for seed, name in enumerate(("base", "x", "y"))}


@dataclass(frozen=True, kw_only=True)
class Meddling(Method):
    """The sum of the edits; at one parameter it does something to a file."""

    at: str = "t2"
    file: str = ""
    size: int | None = None
    """Cut the file to so many bytes; None removes a worker instead."""

    def merge(self, parameter: Parameter) -> Tensor:
        if parameter.name == self.at and self.size is not None:
            os.truncate(self.file, self.size)
        elif parameter.name == self.at:
            os.kill(os.getpid(), 9)
        return parameter.base + parameter.task_vectors.sum(dim=0)


def assert_refused(out: Path, message: str, method: Method, models: dict[str, Path], **options: Any) -> None:
    """The merge fails with a message, and leaves nothing behind."""
    before = set(out.parent.iterdir())
    with pytest.raises(GraftbenchError, match=message):
        merge(out, method, models, **options)
    assert set(out.parent.iterdir()) == before


@pytest.mark.parametrize("missing", [1, 4, 5000, 60_000])
def test_a_file_that_is_shorter_than_its_header_says(tmp_path: Path, models: dict[str, Path], missing: int) -> None:
    file = models["x"] / "model.safetensors"
    os.truncate(file, file.stat().st_size - missing)
    assert_refused(tmp_path / "out", r"x/model\.safetensors is not a whole safetensors file", Linear(), models)


@pytest.mark.parametrize("size", [0, 1000, 30_000, 71_000])
def test_a_file_that_is_cut_short_while_it_is_merged(tmp_path: Path, models: dict[str, Path], size: int) -> None:
    """What the merge has read by then does not matter; the rest is missed by name."""
    file = models["y"] / "model.safetensors"
    method = Meddling(file=str(file), size=size)
    execution = Execution(threads=1, piece_entries=640, tile_entries=64)
    message = r"y/model\.safetensors: tensor 't[2-5]' ends .* bytes too early: the file was cut short"
    assert_refused(tmp_path / "out", message, method, models, execution=execution)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("method", [Linear(), Ties()])
def test_a_file_that_vanished_after_the_plan(
    tmp_path: Path, models: dict[str, Path], method: Method, threads: int
) -> None:
    experts = {name: models[name] for name in ("x", "y")}
    execution = Execution(threads=threads)
    with plan_merge("m", method, models["base"], experts, {}, execution=execution) as plan:
        (models["x"] / "model.safetensors").unlink()
        before = set(tmp_path.iterdir())
        with pytest.raises(GraftbenchError, match=r"x/model\.safetensors cannot be opened \(No such file"):
            merge_to_folder(plan, tmp_path / "out")
        assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", ["base", "x"])
def test_nan_and_inf_are_named(tmp_path: Path, models: dict[str, Path], which: str, bad: float, threads: int) -> None:
    stored = load_file(models[which] / "model.safetensors")
    stored["t3"][2999] = bad
    (models[which] / "model.safetensors").unlink()
    (models[which] / "config.json").unlink()
    models[which].rmdir()
    write_checkpoint(models[which], stored)
    execution = Execution(threads=threads, piece_entries=640)
    message = rf"{which}/model\.safetensors: tensor 't3' has NaN or Inf"
    for method in (TaskArithmetic(), Ties(), Ties(scope="tensor")):
        assert_refused(tmp_path / "out", message, method, models, execution=execution)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_bad_curvature_is_named(tmp_path: Path, models: dict[str, Path], bad: float) -> None:
    moments = {name: tensor.square() for name, tensor in values(7).items()}
    files = {"y": write_moments(tmp_path / "good", moments)}
    moments["t4"][1234] = bad
    files["x"] = write_moments(tmp_path / "bad.safetensors", moments)
    message = r"bad\.safetensors: second moments of 't4' hold .*; export them again"
    assert_refused(tmp_path / "out", message, OtaFfg(), models, files=files)
    assert_refused(tmp_path / "out", message, OtaFfg(), models, files=files, execution=Execution(threads=2))


def test_large_numbers_whose_sum_overflows_are_no_infinity(tmp_path: Path) -> None:
    """2·10³⁸ twice is finite, each of them, and so is their mean."""
    large = {"p": torch.full((5,), 2e38)}
    models = {name: write_checkpoint(tmp_path / name, large) for name in ("base", "x", "y")}
    out = merge(tmp_path / "out", Linear(), models)
    assert torch.equal(load_file(out / "model.safetensors")["p"], large["p"])


def test_a_result_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    models = {name: write_checkpoint(tmp_path / name, {"p": [1e5]}) for name in ("base", "x")}
    message = r"merged tensor 'p' does not fit into torch\.float16; choose dtype=float32 or dtype=bfloat16"
    assert_refused(tmp_path / "out", message, Linear(), models, dtype="float16")


def test_a_worker_that_was_killed_is_told(tmp_path: Path, models: dict[str, Path]) -> None:
    message = "a worker process was killed while it merged, most likely for want of memory; give fewer threads"
    assert_refused(tmp_path / "out", message, Meddling(), models, execution=Execution(threads=2))


def test_an_error_in_a_worker_keeps_its_message(tmp_path: Path, models: dict[str, Path]) -> None:
    file = models["x"] / "model.safetensors"
    execution = Execution(threads=2, piece_entries=64)
    assert_refused(tmp_path / "out", "'t[0-5]' ends", Meddling(file=str(file), size=500), models, execution=execution)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path, models: dict[str, Path]) -> None:
    parent = tmp_path / "readonly"
    parent.mkdir(mode=0o555)
    with pytest.raises(GraftbenchError, match=f"{parent / 'out'} cannot be made"):
        merge(parent / "out", Linear(), models)


def test_a_file_where_the_parent_folder_should_be(tmp_path: Path, models: dict[str, Path]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GraftbenchError, match="is no folder that you may write to"):
        merge(tmp_path / "file" / "out", Linear(), models)
    assert (tmp_path / "file").read_text() == ""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 kB; a merge of six tensors takes 72 kB in fp32."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_without_room_is_refused_before_the_work(small_disk: Path, models: dict[str, Path]) -> None:
    (small_disk / "other").write_bytes(b"1" * 50_000)
    # Nothing of the experts is read: a file that is gone would be told otherwise.
    experts = {name: models[name] for name in ("x", "y")}
    with plan_merge("m", Linear(), models["base"], experts, {}) as plan:
        (models["x"] / "model.safetensors").unlink()
        with pytest.raises(
            GraftbenchError, match=r"out needs [\d.]+ kB, but .*disk has [\d.]+ kB left; free some space"
        ):
            merge_to_folder(plan, small_disk / "out")
    assert [file.name for file in small_disk.iterdir()] == ["other"]


@dataclass(frozen=True, kw_only=True)
class Filling(Method):
    """The sum of the edits; it fills the disk while it merges."""

    file: str

    def merge(self, parameter: Parameter) -> Tensor:
        with Path(self.file).open("ab") as file:
            try:
                file.write(b"1" * 200_000)
                file.flush()
            except OSError:
                file.truncate()
        return parameter.base + parameter.task_vectors.sum(dim=0)


def test_weights_have_their_place_even_if_the_disk_fills_up_meanwhile(
    small_disk: Path, models: dict[str, Path]
) -> None:
    """The files are reserved before the work: only what is written beside them can fail, and it says so."""
    method = Filling(file=str(small_disk / "other"))
    with pytest.raises(GraftbenchError, match=r"out could not be written \(.*No space left on device.*free some space"):
        merge(small_disk / "out", method, models)
    assert [file.name for file in small_disk.iterdir()] == ["other"]


def test_what_fits_is_merged_onto_a_small_disk(small_disk: Path, models: dict[str, Path]) -> None:
    out = merge(small_disk / "out", Linear(), models, dtype="bfloat16")
    assert sorted(load_file(out / "model.safetensors")) == TENSORS
    assert [file.name for file in small_disk.iterdir()] == ["out"]


def test_shards_of_an_expert_that_are_missing_are_named(tmp_path: Path) -> None:
    models = {"base": write_checkpoint(tmp_path / "base", values(0)), "x": write_shards(tmp_path / "x", values(1), 3)}
    (models["x"] / "model-00002-of-00003.safetensors").unlink()
    assert_refused(tmp_path / "out", r"x/model-00002-of-00003\.safetensors does not exist", Linear(), models)


def test_tensors_without_entries_and_scalars_are_merged(tmp_path: Path) -> None:
    models = {
        name: write_checkpoint(tmp_path / name, {"none": torch.empty(0, 3), "one": torch.tensor(float(i))})
        for i, name in enumerate(("base", "x", "y"))
    }
    for number, method in enumerate((Linear(), TaskArithmetic(), Ties(), Ties(scope="tensor"))):
        found = load_file(merge(tmp_path / f"out{number}", method, models) / "model.safetensors")
        assert found["none"].shape == (0, 3) and found["one"].shape == ()


@dataclass(frozen=True, kw_only=True)
class Occupying(Method):
    """The base; meanwhile somebody puts something where the merge shall be."""

    out: str = ""

    def merge(self, parameter: Parameter) -> Tensor:
        Path(self.out).mkdir(exist_ok=True)
        (Path(self.out) / "mine").touch()
        return parameter.base.clone()


def test_a_finished_merge_is_kept_when_its_name_was_taken_meanwhile(tmp_path: Path, models: dict[str, Path]) -> None:
    with pytest.raises(GraftbenchError, match="the merge is finished, but it could not be named"):
        merge(tmp_path / "out", Occupying(out=str(tmp_path / "out")), models, execution=Execution(threads=1))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]
    kept = load_file(tmp_path / ".out.unfinished" / "model.safetensors")
    assert all(torch.equal(tensor, values(0)[name]) for name, tensor in kept.items())


def test_a_link_that_leads_nowhere_is_refused_before_the_work(tmp_path: Path, models: dict[str, Path]) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    assert_refused(tmp_path / "out", "exists already", Linear(), models)
