"""What does not fit together is told before the first weight is read, all in one message; what does fit has a rule."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.errors import GraftbenchError
from harness.merging import Execution, plan_merge
from methods import Method
from methods.dare import Dare
from methods.linear import Linear
from methods.ota import Ota
from methods.ota_ffg import OtaFfg
from methods.task_arithmetic import TaskArithmetic
from tests.checkpoints.small import write_checkpoint, write_moments
from tests.merging.models import merge, merged

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
TIED = {"tie_word_embeddings": True}


def tensors(seed: int, head: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {EMBEDDING: (4, 3), NORM: (3,)} | ({HEAD: (4, 3)} if head else {})
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def written(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model.safetensors")


def refusal(base: Path, experts: dict[str, Any], method: Method | None = None, **options: Any) -> str:
    files = options.pop("files", {})
    with pytest.raises(GraftbenchError) as caught, plan_merge("m", method or Linear(), base, experts, files, **options):
        pass
    return str(caught.value)


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", tensors(0))
    good = write_checkpoint(tmp_path / "good", tensors(1))
    other = write_checkpoint(tmp_path / "other", tensors(2), architecture="OtherModel")
    broken = write_checkpoint(tmp_path / "broken", tensors(3))
    (broken / "model.safetensors").write_bytes(b"12345678")
    experts = {"gone": tmp_path / "nowhere", "good": good, "other": other, "broken": broken}
    lines = refusal(base, experts, Ota(), files={}).splitlines()
    assert lines[0] == f"{len(lines) - 1} things are wrong:"
    for expected in (
        r"nowhere does not exist",
        r"broken/model\.safetensors is not a whole safetensors file",
        r"expert 'other' .* is a OtherModel, the base .* a TestModel",
        r"curvature 'adam' of expert 'good'.*zoo\.second_moments\.good=PATH",
        r"curvature 'adam' of expert 'other'",
    ):
        assert sum(bool(re.search(expected, line)) for line in lines) == 1, expected


def test_all_tensors_that_do_not_fit_are_told_at_once(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", tensors(0))
    short = write_checkpoint(tmp_path / "short", {EMBEDDING: torch.zeros(4, 3), HEAD: torch.zeros(4, 3)})
    wide = write_checkpoint(tmp_path / "wide", tensors(1) | {NORM: torch.zeros(5)})
    moments = write_moments(tmp_path / "v", {EMBEDDING: torch.ones(4, 3), NORM: torch.ones(3)})
    files = {"short": moments, "wide": moments}
    lines = refusal(base, {"short": short, "wide": wide}, Ota(), files=files).splitlines()
    for expected in (
        rf"expert 'short' .* lacks tensor '{NORM}', which the base has",
        rf"expert 'wide' .*: tensor '{NORM}' in model\.safetensors has shape \[5\], the base's \[3\]",
        rf"second moments of expert 'short' lack '{HEAD}'",
        rf"second moments of expert 'wide' lack '{HEAD}'",
    ):
        assert sum(bool(re.search(expected, line)) for line in lines) == 1, expected


def test_no_weight_is_read_before_everything_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_checkpoint(tmp_path / "base", tensors(0))
    expert = write_checkpoint(tmp_path / "x", tensors(1))
    from harness.checkpoints.ranges import FileRanges

    monkeypatch.setattr(FileRanges, "read", lambda *_: pytest.fail("weights were read"))
    with plan_merge("m", Linear(), base, {"x": expert}, {}):
        pass


def test_both_tied_means_no_head_of_its_own(tmp_path: Path) -> None:
    """Whether a file holds the tied head or not, it is the embedding."""
    base = write_checkpoint(tmp_path / "base", tensors(0, head=False), config=TIED)
    expert = write_checkpoint(tmp_path / "x", tensors(1), config=TIED)
    found = written(merge(tmp_path / "out", Linear(), {"base": base, "x": expert}))
    assert found.keys() == {EMBEDDING, NORM}


def test_a_tied_expert_of_an_untied_base_gives_its_embedding_as_head(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = write_checkpoint(tmp_path / "base", tensors(0))
    values = {"x": tensors(1, head=False), "y": tensors(2)}
    models = {
        "base": base,
        "x": write_checkpoint(tmp_path / "x", values["x"], config=TIED),
        "y": write_checkpoint(tmp_path / "y", values["y"]),
    }
    found = written(merge(tmp_path / "out", Linear(), models))
    torch.testing.assert_close(found[HEAD], (values["x"][EMBEDDING] + values["y"][HEAD]) / 2)
    torch.testing.assert_close(found[EMBEDDING], (values["x"][EMBEDDING] + values["y"][EMBEDDING]) / 2)
    assert "expert 'x' ties its head to its embedding, the base does not" in caplog.text


def test_an_untied_expert_of_a_tied_base_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", tensors(0, head=False), config=TIED)
    expert = write_checkpoint(tmp_path / "x", tensors(1), config={"tie_word_embeddings": False})
    assert "has a head of its own ('lm_head.weight'), the base ties its head" in refusal(base, {"x": expert})


def test_an_untied_expert_without_a_head_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", tensors(0))
    expert = write_checkpoint(tmp_path / "x", tensors(1, head=False))
    text = refusal(base, {"x": expert, "y": base})
    assert "expert 'x'" in text and f"lacks tensor '{HEAD}', which the base has; export it whole" in text


def test_what_only_an_expert_has_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = write_checkpoint(tmp_path / "base", tensors(0))
    extra = {f"extra.{i}": torch.ones(1) for i in range(5)}
    expert = write_checkpoint(tmp_path / "x", tensors(1) | extra)
    found = written(merge(tmp_path / "out", Linear(), {"base": base, "x": expert}))
    assert found.keys() == tensors(0).keys()
    (message,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "tensors 'extra.0', 'extra.1', 'extra.2' and 2 more, which the base lacks: left out" in message


def test_what_only_the_base_has_is_copied_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alone = {"model.rotary.inv_freq": torch.tensor([0.1, 0.2])}
    base = write_checkpoint(tmp_path / "base", tensors(0) | alone)
    models = {"base": base, "x": write_checkpoint(tmp_path / "x", tensors(1))}
    for dtype in (None, "bfloat16"):
        found = written(merge(tmp_path / f"out.{dtype}", TaskArithmetic(), models, dtype=dtype))
        expected = alone["model.rotary.inv_freq"].to(torch.bfloat16 if dtype else torch.float32)
        assert torch.equal(found["model.rotary.inv_freq"], expected)
    assert "has tensor 'model.rotary.inv_freq': copied" in caplog.text


def test_buffers_of_integers_are_the_bases(tmp_path: Path) -> None:
    """An int64 position table is no weight, even where experts have another."""
    models = {name: write_checkpoint(tmp_path / name, tensors(seed)) for seed, name in enumerate(("base", "x"))}
    for number, folder in enumerate(models.values()):
        stored = load_file(folder / "model.safetensors")
        save_file(stored | {"ids": torch.arange(5) + 100 * number}, folder / "model.safetensors")
    for dtype in (None, "float16"):
        found = written(merge(tmp_path / f"out.{dtype}", Linear(), models, dtype=dtype))
        assert found["ids"].tolist() == [0, 1, 2, 3, 4] and found["ids"].dtype == torch.int64


def integers(folder: Path, name: str) -> Path:
    """Round one tensor of a checkpoint to int64."""
    stored = load_file(folder / "model.safetensors")
    save_file(stored | {name: stored[name].to(torch.int64)}, folder / "model.safetensors")
    return folder


def test_weights_here_and_integers_there_are_told_by_their_data_types(tmp_path: Path) -> None:
    base, expert = (write_checkpoint(tmp_path / name, tensors(seed)) for seed, name in enumerate(("base", "x")))
    integers(expert, NORM)
    text = refusal(base, {"x": expert})
    assert f"tensor '{NORM}' in model.safetensors is int64, the base's float32; export both in a floating" in text
    assert "lacks" not in text
    text = refusal(expert, {"x": base})
    assert f"tensor '{NORM}' in model.safetensors is float32, the base's int64" in text
    with plan_merge("m", Linear(), expert, {"x": integers(base, NORM)}, {}) as plan:
        assert [info.name for info in plan.copied] == [NORM], "integers in all of them are a buffer"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_is_copied_from_the_base_is_checked_as_what_is_merged(tmp_path: Path, number: float) -> None:
    alone = {"model.rotary.inv_freq": torch.tensor([0.1, number, 0.2])}
    base = write_checkpoint(tmp_path / "base", tensors(0) | alone)
    models = {"base": base, "x": write_checkpoint(tmp_path / "x", tensors(1))}
    message = r"base/model\.safetensors: tensor 'model\.rotary\.inv_freq' has NaN or Inf; .*export .*base again"
    with pytest.raises(GraftbenchError, match=message):
        merge(tmp_path / "out", Linear(), models)
    with pytest.raises(GraftbenchError, match=message):
        merged(Linear(), models)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "x"]


def test_what_is_copied_must_fit_into_the_outputs_data_type(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", tensors(0) | {"model.scale": torch.tensor([1e5])})
    models = {"base": base, "x": write_checkpoint(tmp_path / "x", tensors(1))}
    with pytest.raises(GraftbenchError, match=r"'model\.scale', copied from the base, does not fit into torch\.fl"):
        merge(tmp_path / "out", Linear(), models, dtype="float16")
    found = written(merge(tmp_path / "out", Linear(), models, dtype="bfloat16"))
    assert found["model.scale"].dtype == torch.bfloat16


@pytest.mark.parametrize("which", ["base", "x"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8])
def test_quantised_weights_are_refused_by_name(tmp_path: Path, which: str, dtype: torch.dtype) -> None:
    models = {name: write_checkpoint(tmp_path / name, tensors(seed)) for seed, name in enumerate(("base", "x"))}
    stored = tensors(0) | {NORM: torch.ones(3).to(dtype)}
    save_file(stored, models[which] / "model.safetensors")
    text = refusal(models["base"], {"x": models["x"]})
    assert f"{which}/model.safetensors: tensor '{NORM}' is quantised ({str(dtype).removeprefix('torch.')})" in text


def test_a_quantisation_in_the_configuration_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", tensors(0))
    quantised = {"quantization_config": {"quant_method": "bitsandbytes"}}
    expert = write_checkpoint(tmp_path / "x", tensors(1), config=quantised)
    assert "x is quantised (bitsandbytes); merge the checkpoint that it was made from" in refusal(base, {"x": expert})


def test_a_matrix_method_that_needs_more_memory_says_how_much(tmp_path: Path) -> None:
    """The number that is asked for suffices, and a tenth less does not."""
    shape = (300, 400)
    base = write_checkpoint(tmp_path / "base", {"p": torch.zeros(shape), "q": torch.zeros(3)})
    experts = {name: write_checkpoint(tmp_path / name, {"p": torch.ones(shape), "q": torch.ones(3)}) for name in "xy"}
    files = {name: write_moments(tmp_path / f"{name}.v", {"p": torch.ones(shape), "q": torch.ones(3)}) for name in "xy"}
    method = OtaFfg(pairing="shuffled")
    text = refusal(base, experts, method, files=files, execution=Execution(memory_bytes=10**6))
    found = re.search(r"memory_gb=0.001 is too little: 'p' takes .* matrix granularity; give memory_gb=([\d.]+)$", text)
    assert found is not None, text
    enough = float(found[1])
    assert "is too little" in refusal(
        base, experts, method, files=files, execution=Execution(memory_bytes=int(enough * 0.9e9))
    )
    with plan_merge("m", method, base, experts, files, execution=Execution(memory_bytes=int(enough * 1e9))):
        pass


def test_a_method_of_entries_needs_little_for_large_tensors(tmp_path: Path) -> None:
    shape = (3000, 700)
    base = write_checkpoint(tmp_path / "base", {"p": torch.zeros(shape)})
    expert = write_checkpoint(tmp_path / "x", {"p": torch.ones(shape)})
    execution = Execution(memory_bytes=3 * 10**6, piece_entries=1 << 16)
    with plan_merge("m", Dare(), base, {"x": expert}, {}, execution=execution):
        pass


def test_memory_that_nobody_has_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Scarce:
        available = 10**6

    monkeypatch.setattr("harness.merging.planning.psutil.virtual_memory", lambda: Scarce)
    base = write_checkpoint(tmp_path / "base", {"p": torch.zeros(300, 400)})
    text = refusal(base, {"x": base}, OtaFfg(pairing="shuffled", score_by="magnitude", weight_by="uniform"))
    assert "'p' takes" in text and "this machine has 1 MB of memory left" in text


def test_an_adapter_has_no_second_moments(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"model.layers.0.self_attn.q_proj.weight": torch.zeros(6, 4)})
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    save_file(
        {key.format("A"): torch.ones(2, 4), key.format("B"): torch.ones(6, 2)}, adapter / "adapter_model.safetensors"
    )
    experts = {"x": f"{base}+{adapter}"}
    with plan_merge("m", Linear(), base, experts, {}):
        pass
    moments = write_moments(tmp_path / "v", {"model.layers.0.self_attn.q_proj.weight": torch.ones(6, 4)})
    for files in ({}, {"x": moments}):
        text = refusal(base, experts, Ota(), files=files)
        assert "is a LoRA adapter: its optimizer has second moments of the two low-rank factors" in text
        assert "choose a method that needs none" in text


def test_an_unknown_tokenizer_source_is_named(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", tensors(0))
    assert "unknown model in tokenizer 'maths'; did you mean 'math'" in refusal(base, {"math": base}, tokenizer="maths")
