"""Second moments in a merge: in shards, in bf16, as sums, under the file names that exporters give them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.curvature import SecondMomentsMetadata, write_second_moments
from harness.merging import Execution
from methods.ffg import Ffg
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
