"""A small model that a test trains, and what exports of its optimizer must give."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import LlamaForCausalLM

from harness.curvature import SecondMoments, SecondMomentsMetadata, write_second_moments
from methods.ota import Ota
from tests.checkpoints.llama import TOKENS, llama
from tests.merging.models import merged, same_bytes


def tied_model(**changed: Any) -> LlamaForCausalLM:
    """Two equal blocks with a tied head: of its matrices four and two of each block have equal shapes."""
    return llama(tie_word_embeddings=True, **changed)


def train(model: nn.Module, optimizer: Optimizer, steps: int = 3) -> None:
    """Some steps on random tokens."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        tokens = torch.randint(0, TOKENS, (2, 6), generator=generator)
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()


def constants(model: nn.Module) -> dict[str, float]:
    """A number of its own for each trained parameter, which fp32 and products with it hold exactly."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {name: (1 + place) / 1024 for place, name in enumerate(trained)}


def plant(model: nn.Module, optimizer: Optimizer) -> dict[str, float]:
    """Put each parameter's constant into its second moments."""
    planted = constants(model)
    for name, parameter in model.named_parameters():
        if name in planted:
            optimizer.state[parameter]["exp_avg_sq"].fill_(planted[name])
    return planted


def read_constants(path: Path) -> dict[str, float]:
    """The one value that each parameter of a file has."""
    found = {}
    with SecondMoments(path) as moments:
        for name in moments.tensors:
            values = moments.read(name).unique()
            assert len(values) == 1, f"{name} has {len(values)} values"
            found[name] = float(values)
    return found


def saved(folder: Path, model: Any) -> Path:
    """A checkpoint of the model."""
    model.save_pretrained(folder)
    return folder


def assert_merges_like_live(tmp_path: Path, exported: Path, live: Mapping[str, Tensor], **changed: Any) -> None:
    """OTA with the exported file is OTA with the optimizer's own state, to the bit.

    The other expert was trained for 2,000 steps, so that the bias correction of the one counts.
    """
    base, experts = saved(tmp_path / "ota.base", tied_model(seed=7, **changed)), {}
    for seed, name in enumerate(("one", "other")):
        experts[name] = saved(tmp_path / f"ota.{name}", tied_model(seed=8 + seed, **changed))
    models = {"base": base, **experts}
    generator = torch.Generator().manual_seed(3)
    random = {name: torch.rand(value.shape, generator=generator) / 512 for name, value in live.items()}
    write_second_moments(tmp_path / "other.v", random, SecondMomentsMetadata("adam", "AdamW", 0.999, 2000))
    with SecondMoments(exported) as moments:
        write_second_moments(tmp_path / "live.v", live, moments.metadata)
    found = merged(Ota(), models, {"one": exported, "other": tmp_path / "other.v"})
    assert same_bytes(found, merged(Ota(), models, {"one": tmp_path / "live.v", "other": tmp_path / "other.v"}))
    plain = merged(Ota(), models, {"one": tmp_path / "other.v", "other": tmp_path / "other.v"})
    assert not same_bytes(found, plain), "the exported moments change nothing, so equality would prove nothing"


def adamw(model: nn.Module, **options: Any) -> torch.optim.AdamW:
    """AdamW over all parameters, in the model's order."""
    return torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), **options)
