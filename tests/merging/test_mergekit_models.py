"""Whole models by recipe, beside mergekit 0.1.5 on the same files: layers, filters, data types, tensor names."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from harness.merging import merge_to_folder, plan_merge
from harness.merging.mergekit_recipe import read_mergekit_recipe
from methods import Parameter, generalized_task_arithmetic
from tests.checkpoints.llama import llama
from tests.methods.asking_mergekit import ModelMerge, interpreter, merge_models

NAMES = ("a", "b", "base")

PARAMETERS = {
    "linear": """
models:
  - {model: A, parameters: {weight: [0.2, 0.9]}}
  - {model: B, parameters: {weight: [{filter: mlp, value: 0.6}, {filter: norm, value: [0.1, 0.5, 1]}, {value: 0.3}]}}
""",
    "task_arithmetic": """
models:
  - {model: A, parameters: {weight: 0.6}}
  - {model: B, parameters: {weight: [{filter: self_attn, value: [-0.4, 0.8]}]}}
parameters: {weight: [0.1, 0.2, 0.3], lambda: [{filter: lm_head, value: 0.5}, {filter: '*', value: [1, 0.7]}]}
""",
    "ties": """
models:
  - {model: A, parameters: {weight: 0.6, density: [0.2, 0.9]}}
  - {model: BASE}
  - model: B
    parameters:
      weight: [0.5, 0.1]
      density: [{filter: mlp.down_proj, value: 0.05}, {filter: embed, value: 1}]
parameters: {density: 0.4, lambda: 1.1}
""",
    "dare_ties": """
models:
  - {model: A, parameters: {weight: 0.6, density: [0.2, 1]}}
  - {model: B, parameters: {weight: -0.5, density: [{filter: mlp, value: 0.3}, {value: 0.8}]}}
parameters: {normalize: true}
""",
    "dare_linear": """
models:
  - {model: A, parameters: {weight: 0.6, density: 0.5}}
  - {model: B, parameters: {weight: 0.4, density: [0.1, 0.9, 0.1]}}
parameters: {rescale: false}
""",
}
"""Recipes without their first lines, for each method."""


@dataclass(frozen=True)
class Models:
    """A base and two experts in one data type."""

    folders: dict[str, Path]
    masks: dict[str, dict[str, Tensor]]
    """Random numbers of an expert, by tensor; a mask keeps those under the density."""


def save(folder: Path, dtype: torch.dtype) -> Models:
    """Small Llama models, the experts near the base."""
    base = llama(num_hidden_layers=4).state_dict()
    folders, masks = {}, {}
    for seed, name in enumerate(NAMES, start=1):
        model = llama(seed, num_hidden_layers=4)
        torch.nn.Module.to(model, dtype)
        edit = 0.0 if name == "base" else 0.01
        model.load_state_dict({key: value + edit * torch.randn_like(value) for key, value in base.items()})
        folders[name] = folder / name
        model.save_pretrained(folders[name])
        masks[name] = {key: (torch.rand_like(value) < 0.5).float() for key, value in base.items()}
    return Models(folders, masks)


def text_of(method: str, models: Models, dtype: str) -> str:
    base = "" if method == "linear" else f"base_model: {models.folders['base']}\n"
    text = PARAMETERS[method]
    for word, name in (("BASE", "base"), ("model: A", "a"), ("model: B", "b")):
        text = text.replace(word, f"{word[:-1] if 'model' in word else ''}{models.folders[name]}")
    return f"merge_method: {method}\n{base}dtype: {dtype}\n{text}"


def ours(text: str, folder: Path, models: Models, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The merge of a recipe by our own means, with the masks that mergekit is given too."""

    def mask(parameter: Parameter, densities: list[float], _: int) -> Tensor:
        rows = []
        for name, density in zip(parameter.expert_names, densities, strict=True):
            piece = models.masks[name][parameter.name].flatten()[parameter.offset :][: parameter.base.numel()]
            rows.append(piece.view_as(parameter.base) if density < 1 else torch.ones_like(parameter.base))
        return torch.stack(rows)

    monkeypatch.setattr(generalized_task_arithmetic, "random_mask", mask)
    file = folder.with_suffix(".yaml")
    file.write_text(text)
    recipe = read_mergekit_recipe(file)
    with plan_merge("mergekit", recipe.method, recipe.base, recipe.experts, {}, dtype=recipe.dtype) as plan:
        merge_to_folder(plan, folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recipes_give_mergekits_models(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32 all entries to two units in the last place of the largest number added.

    mergekit rounds every step to bf16, ours the result alone: three of its units (2⁻⁸). It also trims by rounded
    sizes, which tie, and elects by rounded sums, so that TIES and DARE keep other edits in a share of the entries.
    """
    interpreter()
    models = save(tmp_path, getattr(torch, dtype))
    texts = {method: text_of(method, models, dtype) for method in PARAMETERS}
    masks = {str(folder): models.masks[name] for name, folder in models.folders.items()}
    if dtype == "bfloat16":
        masks = {name: {key: mask.bfloat16() for key, mask in each.items()} for name, each in masks.items()}
    merge_models(
        [
            ModelMerge(text, str(tmp_path / f"theirs {method}"), masks if method.startswith("dare") else {})
            for method, text in texts.items()
        ],
        tmp_path,
    )
    inputs = [load_file(folder / "model.safetensors") for folder in models.folders.values()]
    for method, text in texts.items():
        found = ours(text, tmp_path / f"ours {method}", models, monkeypatch)
        expected = load_file(tmp_path / f"theirs {method}" / "model.safetensors")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            terms = torch.stack([tensor, *(each[name] for each in inputs)]).abs().amax(0)
            units = (torch.nextafter(terms, torch.full_like(terms, torch.inf)) - terms).float()
            difference = (found[name].float() - tensor.float()).abs()
            assert found[name].dtype == tensor.dtype == getattr(torch, dtype)
            beyond = (difference > units * (2 if dtype == "float32" else 3)).float().mean()
            allowed = 0.15 if dtype == "bfloat16" and method in ("ties", "dare_ties") else 0.0
            assert beyond <= allowed, f"{method}, {name}: {float((difference / units).max())} units"
