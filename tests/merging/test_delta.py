"""Squared task vectors as curvature: the same as a file that holds them, and where no file could."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken

from harness.curvature import SecondMoments, write_squared_task_vectors
from harness.errors import GraftbenchError
from harness.merging import CutoffStore, Execution, plan_merge
from methods import Method
from methods.ffg import Ffg
from methods.fisher import Fisher
from methods.ota import Ota
from methods.ota_ffg import OtaFfg
from tests.checkpoints.small import write_checkpoint
from tests.checkpoints.vocabulary.models import save, tokenizer
from tests.merging.models import NAMES, SHAPES, Models, merge, merged, same_bytes

EXPERTS = NAMES[1:]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def files(models: Models, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("delta")
    found = {name: folder / f"{name}.safetensors" for name in EXPERTS}
    for name, path in found.items():
        assert write_squared_task_vectors(models.single["base"], models.single[name], path) == len(SHAPES)
    return found


def test_the_file_holds_the_squares(models: Models, files: dict[str, Path]) -> None:
    with SecondMoments(files["math"]) as moments:
        assert moments.metadata.kind == "delta" and moments.metadata.correction == 1.0
        for name in SHAPES:
            wanted = (models.tensors["math"][name].double() - models.tensors["base"][name].double()) ** 2
            torch.testing.assert_close(moments.read(name).double(), wanted, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (Ota, {}),
        (OtaFfg, {"density": 0.3, "pairing": "rotated"}),
        (OtaFfg, {"density": 0.3, "pairing": "shuffled"}),
        (Ffg, {"expert": "math"}),
        (Fisher, {}),
    ],
)
def test_on_the_fly_is_what_a_file_gives_to_the_bit(
    models: Models, files: dict[str, Path], method: type[Method], options: dict[str, Any]
) -> None:
    kind = "fisher" if method is Fisher else "adam"
    wanted = merged(method(curvature=kind, **options), models.single, files)
    for threads in (1, 2):
        execution = Execution(threads=threads, piece_entries=64 * threads)
        found = merged(method(curvature="delta", **options), models.single, {}, execution)
        assert same_bytes(found, wanted)


def test_kept_cutoffs_and_recipes_are_told_apart(models: Models, files: dict[str, Path], tmp_path: Path) -> None:
    store, experts = CutoffStore(tmp_path), {name: models.single[name] for name in EXPERTS}
    kinds: dict[str, dict[str, Any]] = {
        "delta": {},
        "adam": models.curvature,
        "raw": models.curvature,
        "blocks": models.curvature,
    }
    recipes, keys, fresh = set(), set(), {}
    for kind, given in kinds.items():
        method = OtaFfg(curvature=kind, density=0.3)  # type: ignore[arg-type]
        with plan_merge("m", method, models.single["base"], experts, given) as plan:
            recipes.add(json.dumps(plan.recipe(), sort_keys=True))
            keys.add(plan.score_keys()["math"])
        fresh[kind] = merged(method, models.single, given)
    assert len(recipes) == len(keys) == len(kinds)
    for kind, given in kinds.items():
        method = OtaFfg(curvature=kind, density=0.3)  # type: ignore[arg-type]
        for _ in range(2):
            assert same_bytes(merged(method, models.single, given, store=store), fresh[kind])


def test_an_adapter_has_squared_task_vectors(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    base = write_checkpoint(tmp_path / "base", {name: torch.zeros(6, 4)})
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    factors = {key.format("A"): torch.full((1, 4), 2.0), key.format("B"): torch.ones(6, 1)}
    save_file(factors, adapter / "adapter_model.safetensors")
    other = write_checkpoint(tmp_path / "other", {name: torch.full((6, 4), -1.0)})
    found = merged(Ota(curvature="delta", power=1.0), {"base": base, "x": f"{base}+{adapter}", "y": other})
    # Σ Δ²·Δ / Σ Δ² of 2 and −1: (8 − 1) / 5
    torch.testing.assert_close(found[name], torch.full((6, 4), 7 / 5))
    write_squared_task_vectors(base, f"{base}+{adapter}", tmp_path / "delta")
    with SecondMoments(tmp_path / "delta") as moments:
        assert torch.equal(moments.read(name), torch.full((6, 4), 4.0))


def test_rows_that_an_expert_lacks_have_no_curvature(tmp_path: Path) -> None:
    """With a union of vocabularies, a token that only y has keeps y's row: x, which lacks it, weighs nothing there."""
    base = save(tmp_path / "base", tokenizer(), seed=1)
    x = save(tmp_path / "x", tokenizer(), seed=2)
    y = save(tmp_path / "y", tokenizer([AddedToken("<call>")]), seed=3)
    given = {"base": base.folder, "x": x.folder, "y": y.folder}
    outs = [
        merge(
            tmp_path / f"out{threads}",
            Ota(curvature="delta"),
            given,
            vocabulary="union",
            execution=Execution(threads=threads, piece_entries=64),
        )
        for threads in (1, 2)
    ]
    first, second = (out / "model.safetensors" for out in outs)
    assert first.read_bytes() == second.read_bytes()
    with plan_merge("m", Ota(curvature="delta"), base.folder, {"x": x.folder, "y": y.folder}, {}, vocabulary="union"):
        pass
    from harness.checkpoints import Checkpoint
    from tests.checkpoints.vocabulary.models import ids

    found, row = Checkpoint(outs[0]), ids(y)["<call>"]
    name = "model.embed_tokens.weight"
    assert torch.equal(found.read(name)[-1], y.read(name)[row])
    old = ids(base)["c"]
    rows = [one.read(name)[ids(one)["c"]].double() for one in (base, x, y)]
    deltas = [rows[1] - rows[0], rows[2] - rows[0]]
    expected = rows[0] + sum(d.abs() * d for d in deltas) / sum(d.abs() for d in deltas)
    torch.testing.assert_close(found.read(name)[old].double(), expected, rtol=1e-5, atol=1e-6)


def test_models_of_other_parameters_are_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"p": torch.zeros(3), "q": torch.zeros(2)})
    wide = write_checkpoint(tmp_path / "wide", {"p": torch.zeros(4), "q": torch.zeros(2)})
    short = write_checkpoint(tmp_path / "short", {"p": torch.zeros(3)})
    with pytest.raises(GraftbenchError, match=r"'p' has shape \[4\] in .*wide, \[3\] in .*base"):
        write_squared_task_vectors(base, wide, tmp_path / "out")
    with pytest.raises(GraftbenchError, match=r"'q' is only in .*base"):
        write_squared_task_vectors(base, short, tmp_path / "out")
    assert not (tmp_path / "out").exists()
