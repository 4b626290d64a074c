"""Second moments in a merge: in shards, in bf16, as sums, under the file names that exporters give them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.curvature import SecondMomentsMetadata, write_second_moments
from harness.merging import Execution, plan_merge
from methods.ffg import Ffg
from methods.fisher import Fisher
from methods.ota import Ota
from methods.ota_ffg import OtaFfg
from tests.merging.models import NAMES, SHAPES, Models, merge, merged, same_bytes

METADATA = {"format": "graftbench.second_moments", "version": "1", "kind": "adam", "beta2": "0.5", "step": "1000"}
EXPERTS = NAMES[1:]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def in_shards(folder: Path, values: dict[str, Tensor], count: int = 3) -> Path:
    """Shards with an index; returns the folder."""
    folder.mkdir()
    shard_of = {name: f"exp_avg_sq-{i % count + 1:05d}-of-{count:05d}.safetensors" for i, name in enumerate(values)}
    for shard in set(shard_of.values()):
        inside = {name: tensor for name, tensor in values.items() if shard_of[name] == shard}
        save_file(inside, folder / shard, metadata=METADATA)
    (folder / "exp_avg_sq.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))
    return folder


@pytest.mark.parametrize("method", [Ota(), OtaFfg(density=0.3), Ffg(expert="math"), Ota(curvature="compressed")])
def test_shards_give_what_one_file_gives(tmp_path: Path, models: Models, method: Ota | OtaFfg | Ffg) -> None:
    sharded = {name: in_shards(tmp_path / name, models.moments[name]) for name in EXPERTS}
    execution = Execution(threads=2, piece_entries=64)
    found = merged(method, models.single, sharded, execution)
    assert same_bytes(found, merged(method, models.single, models.curvature))


def test_bf16_moments_are_the_numbers_that_they_are(tmp_path: Path, models: Models) -> None:
    rough = {name: {k: v.to(torch.bfloat16) for k, v in models.moments[name].items()} for name in EXPERTS}
    halves = {name: tmp_path / f"{name}.bf16.safetensors" for name in EXPERTS}
    wide = {name: tmp_path / f"{name}.fp32.safetensors" for name in EXPERTS}
    for name in EXPERTS:
        save_file(rough[name], halves[name], metadata=METADATA)
        save_file({key: value.float() for key, value in rough[name].items()}, wide[name], metadata=METADATA)
    for method in (Ota(), OtaFfg(density=0.3), Ota(curvature="compressed")):
        execution = Execution(threads=1, piece_entries=128, tile_entries=64)
        found = merged(method, models.single, halves, execution)
        assert same_bytes(found, merged(method, models.single, wide))


def test_ota_against_its_formula(models: Models) -> None:
    """θ₀ + Σ√vΔ / Σ√v, in fp64."""
    found = merged(Ota(), models.single, models.curvature, Execution(threads=2, piece_entries=64, tile_entries=64))
    for name in SHAPES:
        base = models.tensors["base"][name].double()
        root = torch.stack([models.moments[e][name].double().sqrt() for e in EXPERTS])
        delta = torch.stack([models.tensors[e][name].double() - base for e in EXPERTS])
        expected = base + (root * delta).sum(0) / root.sum(0)
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_ota_ffg_against_its_formula(models: Models) -> None:
    """Edits with the highest v·Δ² of each expert's whole model, weighted by √v."""
    density, names = 0.2, sorted(SHAPES)
    found = merged(OtaFfg(density=density), models.single, models.curvature, Execution(threads=1, piece_entries=64))
    base = torch.cat([models.tensors["base"][n].flatten() for n in names])
    upper, lower = torch.zeros(len(base), dtype=torch.float64), torch.zeros(len(base), dtype=torch.float64)
    for expert in EXPERTS:
        delta = torch.cat([models.tensors[expert][n].flatten() for n in names]) - base
        v = torch.cat([models.moments[expert][n].flatten() for n in names])
        kept = (v * delta.square()).argsort(descending=True, stable=True)[: -int(-density * len(base) // 1)]
        mask = torch.zeros(len(base), dtype=torch.float64)
        mask[kept] = 1.0
        upper += mask * v.double().sqrt() * delta.double()
        lower += mask * v.double().sqrt()
    expected = base.double() + upper / torch.where(lower > 0, lower, 1.0)
    flat = torch.cat([found[name].flatten() for name in names])
    torch.testing.assert_close(flat.double(), expected, rtol=1e-5, atol=1e-6)


def test_sums_on_disk_and_sums_on_the_fly_give_the_same_file(tmp_path: Path, models: Models) -> None:
    sums = {name: tmp_path / f"{name}.sums" for name in EXPERTS}
    for name, path in sums.items():
        write_second_moments(path, models.moments[name], SecondMomentsMetadata(beta2=0.5, step=1000), compressed=True)
    written = []
    for number, (files, kind) in enumerate(
        ((models.curvature, "compressed"), (sums, "compressed"), (sums, "adam"), (models.curvature, "adam"))
    ):
        method = OtaFfg(curvature=kind, density=0.3)  # type: ignore[arg-type]
        execution = Execution(threads=1 + number % 2, piece_entries=64 * (1 + number))
        out = merge(tmp_path / f"out{number}", method, models.single, files, execution)
        written.append((out / "model.safetensors").read_bytes())
    assert written[0] == written[1] == written[2] != written[3]


DELTA_METHODS = [Ota(curvature="delta"), OtaFfg(density=0.3, curvature="delta"), Ffg(expert="math", curvature="delta")]


@pytest.mark.parametrize("method", [*DELTA_METHODS, Fisher(curvature="delta")])
def test_squared_task_vectors_are_what_a_file_of_them_would_give(tmp_path: Path, models: Models, method: Any) -> None:
    files = {}
    for name in EXPERTS:
        squares = {key: (models.tensors[name][key] - models.tensors["base"][key]).square() for key in SHAPES}
        files[name] = tmp_path / f"{name}.safetensors"
        write_second_moments(files[name], squares, SecondMomentsMetadata(kind="fisher"))
    execution = Execution(threads=2, piece_entries=64, tile_entries=64)
    found = merged(method, models.single, execution=execution)
    assert same_bytes(found, merged(replace(method, curvature="fisher"), models.single, files))


def test_raw_moments_weigh_experts_of_few_steps_less(tmp_path: Path, models: Models) -> None:
    """The same v after 1 and after 1000 steps: 1 - β₂ᵗ is 0.5 and 1, so that √v weighs √2 : 1 once it is corrected."""
    even, uneven = {}, {}
    for name in EXPERTS[:2]:
        for files, steps in ((even, 1000), (uneven, 1 if name == EXPERTS[0] else 1000)):
            files[name] = tmp_path / f"{name}.{steps}.safetensors"
            values = {key: torch.full_like(value, 1e-8) for key, value in models.moments[name].items()}
            write_second_moments(files[name], values, SecondMomentsMetadata(beta2=0.5, step=steps))
    two = {name: models.single[name] for name in ("base", *EXPERTS[:2])}
    raw, corrected = (merged(Ota(curvature=kind), two, uneven) for kind in ("raw", "adam"))
    assert same_bytes(merged(Ota(curvature="raw"), two, even), merged(Ota(curvature="adam"), two, even))
    for key in SHAPES:
        base, first, second = (models.tensors[name][key].double() for name in two)
        plain = base + (first - base + second - base) / 2
        weighted = base + (2**0.5 * (first - base) + second - base) / (2**0.5 + 1)
        torch.testing.assert_close(raw[key].double(), plain, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(corrected[key].double(), weighted, rtol=1e-5, atol=1e-6)


def test_each_curvature_has_a_recipe_of_its_own(models: Models) -> None:
    recipes = []
    for kind in ("adam", "raw", "compressed", "delta"):
        experts = {name: models.single[name] for name in EXPERTS}
        files = {} if kind == "delta" else models.curvature
        with plan_merge("m", Ota(curvature=kind), models.single["base"], experts, files) as plan:  # type: ignore[arg-type]
            recipes.append(json.dumps(plan.recipe(), sort_keys=True))
    assert len(set(recipes)) == 4
