"""`vocabulary=union` beside mergekit 0.1.5's `tokenizer_source: union`: the same rows by token, and where not."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from harness.merging import merge_to_folder, plan_merge
from harness.merging.mergekit_recipe import read_mergekit_recipe
from tests.checkpoints.vocabulary.models import save, tokenizer
from tests.methods.asking_mergekit import ModelMerge, interpreter, merge_models

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PADDED = 280
"""Embedding rows of a and c, more than tokens."""

TASK_ARITHMETIC = """
merge_method: task_arithmetic
base_model: {a}
models:
  - {{model: {b}, parameters: {{weight: 0.7}}}}
  - {{model: {c}, parameters: {{weight: 0.4}}}}
tokenizer_source: union
dtype: float32
"""

LINEAR = """
merge_method: linear
models:
  - {{model: {a}, parameters: {{weight: 0.5}}}}
  - {{model: {b}, parameters: {{weight: 0.2}}}}
  - {{model: {c}, parameters: {{weight: 0.3}}}}
tokenizer_source: union
dtype: float32
"""


def renumbered() -> dict[str, int]:
    """The core vocabulary in another order, bytes and merged tokens alike; special tokens keep their numbers."""
    ids = tokenizer().get_vocab()
    others = sorted(token for token, number in ids.items() if number >= 2)
    return {token: number for token, number in ids.items() if number < 2} | {
        token: 2 + position for position, token in enumerate(others)
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tokens of a, of a and b, of b, of b and c, of c, which numbers its core tokens otherwise."""
    folder = tmp_path_factory.mktemp("models")
    save(folder / "a", tokenizer(["<a>", "<ab>"]), rows=PADDED, seed=1)
    save(folder / "b", tokenizer(["<b>", "<ab>", "<bc>"]), seed=2)
    save(folder / "c", tokenizer(["<bc>", "<c>"], numbers=renumbered()), rows=PADDED, seed=3)
    return {name: str(folder / name) for name in "abc"}


def rows(folder: Path) -> dict[tuple[str, str], Tensor]:
    """The rows of embedding and head, by tensor and token."""
    tensors = load_file(folder / "model.safetensors")
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    return {(name, token): tensors[name][number] for name in (EMBEDDING, HEAD) for token, number in ids.items()}


def both(recipe: str, models: dict[str, str], folder: Path) -> tuple[dict[tuple[str, str], Tensor], ...]:
    """Rows of our merge and of mergekit's."""
    interpreter()
    file = folder / "recipe.yaml"
    file.write_text(recipe.format(**models))
    merge_models([ModelMerge(file.read_text(), str(folder / "theirs"))], folder)
    read = read_mergekit_recipe(file)
    with plan_merge("m", read.method, read.base, read.experts, {}, vocabulary=read.vocabulary or "strict") as plan:
        merge_to_folder(plan, folder / "ours")
    return rows(folder / "ours"), rows(folder / "theirs")


def differing(ours: dict[tuple[str, str], Tensor], theirs: dict[tuple[str, str], Tensor]) -> set[str]:
    """The tokens whose rows differ by more than rounding."""
    assert ours.keys() == theirs.keys()
    return {token for name, token in ours if not torch.allclose(ours[name, token], theirs[name, token], atol=1e-7)}


def test_task_vectors_meet_in_the_same_rows(models: dict[str, str], tmp_path: Path) -> None:
    """The base's tokens, those of one expert, and those of both: rows that a model lacks edit nothing."""
    ours, theirs = both(TASK_ARITHMETIC, models, tmp_path)
    assert {"<a>", "<ab>", "<b>", "<bc>", "<c>"} <= {token for _, token in ours}
    assert differing(ours, theirs) == set()


def test_only_ours_keeps_the_padding_of_the_base(models: dict[str, str], tmp_path: Path) -> None:
    """270 tokens that all have, and five that some have; mergekit makes as many rows as there are tokens."""
    both(TASK_ARITHMETIC, models, tmp_path)
    lengths = [len(load_file(tmp_path / name / "model.safetensors")[EMBEDDING]) for name in ("ours", "theirs")]
    assert lengths == [PADDED, 275]


def test_averages_differ_where_some_models_lack_a_token_of_the_first(models: dict[str, str], tmp_path: Path) -> None:
    """<ab> is in a and b. For c, mergekit takes the mean of both, since an average names no base; ours the first's."""
    ours, theirs = both(LINEAR, models, tmp_path)
    assert differing(ours, theirs) == {"<ab>"}
    a, b = rows(Path(models["a"])), rows(Path(models["b"]))
    for key in ((EMBEDDING, "<ab>"), (HEAD, "<ab>")):
        torch.testing.assert_close(ours[key], 0.5 * a[key] + 0.2 * b[key] + 0.3 * a[key])
        torch.testing.assert_close(theirs[key], 0.5 * a[key] + 0.2 * b[key] + 0.3 * (a[key] + b[key]) / 2)
