"""Whole merges of real checkpoints on disk."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from harness.errors import GraftbenchError
from harness.merging import Execution, merge_to_folder, plan_merge, resolve_devices
from methods import Method, Parameter
from methods.linear import Linear
from methods.task_arithmetic import TaskArithmetic
from tests.checkpoints.llama import llama


def save(folder: Path, seed: int, dtype: torch.dtype = torch.float32, tied: bool = True) -> LlamaForCausalLM:
    model = llama(seed, max_position_embeddings=32, tie_word_embeddings=tied).to(dtype)
    model.save_pretrained(folder)
    return model


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    for seed, name in enumerate(("base", "x", "y")):
        save(tmp_path / name, seed)
    return {name: tmp_path / name for name in ("base", "x", "y")}


def merge(out: Path, method: Method, models: dict[str, Path], **options: object) -> Path:
    experts = {name: path for name, path in models.items() if name != "base"}
    shard_bytes = int(str(options.pop("shard_bytes", 10**9)))
    with plan_merge("m", method, models["base"], experts, {}, **options) as plan:  # type: ignore[arg-type]
        return merge_to_folder(plan, out, shard_bytes=shard_bytes).folder


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_the_merge(tmp_path: Path, tied: bool) -> None:
    models = {name: save(tmp_path / name, seed, tied=tied) for seed, name in enumerate(("base", "x", "y"))}
    out = merge(tmp_path / "out", Linear(), {name: tmp_path / name for name in models})
    loaded = AutoModelForCausalLM.from_pretrained(out)
    x, y = models["x"].state_dict(), models["y"].state_dict()
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, (x[name] + y[name]) / 2, rtol=1e-6, atol=1e-7)
    assert loaded.config.tie_word_embeddings is tied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("copies", [1, 2, 3, 5, 7])
def test_a_model_merged_with_itself_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype, copies: int) -> None:
    model = save(tmp_path / "x", 3, dtype)
    save(tmp_path / "base", 4, dtype)
    sources = {"base": tmp_path / "base"} | {f"x{i}": tmp_path / "x" for i in range(copies)}
    out = merge(tmp_path / "out", Linear(), sources)
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=dtype).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded[name], value), name


def test_the_output_dtype_is_cast_to_once_and_said(tmp_path: Path, models: dict[str, Path]) -> None:
    exact = AutoModelForCausalLM.from_pretrained(merge(tmp_path / "exact", Linear(), models))
    cast = merge(tmp_path / "cast", Linear(), models, dtype="bfloat16")
    assert json.loads((cast / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = AutoModelForCausalLM.from_pretrained(cast, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, exact.state_dict()[name].to(torch.bfloat16))


def test_shards_change_nothing_but_files(tmp_path: Path, models: dict[str, Path]) -> None:
    whole = merge(tmp_path / "whole", Linear(), models)
    cut = merge(tmp_path / "cut", Linear(), models, shard_bytes=4000)
    assert len(list(cut.glob("*.safetensors"))) > 2
    digests = [json.loads((out / "merge.json").read_text())["weights_digest"] for out in (whole, cut)]
    assert digests[0] == digests[1]
    a, b = (AutoModelForCausalLM.from_pretrained(out).state_dict() for out in (whole, cut))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_merge_json_tells_how_it_was_made(tmp_path: Path, models: dict[str, Path]) -> None:
    out = merge(tmp_path / "out", TaskArithmetic(scale=0.4, weights={"x": 2.0}), models)
    told = json.loads((out / "merge.json").read_text())
    assert told["recipe"]["hyperparameters"] == {"scale": 0.4, "weights": {"x": 2.0}}
    assert told["recipe"]["experts"].keys() == {"x", "y"}
    assert told["inputs"]["base"] == str(models["base"])
    assert len(told["weights_digest"]) == 64
    assert (out / "README.md").read_text().startswith("---\nlibrary_name: transformers")


def test_naming_experts_in_another_order_changes_nothing(tmp_path: Path, models: dict[str, Path]) -> None:
    there = merge(tmp_path / "there", TaskArithmetic(), models)
    back = merge(tmp_path / "back", TaskArithmetic(), dict(reversed(models.items())))
    assert (there / "model.safetensors").read_bytes() == (back / "model.safetensors").read_bytes()


class Broken(Method):
    """Fails in the middle of a model."""

    def merge(self, parameter: Parameter) -> torch.Tensor:
        if "layers.1" in parameter.name:
            raise RuntimeError("no more")
        return parameter.base


class Crooked(Method):
    """Returns something that is no parameter."""

    def merge(self, parameter: Parameter) -> torch.Tensor:
        return parameter.base.flatten()[:1]


class Infinite(Method):
    """Divides by nothing."""

    def merge(self, parameter: Parameter) -> torch.Tensor:
        return parameter.base / 0.0


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        (Broken(), RuntimeError, "no more"),
        (Crooked(), GraftbenchError, "gave shape"),
        (Infinite(), GraftbenchError, "NaN or Inf"),
    ],
)
def test_a_failure_leaves_nothing_under_the_final_name(
    tmp_path: Path, models: dict[str, Path], method: Method, error: type[Exception], message: str
) -> None:
    before = set(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        merge(tmp_path / "out", method, models, shard_bytes=4000)
    assert set(tmp_path.iterdir()) == before


def test_nan_in_an_expert_stops_the_merge_and_names_it(tmp_path: Path, models: dict[str, Path]) -> None:
    model = LlamaForCausalLM.from_pretrained(models["y"])
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained(models["y"])
    with pytest.raises(GraftbenchError, match=r"y/model\.safetensors: tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        merge(tmp_path / "out", Linear(), models)
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_never_overwritten(tmp_path: Path, models: dict[str, Path]) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(GraftbenchError, match="exists already"):
        merge(tmp_path / "out", Linear(), models)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_what_the_cpu_gives(tmp_path: Path, models: dict[str, Path]) -> None:
    results = {}
    for device in ("cpu", "cuda"):
        out = merge(tmp_path / device, TaskArithmetic(), models, execution=Execution(devices=resolve_devices(device)))
        results[device] = AutoModelForCausalLM.from_pretrained(out).state_dict()
    for name, value in results["cpu"].items():
        torch.testing.assert_close(results["cuda"][name], value, rtol=1e-6, atol=1e-7)
