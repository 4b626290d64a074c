"""Checkpoints that transformers' Trainer wrote."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM, Trainer, TrainerCallback, TrainingArguments

from harness.checkpoints import Checkpoint
from harness.curvature import SecondMoments, second_moments_of
from harness.curvature.export import export_second_moments
from harness.errors import GraftbenchError
from tests.checkpoints.llama import TOKENS
from tests.curvature.export.live import (
    assert_merges_like_live,
    constants,
    plant,
    read_constants,
    saved,
    tied_model,
    train,
)


class _Planter(TrainerCallback):
    """Plants constants before Trainer saves."""

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        plant(given["model"], given["optimizer"])


def checkpoint(folder: Path, model: nn.Module, planted: bool = True, **options: Any) -> tuple[Path, Trainer]:
    """The folder that Trainer leaves after three steps."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, TOKENS, (5,), generator=generator) for _ in range(6)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        save_steps=3,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        adam_beta2=0.95,
        learning_rate=1e-3,
        **options,
    )
    data = [{"input_ids": row, "labels": row} for row in rows]
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[_Planter()] if planted else [])
    trainer.train()
    return folder / "checkpoint-3", trainer


def test_every_parameter_has_its_own_moments(tmp_path: Path) -> None:
    model = tied_model(attention_bias=True)
    source, _ = checkpoint(tmp_path / "run", model, weight_decay=0.1)
    report = export_second_moments(source, tmp_path / "out")
    assert read_constants(report.path) == constants(model)
    assert report.path == tmp_path / "out" / "exp_avg_sq.safetensors"
    metadata = report.metadata
    assert (metadata.optimizer, metadata.step, metadata.beta2) == ("AdamW", 3, 0.95)
    assert metadata.learning_rate == pytest.approx(1e-3), "the schedule's, not the 0 that it ends with"


def test_norms_within_attention_are_in_the_group_without_decay(tmp_path: Path) -> None:
    settings = {"num_hidden_layers": 3, "hidden_size": 16, "intermediate_size": 16, "head_dim": 8}
    configuration = Qwen3Config(
        vocab_size=TOKENS, num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False, **settings
    )
    model = Qwen3ForCausalLM(configuration)
    source, _ = checkpoint(tmp_path / "run", model)
    assert read_constants(export_second_moments(source, tmp_path / "out").path) == constants(model)


def test_norms_that_older_trainers_let_decay_are_recognised_by_their_shapes(tmp_path: Path) -> None:
    """Only biases and nn.LayerNorm were outside of the first group."""
    model = tied_model(attention_bias=True)
    named = dict(model.named_parameters())
    groups = [[p for n, p in named.items() if ("bias" in n) == biases] for biases in (False, True)]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups], lr=1e-3)
    train(model, optimizer)
    plant(model, optimizer)
    torch.save(optimizer.state_dict(), saved(tmp_path / "checkpoint-3", model) / "optimizer.pt")
    assert read_constants(export_second_moments(tmp_path / "checkpoint-3", tmp_path / "out").path) == constants(model)


def test_ota_with_the_file_is_ota_with_the_live_optimizer(tmp_path: Path) -> None:
    model = tied_model()
    source, trainer = checkpoint(tmp_path / "run", model, planted=False)
    exported = export_second_moments(source, tmp_path / "v.safetensors").path
    assert_merges_like_live(tmp_path, exported, second_moments_of(trainer.optimizer, model))


def frozen(names: Callable[[str], bool]) -> LlamaForCausalLM:
    model = tied_model(num_hidden_layers=3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not names(name))
    return model


def test_frozen_parameters_are_left_out_where_shapes_tell_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = frozen(lambda name: "embed" in name)
    source, _ = checkpoint(tmp_path / "run", model)
    exported = export_second_moments(source, tmp_path / "out").path
    assert read_constants(exported) == constants(model)
    assert "left out as frozen: model.embed_tokens.weight" in caplog.text


def test_a_frozen_layer_among_equal_ones_must_be_named(tmp_path: Path) -> None:
    model = frozen(lambda name: "layers.1." in name)
    source, _ = checkpoint(tmp_path / "run", model)
    with pytest.raises(
        GraftbenchError,
        match=r"number \d+ may be 'model\.layers\.0\.\S+' or 'model\.layers\.1\.\S+', of equal shape; say which",
    ):
        export_second_moments(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    exported = export_second_moments(source, tmp_path / "out", frozen=["model.layers.1.*"]).path
    assert read_constants(exported) == constants(model)
    with pytest.raises(GraftbenchError, match=r"frozen=layers\.1 matches no parameter"):
        export_second_moments(source, tmp_path / "other", frozen=["layers.1"])


def test_a_checkpoint_of_another_model_is_refused_with_what_is_near(tmp_path: Path) -> None:
    source, _ = checkpoint(tmp_path / "run", tied_model())
    tied_model(intermediate_size=32).save_pretrained(tmp_path / "wider")
    with pytest.raises(
        GraftbenchError,
        match=r"number \d+ of shape \[24, 16\] is none of them in order; nearest: 'model\.layers\.0\.mlp\.gate_proj"
        r"\.weight' \[32, 16\]",
    ):
        export_second_moments(source, tmp_path / "out", tmp_path / "wider")


def test_an_optimizer_alone_needs_its_model(tmp_path: Path) -> None:
    source, _ = checkpoint(tmp_path / "run", tied_model())
    (tmp_path / "alone").mkdir()
    shutil.copy(source / "optimizer.pt", tmp_path / "alone")
    with pytest.raises(GraftbenchError, match="no model lies beside"):
        export_second_moments(tmp_path / "alone", tmp_path / "out")
    report = export_second_moments(tmp_path / "alone" / "optimizer.pt", tmp_path / "out", source, base=source)
    with SecondMoments(report.path) as moments, Checkpoint(source) as base:
        assert moments.metadata.base_digest == base.weights_digest
