"""The stream into a live consumer, and what it holds in memory."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from harness.checkpoints import TensorInfo, plan_shards
from harness.errors import GraftbenchError
from harness.merging import Execution, merge_to_folder, merged_parameters, plan_merge
from harness.merging.execution import Pool, Workbench
from harness.merging.pieces import Piece
from methods import Method, Parameter
from methods.ties import Ties
from tests.checkpoints.llama import llama
from tests.checkpoints.small import write_checkpoint
from tests.merging.models import Models, merge, merged, random_tensors


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_live_model_answers_as_the_written_one(tmp_path: Path, tied: bool, dtype: str | None) -> None:
    for seed, name in enumerate(("base", "x", "y")):
        llama(seed, tie_word_embeddings=tied).save_pretrained(tmp_path / name)
    experts = {name: tmp_path / name for name in ("x", "y")}
    execution = Execution(threads=2, piece_entries=64, tile_entries=64)
    live = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype or "float32").eval()
    with plan_merge("m", Ties(), tmp_path / "base", experts, {}, dtype=dtype, execution=execution) as plan:
        written = AutoModelForCausalLM.from_pretrained(merge_to_folder(plan, tmp_path / "out").folder, dtype="auto")
        own = dict(live.named_parameters())
        with torch.no_grad():
            for name, tensor in merged_parameters(plan):
                assert own[name].dtype == tensor.dtype
                own.pop(name).copy_(tensor)
    assert not own
    tokens = torch.arange(40).view(2, 20)
    assert torch.equal(live(tokens).logits, written.eval()(tokens).logits)


def test_tensors_of_the_base_come_too(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = write_checkpoint(tmp_path / "base", random_tensors(0))
    save_file({**random_tensors(0), "ids": torch.arange(4), "alone": torch.ones(2)}, folder / "model.safetensors")
    models = {"base": folder, "x": write_checkpoint(tmp_path / "x", random_tensors(1))}
    found = merged(Ties(), models, dtype="float16")
    written = load_file(merge(tmp_path / "out", Ties(), models, dtype="float16") / "model.safetensors")
    assert found.keys() == written.keys()
    assert all(torch.equal(found[name], written[name]) for name in written)
    assert found["ids"].dtype == torch.int64 and found["alone"].dtype == torch.float16


def test_a_plan_can_be_merged_again_and_again(models: Models, tmp_path: Path) -> None:
    experts = {name: models.single[name] for name in ("code", "math")}
    with plan_merge("m", Ties(), models.single["base"], experts, {}) as plan:
        first, second = dict(merged_parameters(plan)), dict(merged_parameters(plan))
        reports = [merge_to_folder(plan, tmp_path / f"out{i}") for i in range(2)]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert reports[0].weights_digest == reports[1].weights_digest
    assert (tmp_path / "out0" / "model.safetensors").read_bytes() == (
        tmp_path / "out1" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_a_consumer_may_stop_early(models: Models, threads: int, scope: str) -> None:
    experts = {name: models.single[name] for name in ("code", "math")}
    execution = Execution(threads=threads, piece_entries=64)
    method = Ties(scope=scope)  # type: ignore[arg-type]
    with plan_merge("m", method, models.single["base"], experts, {}, execution=execution) as plan:
        stream = merged_parameters(plan)
        name, _ = next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert dict(merged_parameters(plan)).keys() >= {name}
    assert torch.get_num_threads() >= 1


def test_threads_of_torch_are_given_back(models: Models) -> None:
    before = torch.get_num_threads()
    for threads in (1, 2):
        merged(Ties(), models.single, execution=Execution(threads=threads))
        assert torch.get_num_threads() == before


@dataclass(frozen=True, kw_only=True)
class Strange(Method):
    """Returns what it is told to."""

    kind: str

    def merge(self, parameter: Parameter) -> Tensor:
        base = parameter.base
        returned = {"int": base.int(), "none": None, "short": base[:1], "double": base.double() + 1}
        return returned[self.kind]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("int", r"method 'm' gave torch\.int32 for '.*', not a floating-point tensor"),
        ("none", "method 'm' gave NoneType for"),
        ("short", r"method 'm' gave shape \[1\] for"),
    ],
)
def test_a_method_that_returns_something_else_is_named(models: Models, kind: str, message: str) -> None:
    with pytest.raises(GraftbenchError, match=message):
        merged(Strange(kind=kind), models.single)


def test_a_method_may_compute_in_fp64(models: Models) -> None:
    found = merged(Strange(kind="double"), models.single)
    for name, base in models.tensors["base"].items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], base + 1)


@dataclass(frozen=True, kw_only=True)
class Failing(Method):
    """Has a mistake."""

    def merge(self, parameter: Parameter) -> Tensor:
        raise ZeroDivisionError("a mistake")


@pytest.mark.parametrize("threads", [1, 2])
def test_a_mistake_in_a_method_names_method_and_parameter(models: Models, threads: int) -> None:
    with pytest.raises(ZeroDivisionError, match="a mistake") as caught:
        merged(Failing(), models.single, execution=Execution(threads=threads))
    told = "\n".join(getattr(caught.value, "__notes__", [])) + str(caught.value.__cause__)
    assert "while method 'm' merged 'model." in told


def sparse_checkpoint(folder: Path, tensors: int, entries: int) -> None:
    """Zeros in fp32 that take no room on the disk."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["TestModel"]}')
    infos = [TensorInfo(f"t{i}", (entries,), torch.float32, folder) for i in range(tensors)]
    (shard,) = plan_shards(infos, None, 10**12)
    with (folder / shard.name).open("wb") as file:
        file.write(shard.header)
        file.truncate(shard.bytes)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in kB on Linux")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Three models of 200 MB, written and streamed: each process stays within 250 MB of what it is without a merge."""
    for name in ("base", "x", "y"):
        sparse_checkpoint(tmp_path / name, tensors=5, entries=10 * 10**6)
    command = [sys.executable, "-m", "tests.merging.footprint", str(tmp_path), "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=True
    )
    shutil.rmtree(tmp_path / "out")
    found = json.loads(told.stdout.splitlines()[-1])
    before = found["before"]["own"]
    assert found["after"]["own"] < before + 250_000
    assert found["after"]["workers"] < before + 250_000


@dataclass(frozen=True)
class _Voluminous:
    """Gives more than a pipe holds, so that a worker is in the middle of it for a while."""

    names: tuple[str, ...]

    def __call__(self, bench: Workbench, piece: Piece, slot: int) -> bytes:
        return bytes(10**6)


def test_leaving_a_pool_does_not_wait_for_half_a_result(models: Models) -> None:
    experts = {name: models.single[name] for name in ("code", "math")}
    execution = Execution(threads=2, piece_entries=64)
    with plan_merge("m", Ties(), models.single["base"], experts, {}, execution=execution) as plan:
        for _ in range(10):
            with pytest.raises(ZeroDivisionError), Pool(plan) as pool:
                for _ in pool.run_over(plan.parameters, _Voluminous(("code",))):
                    raise ZeroDivisionError
