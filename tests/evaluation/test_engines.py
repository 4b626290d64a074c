from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import GraftbenchError
from harness.evaluation.engines import HFEngine, VLLMEngine, engine_from_config
from harness.evaluation.engines.dtypes import dtype_of


def test_options_reach_the_engine() -> None:
    assert engine_from_config({"name": "hf", "batch_size": 2}) == HFEngine(batch_size=2, device="auto")
    assert engine_from_config({"name": "hf", "device": "cpu"}) == HFEngine(device="cpu")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "hff"}, "unknown backend 'hff'; did you mean 'hf'"),
        ({"name": "hf", "batchsize": 2}, "unknown option of backend=hf 'batchsize'; did you mean 'batch_size'"),
        ({"name": "auto", "batch_size": 2}, "unknown option of backend=auto 'batch_size'"),
        ({"name": "vllm", "max_len": 2}, "unknown option of backend=vllm 'max_len'; did you mean 'max_length'"),
        ({"name": "vllm", "tensor_parallel_size": 0}, "backend.tensor_parallel_size is 0"),
        ({"name": "vllm", "max_length": 2.5}, "backend.max_length is 2.5"),
        ({"name": "vllm", "gpu_memory_utilization": 90}, r"utilization is 90; it is a share of the memory, in 0..1"),
        ({"name": "vllm", "kv_cache_gb": -1}, "kv_cache_gb is -1; it must be positive"),
        ({"name": "vllm", "dtype": "half"}, "backend.dtype 'half'"),
        ({"name": "hf", "batch_size": 0}, "backend.batch_size is 0"),
        ({"name": "hf", "dtype": "float8"}, "backend.dtype 'float8'; did you mean"),
    ],
)
def test_bad_settings_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(GraftbenchError, match=message):
        engine_from_config(config)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_devices_that_do_not_exist(device: str) -> None:
    with pytest.raises(GraftbenchError, match=device):
        HFEngine(device=device).describe()


def test_describes_what_can_change_a_score() -> None:
    described = HFEngine(batch_size=4, dtype="float32", device="cpu").describe()
    assert described["versions"].keys() == {"torch", "transformers"}
    del described["versions"]
    assert described == {"name": "hf", "batch_size": 4, "dtype": "float32", "device": "cpu", "max_length": None}


def test_weights_that_come_later_leave_the_engine_as_a_folder_does(tiny_model: Path) -> None:
    engine = HFEngine(device="cpu", dtype="bfloat16", max_length=64)
    loaded, hollow = engine.load(tiny_model), engine.hollow(tiny_model)
    assert not torch.equal(hollow.model.lm_head.weight, loaded.model.lm_head.weight)
    engine.exchange(hollow, loaded.model.state_dict().items())
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(hollow.model.state_dict()[name], tensor)
    assert hollow.model.dtype == loaded.model.dtype
    assert hollow.max_length == loaded.max_length == 64
    assert hollow.tokenizer.chat_template == loaded.tokenizer.chat_template
    assert hollow.model.generation_config.to_dict() == loaded.model.generation_config.to_dict()


def machine(monkeypatch: pytest.MonkeyPatch, vllm: str | None, gpus: int) -> None:
    """As if this version of vLLM and so many GPUs were here."""
    monkeypatch.setattr("harness.evaluation.engines.vllm.vllm_version", lambda: vllm)
    monkeypatch.setattr("harness.evaluation.engines.auto.vllm_version", lambda: vllm)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@pytest.mark.parametrize(
    ("vllm", "gpus", "options", "message"),
    [
        (None, 1, {}, r"vLLM, which is not installed here; install it with `pip install 'graftbench\[vllm\]'`"),
        ("0.32.0", 0, {}, "this is vLLM 0.32.0 for GPUs, but PyTorch finds none here"),
        ("0.32.0", 2, {"tensor_parallel_size": 4}, "tensor_parallel_size=4, but there are 2 GPUs here"),
        (
            "0.32.0+cpu",
            0,
            {"tensor_parallel_size": 999},
            "tensor_parallel_size=999, but this is vLLM's build for processors, and there are",
        ),
    ],
)
def test_vllm_says_why_it_cannot_run(
    monkeypatch: pytest.MonkeyPatch, vllm: str | None, gpus: int, options: dict[str, Any], message: str
) -> None:
    machine(monkeypatch, vllm, gpus)
    engine = engine_from_config({"name": "vllm", **options})
    for ask in (engine.describe, lambda: engine.load("some/model")):
        with pytest.raises(GraftbenchError, match=message):
            ask()


def test_vllm_compiles_on_gpus_only_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "0.32.0", 1)
    assert VLLMEngine().describe()["enforce_eager"] is False
    assert VLLMEngine(enforce_eager=True).describe()["enforce_eager"] is True
    machine(monkeypatch, "0.32.0+cpu", 0)
    assert VLLMEngine().describe()["enforce_eager"] is True


@pytest.mark.parametrize(
    ("vllm", "gpus", "kind"), [("0.32.0", 1, VLLMEngine), (None, 1, HFEngine), ("0.32.0+cpu", 0, HFEngine)]
)
def test_auto_is_vllm_where_there_are_a_gpu_and_vllm(
    monkeypatch: pytest.MonkeyPatch, vllm: str | None, gpus: int, kind: type[Any]
) -> None:
    machine(monkeypatch, vllm, gpus)
    assert engine_from_config({"name": "auto", "dtype": "bfloat16", "max_length": 99}) == kind(
        dtype="bfloat16", max_length=99
    )


@pytest.mark.parametrize(("stated", "expected"), [({"dtype": "bfloat16"}, "bfloat16"), ({}, "float32")])
def test_a_checkpoint_states_its_format(tmp_path: Path, stated: dict[str, str], expected: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(stated))
    assert dtype_of(tmp_path) == expected


def test_loads_a_folder_in_the_wanted_format(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_model.parent)  # a relative path must not be taken for a name on the hub
    lm = HFEngine(device="cpu", dtype="bfloat16").load(tiny_model.name)
    assert lm.model.dtype == torch.bfloat16
    assert lm.pretrained == str(tiny_model)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(GraftbenchError, match="transformers cannot load this model"):
        HFEngine(device="cpu").load(tmp_path)
