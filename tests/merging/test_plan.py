"""Bad input is refused from headers alone, by name, before weights are moved."""

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.checkpoints import Checkpoint
from harness.curvature import SecondMomentsMetadata, write_second_moments
from harness.errors import GraftbenchError
from harness.merging import plan_merge
from harness.merging.planning import resolve_device
from harness.merging.source import method_source_digest
from methods import Method, load_file
from methods.ffg import Ffg
from methods.linear import Linear
from methods.ota import Ota
from methods.ota_ffg import OtaFfg
from methods.ties import Ties
from tests.checkpoints.small import write_checkpoint, write_moments

BASE = {"p": [1.0, 2.0], "q": [[1.0]]}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", BASE)


def plan(base: Path, experts: dict[str, Path], method: Method | None = None, **options: Any) -> None:
    files = options.pop("files", {})
    with plan_merge("m", method or Linear(), base, experts, files, **options):
        pass


def test_what_fits_is_planned(tmp_path: Path, base: Path) -> None:
    plan(base, {"x": write_checkpoint(tmp_path / "x", BASE)})


@pytest.mark.parametrize(
    ("tensors", "architecture", "message"),
    [
        (
            {"p": [1.0, 2.0, 3.0], "q": [[1.0]]},
            "TestModel",
            r"'p' in model\.safetensors has shape \[3\], the base's \[2\]",
        ),
        (BASE, "OtherModel", r"expert 'x' .* is a OtherModel, the base .* a TestModel"),
    ],
)
def test_an_expert_that_does_not_fit_is_named(
    tmp_path: Path, base: Path, tensors: dict[str, Any], architecture: str, message: str
) -> None:
    expert = write_checkpoint(tmp_path / "x", tensors, architecture=architecture)
    with pytest.raises(GraftbenchError, match=message):
        plan(base, {"x": expert})


@pytest.mark.parametrize("method", [Ota(), OtaFfg(), Ffg()])
def test_a_method_that_needs_second_moments_says_so(tmp_path: Path, base: Path, method: Method) -> None:
    expert = write_checkpoint(tmp_path / "x", BASE)
    with pytest.raises(GraftbenchError, match=r"curvature 'adam' of expert 'x'.*zoo\.second_moments\.x=PATH"):
        plan(base, {"x": expert}, method, files={"x": None})


def test_a_control_without_curvature_needs_no_files(tmp_path: Path, base: Path) -> None:
    expert = write_checkpoint(tmp_path / "x", BASE)
    plan(base, {"x": expert}, OtaFfg(score_by="magnitude", weight_by="uniform"), files={"x": None})


def test_second_moments_from_another_base_are_warned_of(
    tmp_path: Path, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expert = write_checkpoint(tmp_path / "x", BASE)
    values = {"p": torch.ones(2), "q": torch.ones(1, 1)}
    digests = {"own": Checkpoint(base).weights_digest, "other": Checkpoint(expert).weights_digest[::-1]}
    for name, digest in digests.items():
        metadata = SecondMomentsMetadata(beta2=0.5, step=9, base_digest=digest)
        write_second_moments(tmp_path / name, values, metadata)
    plan(base, {"x": expert}, Ota(), files={"x": tmp_path / "own"})
    assert not caplog.text
    plan(base, {"x": expert}, Ota(), files={"x": tmp_path / "other"})
    assert "second moments of expert 'x' say that it was trained from another base" in caplog.text


def test_second_moments_of_another_model_are_refused(tmp_path: Path, base: Path) -> None:
    expert = write_checkpoint(tmp_path / "x", BASE)
    moments = write_moments(tmp_path / "v", {"p": [1.0, 2.0]})
    with pytest.raises(GraftbenchError, match="lack 'q'"):
        plan(base, {"x": expert}, Ota(), files={"x": moments})


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:99", "does not exist: this machine shows"),
        ("tpu", "unknown device 'tpu'"),
        ("meta", "is not supported"),
    ],
)
def test_a_device_that_is_not_there_is_refused(device: str, message: str) -> None:
    with pytest.raises(GraftbenchError, match=message):
        resolve_device(device)


def test_an_unknown_output_dtype_is_refused(tmp_path: Path, base: Path) -> None:
    expert = write_checkpoint(tmp_path / "x", BASE)
    with pytest.raises(GraftbenchError, match="unknown dtype 'bfloat15'; did you mean 'bfloat16'"):
        plan(base, {"x": expert}, dtype="bfloat15")


def test_hyper_parameters_name_experts_that_exist(tmp_path: Path, base: Path) -> None:
    experts = {name: write_checkpoint(tmp_path / name, BASE) for name in ("math", "code")}
    with pytest.raises(GraftbenchError, match=r"expert in method\.weights 'maths'; did you mean 'math'"):
        plan(base, experts, Linear(weights={"maths": 2.0}))
    with pytest.raises(GraftbenchError, match=r"method\.density has no value for expert 'code'"):
        plan(base, experts, Ties(density={"math": 0.5}))
    with pytest.raises(GraftbenchError, match="FFG grafts one expert"):
        plan(base, experts, Ffg())
    with pytest.raises(GraftbenchError, match="expert=sums is none of the experts"):
        plan(base, experts, Ffg(expert="sums"))
    with pytest.raises(GraftbenchError, match="no experts to merge"):
        plan(base, {})


def test_an_expert_whose_weights_mean_something_else_is_refused(tmp_path: Path, base: Path) -> None:
    expert = write_checkpoint(tmp_path / "x", BASE)
    for folder, heads in ((base, 4), (expert, 2)):
        (folder / "config.json").write_text(f'{{"architectures": ["TestModel"], "num_attention_heads": {heads}}}')
    with pytest.raises(GraftbenchError, match=r"num_attention_heads=2 in config\.json, the base 4"):
        plan(base, {"x": expert})


def test_weights_of_zero_for_everyone_are_refused(tmp_path: Path, base: Path) -> None:
    expert = write_checkpoint(tmp_path / "x", BASE)
    with pytest.raises(GraftbenchError, match="gives every expert 0"):
        plan(base, {"x": expert}, Linear(weights={"x": 0.0}))


def test_a_recipe_changes_with_everything_that_changes_the_merge(tmp_path: Path, base: Path) -> None:
    x, y = write_checkpoint(tmp_path / "x", BASE), write_checkpoint(tmp_path / "y", BASE | {"q": [[2.0]]})
    recipes = []
    for method, experts, dtype in (
        (Ties(), {"x": x}, None),
        (Ties(density=0.3), {"x": x}, None),
        (Ties(), {"x": y}, None),
        (Ties(), {"x": x}, "bfloat16"),
        (Linear(), {"x": x}, None),
    ):
        with plan_merge("m", method, base, experts, {}, dtype=dtype) as planned:
            recipes.append(planned.recipe())
    assert all(a != b for i, a in enumerate(recipes) for b in recipes[:i])
    with plan_merge("m", Ties(), base, {"x": x}, {}) as planned:
        assert planned.recipe() == recipes[0]


def test_the_source_digest_follows_the_code(tmp_path: Path) -> None:
    source = (
        "from dataclasses import dataclass\nfrom methods import Method\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Mine(Method):\n    '''Mine.'''\n"
        "    def merge(self, parameter):\n        return parameter.base{}\n"
    )
    digests = []
    for suffix in ("", "", " + 1"):
        file = tmp_path / "mine.py"
        file.write_text(source.format(suffix))
        digests.append(method_source_digest(load_file(file)[1]))
    assert digests[0] == digests[1] != digests[2]
