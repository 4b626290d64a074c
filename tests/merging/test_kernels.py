"""Compiled methods give what plain torch gives, and where they cannot, plain torch is what runs."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.errors import GraftbenchError
from harness.merging import Execution, MergePlan, merged_parameters, plan_merge
from harness.merging.cutoffs import find_cutoffs
from methods import Method, Parameter
from methods.dare import Dare
from methods.ffg import Ffg
from methods.fisher import Fisher
from methods.generalized_task_arithmetic import GeneralizedTaskArithmetic
from methods.linear import Linear
from methods.ota import Ota
from methods.ota_ffg import OtaFfg
from methods.task_arithmetic import TaskArithmetic
from methods.ties import Ties
from tests.merging.models import NAMES, Models, same_bytes

COMPILED = Execution(threads=1, kernels="compiled", piece_entries=512, tile_entries=256)
PLAIN = replace(COMPILED, kernels="plain")

EXACT: dict[str, Method] = {
    "linear": Linear(weights={"code": 0.3}),
    "task arithmetic": TaskArithmetic(weights={"math": 1.7}),
    "ties": Ties(density={"code": 0.2, "math": 0.5, "sums": 1.0}, weights={"code": 0.3}),
    "ties, each tensor": Ties(density=0.3, scope="tensor"),
    "mergekit's ties": GeneralizedTaskArithmetic(
        select="magnitude", elect=True, normalize=True, density=0.4, weight=0.3
    ),
    "ffg": Ffg(expert="math", density=0.3),
    "fisher": Fisher(curvature="adam"),
}
ROOTS: dict[str, Method] = {
    "ota": Ota(),
    "ota_ffg": OtaFfg(density=0.25),
    "ota_ffg, rotated": OtaFfg(density=0.25, pairing="rotated", power=0.3),
}
"""Their powers of v may differ in the last bit: plain torch has roots from the processor's own library."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"), coarse=True)


def planned(method: Method, models: Models, execution: Execution, dtype: str | None = None) -> MergePlan:
    experts = {name: models.single[name] for name in NAMES[1:]}
    return plan_merge("m", method, models.single["base"], experts, models.curvature, execution=execution, dtype=dtype)


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", EXACT)
def test_a_kernel_has_the_bits_of_plain_torch(name: str, device: str, models: Models) -> None:
    there = (torch.device(device),)
    for dtype in (None, "bfloat16"):
        with (
            planned(EXACT[name], models, replace(COMPILED, devices=there), dtype) as compiled,
            planned(EXACT[name], models, replace(PLAIN, devices=there), dtype) as plain,
        ):
            found, wanted = dict(merged_parameters(compiled)), dict(merged_parameters(plain))
            assert compiled.kernels.compiled and not plain.kernels.compiled
            assert compiled.kernels.rounding == "plain"
        assert same_bytes(found, wanted)


@pytest.mark.parametrize("name", ROOTS)
def test_a_kernel_with_roots_agrees_up_to_rounding(name: str, models: Models) -> None:
    with planned(ROOTS[name], models, COMPILED) as compiled, planned(ROOTS[name], models, PLAIN) as plain:
        found, wanted = dict(merged_parameters(compiled)), dict(merged_parameters(plain))
        assert compiled.kernels.compiled
        assert find_cutoffs(compiled) == find_cutoffs(plain)
    for parameter, tensor in wanted.items():
        torch.testing.assert_close(found[parameter], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", [Ties(density=0.3), OtaFfg(density=0.25)], ids=["ties", "ota_ffg"])
def test_pieces_change_no_bit_of_what_a_kernel_merges(method: Method, models: Models) -> None:
    executions = [
        replace(COMPILED, tile_entries=tile, piece_entries=piece) for tile, piece in ((128, 128), (192, 1024))
    ]
    results = []
    for execution in executions:
        with planned(method, models, execution) as plan:
            results.append(dict(merged_parameters(plan)))
            assert plan.kernels.compiled
    assert same_bytes(*results)


def test_only_large_merges_are_worth_a_compiler(models: Models) -> None:
    with planned(Linear(), models, replace(COMPILED, kernels="auto")) as plan:
        dict(merged_parameters(plan))
        assert not plan.kernels.compiled


@dataclass(frozen=True, kw_only=True)
class Restless(Method):
    """The mean of the experts with noise that no seed determines."""

    def merge(self, parameter: Parameter) -> Tensor:
        return parameter.experts.mean(dim=0) + 0.1 * torch.rand(parameter.base.shape)


@dataclass(frozen=True, kw_only=True)
class Branching(Method):
    """Decides by values what to do."""

    def merge(self, parameter: Parameter) -> Tensor:
        return parameter.base if bool((parameter.base > 0).any()) else parameter.experts[0]


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (Dare(), "it looks at the parameter's offset"),
        (GeneralizedTaskArithmetic(weight=[0.1, 0.9]), "it looks at the parameter's layer"),
        (Restless(), "compiled, it gives something else"),
        (Branching(), "It appears that you're trying to get value out of a tracing tensor"),
    ],
    ids=["random by name", "weights by layer", "not deterministic", "branches on values"],
)
def test_what_cannot_be_compiled_runs_in_plain_torch_and_says_so(
    method: Method, reason: str, models: Models, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), planned(method, models, COMPILED) as plan:
        merged = dict(merged_parameters(plan))
        assert not plan.kernels.compiled
    assert len(merged) == len(models.tensors["base"])
    assert f"method 'm' runs in plain torch, without a fused kernel: {reason}" in caplog.text


def test_without_a_compiler_plain_torch_runs(models: Models, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    from torch._inductor import config

    with (
        config.patch({"cpp.cxx": (str(tmp_path / "no-compiler"),)}),
        planned(Linear(), models, COMPILED) as plan,
        caplog.at_level(logging.WARNING),
    ):
        merged = dict(merged_parameters(plan))
        assert not plan.kernels.compiled
    with planned(Linear(), models, PLAIN) as plan:
        assert same_bytes(merged, dict(merged_parameters(plan)))
    assert "without a fused kernel" in caplog.text


@dataclass(frozen=True, kw_only=True)
class Exploding(Method):
    """Divides by the difference from the first expert."""

    def merge(self, parameter: Parameter) -> Tensor:
        return parameter.base + 1e30 * parameter.task_vectors.abs().sum(dim=0) * 1e8


def test_a_kernel_that_gives_infinity_is_told_as_plain_torch_tells_it(models: Models) -> None:
    with (
        planned(Exploding(), models, COMPILED) as plan,
        pytest.raises(GraftbenchError, match="gave NaN or Inf for"),
    ):
        dict(merged_parameters(plan))
