"""Cutoffs that are kept: a sweep over densities pays for its passes once, and never uses what is stale."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.merging import CutoffStore, Execution, plan_merge
from harness.merging.cutoff_store import ExpertCutoff
from harness.merging.cutoffs import find_cutoffs
from methods import Method, Parameter, Selection
from methods.interface import CurvatureKind, PerExpert
from methods.selection import keep_by_cutoff
from tests.checkpoints.small import write_checkpoint, write_moments
from tests.merging.models import SHAPES, merge, merged, random_tensors, same_bytes

SCORED: list[str] = []
"""The parameters that have been scored, once for every pass and expert set."""


@dataclass(frozen=True, kw_only=True)
class Counting(Method):
    """The mean of the edits with the highest |Δ|ᵖ·v; it counts how often it is asked for scores."""

    density: PerExpert = 0.5
    power: float = 1.0
    scale: float = 1.0
    curved: bool = False

    def selection(self) -> Selection:
        return Selection(density=self.density)

    def curvature_kind(self) -> CurvatureKind | None:
        return "adam" if self.curved else None

    def score_depends_on(self) -> tuple[str, ...]:
        return ("power", "curved")

    def score(self, parameter: Parameter) -> Tensor:
        SCORED.append(parameter.name)
        scores = parameter.task_vectors.abs().pow(self.power)
        return scores * parameter.require_curvatures() if self.curved else scores

    def merge(self, parameter: Parameter) -> Tensor:
        kept = keep_by_cutoff(self.score(parameter), parameter)
        return parameter.base + self.scale * (kept * parameter.task_vectors).mean(dim=0)


class Sweep:
    """Merges of one base and two experts, with one store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = {
            name: write_checkpoint(folder / name, random_tensors(seed, coarse=True))
            for seed, name in enumerate(("base", "x", "y"))
        }
        self.store = CutoffStore(folder / "store")
        self.files: dict[str, Path] = {}

    def find(self, method: Method, **options: Any) -> tuple[dict[str, ExpertCutoff], int]:
        """The cutoffs, and how many passes over the experts they took."""
        SCORED.clear()
        experts = {name: self.models[name] for name in ("x", "y")}
        execution = Execution(threads=1)
        with plan_merge("m", method, self.models["base"], experts, self.files, execution=execution, **options) as plan:
            cutoffs = find_cutoffs(plan, self.store)
        assert cutoffs is not None
        passes = len(SCORED) / len(SHAPES)
        assert passes == int(passes)
        return cutoffs, int(passes)

    def passes(self, method: Method, **options: Any) -> int:
        return self.find(method, **options)[1]

    def without_store(self, method: Method) -> dict[str, Tensor]:
        return merged(method, self.models, self.files)

    def with_store(self, method: Method) -> dict[str, Tensor]:
        return merged(method, self.models, self.files, store=self.store)

    def write(self, name: str, seed: int) -> None:
        """Put other weights into a model's folder."""
        (self.folder / name / "model.safetensors").unlink()
        (self.folder / name / "config.json").unlink()
        (self.folder / name).rmdir()
        write_checkpoint(self.folder / name, random_tensors(seed, coarse=True))


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


def test_a_sweep_pays_once(sweep: Sweep) -> None:
    assert sweep.passes(Counting(density=0.3)) == 2
    assert [sweep.passes(Counting(density=i / 100)) for i in (37, 1, 50, 99, 30)] == [0, 0, 0, 0, 0]
    assert sweep.passes(Counting(density=0.375)) == 1
    assert [sweep.passes(Counting(density=d)) for d in (0.375, 0.37, 0.3)] == [0, 0, 0]
    assert sweep.passes(Counting(density=0.0)) == sweep.passes(Counting(density=1.0)) == 0


def test_the_first_density_may_be_any(sweep: Sweep) -> None:
    assert sweep.passes(Counting(density=0.12345)) == 2
    assert sweep.passes(Counting(density=0.12)) == 0
    assert sweep.passes(Counting(density=0.12345)) == 0


def test_what_is_kept_is_what_would_be_found(sweep: Sweep) -> None:
    for density in (0.3, 0.07, 0.5, 0.375, 0.99):
        assert same_bytes(sweep.with_store(Counting(density=density)), sweep.without_store(Counting(density=density)))
    method = Counting(density={"x": 0.2, "y": 0.61803})
    assert same_bytes(sweep.with_store(method), sweep.without_store(method))
    assert same_bytes(sweep.with_store(method), sweep.without_store(method))


def test_whole_merges_from_kept_cutoffs_are_the_same_bytes(sweep: Sweep, tmp_path: Path) -> None:
    for number, store in enumerate((None, sweep.store, sweep.store)):
        merge(tmp_path / f"out{number}", Counting(density=0.31), sweep.models, store=store)
    written = [(tmp_path / f"out{number}" / "model.safetensors").read_bytes() for number in range(3)]
    assert written[0] == written[1] == written[2]


def test_an_expert_that_is_known_is_not_read_again_for_another(sweep: Sweep) -> None:
    """x is known at 0.3: only y is looked for, in one pass for a density beside the hundredths."""
    sweep.passes(Counting(density=0.3))
    cutoffs, passes = sweep.find(Counting(density={"x": 0.3, "y": 0.333}))
    assert passes == 1
    assert cutoffs["x"] == sweep.find(Counting(density=0.3))[0]["x"]


def test_options_that_leave_the_score_alone_use_what_is_kept(sweep: Sweep) -> None:
    sweep.passes(Counting(density=0.3))
    assert sweep.passes(Counting(density=0.3, scale=0.5, weights={"x": 2.0})) == 0
    assert sweep.passes(Counting(density=0.3), dtype="bfloat16") == 0


def test_another_score_is_found_anew(sweep: Sweep) -> None:
    sweep.passes(Counting(density=0.3))
    assert sweep.passes(Counting(density=0.3, power=2.0)) == 2
    assert sweep.passes(Counting(density=0.3)) == 0


@pytest.mark.parametrize("name", ["base", "x"])
def test_another_model_is_found_anew(sweep: Sweep, name: str) -> None:
    sweep.passes(Counting(density=0.3))
    sweep.write(name, 77)
    assert sweep.passes(Counting(density=0.3)) == 2
    assert same_bytes(sweep.with_store(Counting(density=0.3)), sweep.without_store(Counting(density=0.3)))


def test_other_second_moments_are_found_anew(sweep: Sweep) -> None:
    moments = {name: random_tensors(seed) for seed, name in enumerate(("x", "y"), 20)}
    for name, values in moments.items():
        sweep.files[name] = sweep.folder / f"{name}.v"
        write_moments(sweep.files[name], {key: value.square() for key, value in values.items()})
    method = Counting(density=0.3, curved=True)
    assert sweep.passes(method) == 2
    assert sweep.passes(method) == 0
    write_moments(sweep.files["y"], {key: value.abs() for key, value in moments["y"].items()})
    assert sweep.passes(method) == 2
    assert same_bytes(sweep.with_store(method), sweep.without_store(method))


def test_an_expert_of_another_name_is_the_same_expert(sweep: Sweep) -> None:
    sweep.passes(Counting(density=0.3))
    sweep.models |= {"x": sweep.models["y"], "y": sweep.models["x"]}
    assert sweep.passes(Counting(density=0.3)) == 0
    assert same_bytes(sweep.with_store(Counting(density=0.3)), sweep.without_store(Counting(density=0.3)))


def damages() -> dict[str, Any]:
    def cut(share: float) -> Any:
        return lambda file: os.truncate(file, int(file.stat().st_size * share))

    def flipped(share: float) -> Any:
        def damage(file: Path) -> None:
            content = bytearray(file.read_bytes())
            content[int(len(content) * share)] ^= 255
            file.write_bytes(content)

        return damage

    found: dict[str, Any] = {f"cut at {share}": cut(share) for share in (0.0, 0.01, 0.5, 0.999)}
    found |= {f"flipped at {share}": flipped(share) for share in (0.0, 0.1, 0.5, 0.9, 0.99)}
    return found | {
        "text": lambda file: file.write_text("no archive"),
        "zeros": lambda file: file.write_bytes(b"\0" * 4096),
        "an empty archive": lambda file: file.write_bytes(b"PK\x05\x06" + b"\0" * 18),
    }


@pytest.mark.parametrize("damage", damages())
def test_a_damaged_file_is_found_anew(sweep: Sweep, damage: str) -> None:
    wanted, _ = sweep.find(Counting(density=0.3))
    for file in sorted((sweep.folder / "store").iterdir()):
        damages()[damage](file)
    found, passes = sweep.find(Counting(density=0.3))
    assert found == wanted
    if not damage.startswith("flipped"):  # some bytes of an archive mean nothing
        assert passes == 2
    assert sweep.passes(Counting(density=0.3)) == 0


def test_the_store_is_one_file_for_each_expert(sweep: Sweep) -> None:
    sweep.passes(Counting(density=0.3))
    sweep.passes(Counting(density=0.123))
    files = list((sweep.folder / "store").iterdir())
    assert len(files) == 2 and all(file.suffix == ".npz" for file in files)


def test_a_scarce_budget_resolves_only_what_is_asked_for(sweep: Sweep) -> None:
    """40,000 scores that share their upper bits take 0.32 MB, which is more than there is."""
    big = write_checkpoint(sweep.folder / "big", {"p": 1 + 1e-5 * torch.rand(40_000)})
    base = write_checkpoint(sweep.folder / "zero", {"p": torch.zeros(40_000)})
    execution = Execution(threads=1, memory_bytes=3 * 10**5, piece_entries=2048, tile_entries=2048)
    passes = []
    for density in (0.3, 0.31, 0.31):
        SCORED.clear()
        with plan_merge("m", Counting(density=density), base, {"x": big}, {}, execution=execution) as plan:
            find_cutoffs(plan, sweep.store)
        passes.append(len(SCORED) / 20)
    assert passes == [2, 1, 0]
