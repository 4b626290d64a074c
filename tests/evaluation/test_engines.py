from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import GraftbenchError
from harness.evaluation.engines import engine_from_config
from harness.evaluation.engines.hf import HFEngine


def test_options_reach_the_engine() -> None:
    assert engine_from_config({"name": "hf", "batch_size": 2}) == HFEngine(batch_size=2, device="auto")
    assert engine_from_config({"name": "hf", "device": "cpu"}) == HFEngine(device="cpu")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "hff"}, "unknown backend 'hff'; did you mean 'hf'"),
        ({"name": "vllm"}, "comes with a later version"),
        ({"name": "hf", "batchsize": 2}, "unknown option of backend 'batchsize'; did you mean 'batch_size'"),
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


def test_loads_a_folder_in_the_wanted_format(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_model.parent)  # a relative path must not be taken for a name on the hub
    lm = HFEngine(device="cpu", dtype="bfloat16").load(tiny_model.name)
    assert lm.model.dtype == torch.bfloat16
    assert lm.pretrained == str(tiny_model)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(GraftbenchError, match="transformers cannot load this model"):
        HFEngine(device="cpu").load(tmp_path)
