"""A miniature build of the embedded zoo: whole, resumable, and the same bytes from the same seed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from harness.checkpoints.layout import Checkpoint
from harness.errors import GraftbenchError
from harness.files import file_digest
from harness.zoo.models import resolve_zoo
from harness.zoo.tiny import build as building
from harness.zoo.tiny.items import CAPABILITIES
from harness.zoo.tiny.settings import settings_from_mapping
from harness.zoo.tiny.train import Schedule, mean_loss_per_example

MINIATURE: dict[str, Any] = {
    "seed": 5,
    "architecture": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "layers": 1,
        "heads": 2,
        "key_value_heads": 1,
        "max_length": 96,
    },
    "items": {name: {"train": 200, "validation": 20, "test": 20} for name in CAPABILITIES},
    "batch_size": 8,
    "base": {
        "steps": 3,
        "learning_rate": 1e-3,
        "mixture": {name: {"share": 1.0, "advanced": 0.2} for name in CAPABILITIES},
    },
    "replay": 0.2,
    "experts": {
        name: {"steps": steps, "learning_rate": 1e-3, "advanced": 0.6}
        for name, steps in zip(CAPABILITIES, (2, 3, 4, 5), strict=True)
    },
    "multitask": {"steps": 2, "learning_rate": 1e-3},
    "fisher_examples": 4,
}
SETTINGS = settings_from_mapping(MINIATURE)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> building.Folders:
    return building.build(SETTINGS, tmp_path_factory.mktemp("home"))


def digests(folders: building.Folders) -> dict[str, str]:
    files = sorted(path for path in folders.root.rglob("*") if path.is_file())
    return {str(path.relative_to(folders.root)): file_digest(path) for path in files}


def test_every_model_is_an_ordinary_checkpoint_with_tied_embeddings(built: building.Folders) -> None:
    for folder in (built.base, *(built.expert(name) for name in CAPABILITIES), built.multitask):
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert model.dtype == torch.float32
        assert "lm_head.weight" not in load_file(folder / "model.safetensors")


def test_curvature_covers_every_parameter_and_says_where_it_comes_from(built: building.Folders) -> None:
    weights = load_file(built.base / "model.safetensors")
    for name in CAPABILITIES:
        for kind in ("exp_avg_sq", "fisher"):
            moments = load_file(built.expert(name) / f"{kind}.safetensors")
            assert {key: value.shape for key, value in moments.items()} == {k: v.shape for k, v in weights.items()}
            assert all((value >= 0).all() for value in moments.values())
            assert sum(float(value.sum()) for value in moments.values()) > 0
        with safe_open(built.expert(name) / "exp_avg_sq.safetensors", framework="pt") as file:
            metadata = file.metadata()
        assert metadata["step"] == str(SETTINGS.experts[name].steps)
        assert (metadata["optimizer"], metadata["beta2"], metadata["kind"]) == ("AdamW", "0.999", "adam")
        assert metadata["base_digest"] == Checkpoint(built.base).weights_digest


def test_experts_differ_from_the_base_and_from_each_other(built: building.Folders) -> None:
    models = {file_digest(path) for path in built.root.rglob("model.safetensors")}
    assert len(models) == 6


def test_another_training_seed_trains_other_models_on_the_same_items(built: building.Folders, tmp_path: Path) -> None:
    other = building.build(settings_from_mapping({**MINIATURE, "training_seed": 1}), tmp_path)
    assert other.root.name != built.root.name
    ours, theirs = digests(other), digests(built)
    items = [name for name in ours if name.startswith("data/")]
    assert items and all(ours[name] == theirs[name] for name in items)
    models = [name for name in ours if name.endswith("model.safetensors")]
    assert len(models) == 6 and all(ours[name] != theirs[name] for name in models)


def test_items_lie_in_the_layout_of_a_data_mirror(built: building.Folders) -> None:
    for name in CAPABILITIES:
        for split in ("train", "validation", "test"):
            lines = (built.data / "graftbench" / "tiny" / name / f"{split}.jsonl").read_text().splitlines()
            assert all(json.loads(line)["prompt"] for line in lines)


def test_an_interrupted_build_goes_on_with_what_is_missing_and_ends_in_the_same_bytes(
    built: building.Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    train = building.Builder._train

    def interrupted(self: building.Builder, name: str, *rest: Any) -> Any:
        trained.append(name)
        optimizer = train(self, name, *rest)
        if trained == ["base", "math", "code"]:
            raise KeyboardInterrupt
        return optimizer

    monkeypatch.setattr(building.Builder, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        building.build(SETTINGS, tmp_path)
    folders = building.folders_for(SETTINGS, tmp_path)
    assert folders.expert("math").is_dir()
    assert not folders.expert("code").exists(), "a half-made stage must not bear its final name"

    trained.clear()
    building.build(SETTINGS, tmp_path)
    assert trained == ["code", "instructions", "knowledge", "multitask"]
    assert digests(folders) == digests(built)

    trained.clear()
    building.build(SETTINGS, tmp_path)
    assert trained == []


def test_settings_name_the_folder(tmp_path: Path) -> None:
    other = copy.deepcopy(MINIATURE)
    other["experts"]["math"]["steps"] += 1
    here, there = (building.folders_for(s, tmp_path).root for s in (SETTINGS, settings_from_mapping(other)))
    assert here != there
    assert here.parent == there.parent == tmp_path / "zoo"


def test_the_zoo_names_everything_that_was_built(built: building.Folders) -> None:
    home = built.root.parent.parent
    zoo = resolve_zoo({"name": "tiny", "builder": "tiny", "build": MINIATURE}, home)
    assert tuple(zoo.experts) == CAPABILITIES
    assert list(zoo.references) == ["multitask"]
    assert zoo.data_root == built.data
    for group in (zoo.experts, zoo.references, zoo.second_moments, zoo.fisher):
        assert all(Path(str(path)).exists() for path in group.values())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("replay", 0.3, "experts may replay from 0 to 0.2"),
        ("seed", "x", "zoo.build.seed is 'x', not a whole number"),
        ("experts", {}, "must name each of: math"),
        ("base", {"steps": 3, "learning_rate": 0.1}, "zoo.build.base.mixture is missing"),
    ],
)
def test_wrong_settings_are_refused_with_their_name(path: str, value: Any, message: str) -> None:
    with pytest.raises(GraftbenchError, match=message):
        settings_from_mapping({**MINIATURE, path: value})


def test_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    schedule = Schedule(steps=100, learning_rate=1.0, warmup_share=0.1, final_share=0.1)
    assert schedule.learning_rate_at(0) == pytest.approx(0.1)
    assert schedule.learning_rate_at(9) == pytest.approx(1.0)
    assert schedule.learning_rate_at(10) == pytest.approx(1.0)
    assert schedule.learning_rate_at(55) == pytest.approx(0.55), "half way down: the mean of 1 and 0.1"


def test_a_long_answer_weighs_no_more_than_a_short_one() -> None:
    logits = torch.zeros(2, 4, 8)  # every token has probability 1/8
    labels = torch.tensor([[-100, 1, 2, 3], [-100, -100, -100, 5]])
    assert mean_loss_per_example(logits, labels).tolist() == pytest.approx([2.0794415, 2.0794415])
