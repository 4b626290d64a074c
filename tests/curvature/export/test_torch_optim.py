"""State dicts of `torch.optim`, and what is refused."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import distribute_tensor

from harness.curvature import SecondMoments, second_moments_of
from harness.curvature.export import export_second_moments
from harness.errors import GraftbenchError
from tests.curvature.export.live import (
    adamw,
    assert_merges_like_live,
    constants,
    plant,
    read_constants,
    saved,
    tied_model,
    train,
)


@pytest.fixture
def model() -> Any:
    return tied_model()


@pytest.fixture
def folder(tmp_path: Path, model: Any) -> Path:
    return saved(tmp_path / "model", model)


def write(tmp_path: Path, state: Any) -> Path:
    torch.save(state, tmp_path / "state.pt")
    return tmp_path / "state.pt"


def by_name(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state with names for numbers, as FSDP gathers it."""
    names = [name for name, _ in model.named_parameters()]
    groups = [{**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[i]: entry for i, entry in state["state"].items()}, "param_groups": groups}


@pytest.mark.parametrize("kind", ["numbers", "names", "named", "beside the model", "wrapped"])
def test_every_parameter_has_its_own_moments(tmp_path: Path, model: Any, folder: Path, kind: str) -> None:
    optimizer = adamw(model)
    if kind == "named":  # and in another order, which numbers would get wrong
        named = dict(reversed(list(model.named_parameters())))
        optimizer = torch.optim.AdamW(named.items(), lr=1e-3, betas=(0.9, 0.95))
    train(model, optimizer)
    plant(model, optimizer)
    state: Any = optimizer.state_dict()
    if kind == "names":
        state = by_name(model, state)
    elif kind == "wrapped":
        state = by_name(model, state)
        state["state"] = {f"module._orig_mod.{name}": entry for name, entry in state["state"].items()}
        state["param_groups"][0]["params"] = list(state["state"])
    elif kind == "beside the model":
        state = {"model": model.state_dict(), "optimizer": state, "epoch": 3}
    report = export_second_moments(write(tmp_path, state), tmp_path / "out", folder)
    assert read_constants(report.path) == constants(model)
    assert (report.metadata.step, report.metadata.beta2, report.metadata.learning_rate) == (3, 0.95, 1e-3)


def test_ota_with_the_file_is_ota_with_the_live_optimizer(tmp_path: Path, model: Any, folder: Path) -> None:
    optimizer = adamw(model)
    train(model, optimizer)
    exported = export_second_moments(write(tmp_path, optimizer.state_dict()), tmp_path / "out", folder).path
    assert_merges_like_live(tmp_path, exported, second_moments_of(optimizer, model))


def test_parameters_that_were_never_stepped_are_left_out(tmp_path: Path, model: Any, folder: Path) -> None:
    optimizer = adamw(model)  # it holds them all, frozen ones too
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.0" not in name)
    train(model, optimizer)
    plant(model, optimizer)
    exported = export_second_moments(write(tmp_path, optimizer.state_dict()), tmp_path / "out", folder).path
    assert read_constants(exported) == constants(model)


def test_the_head_s_name_of_a_tied_embedding_is_understood(tmp_path: Path, model: Any, folder: Path) -> None:
    optimizer = adamw(model)
    train(model, optimizer)
    plant(model, optimizer)
    state = by_name(model, optimizer.state_dict())
    state["state"]["lm_head.weight"] = state["state"].pop("model.embed_tokens.weight")
    state["param_groups"][0]["params"] = list(state["state"])
    exported = export_second_moments(write(tmp_path, state), tmp_path / "out", folder).path
    assert read_constants(exported) == constants(model)


def test_a_renamed_module_is_an_error_with_the_nearest_names(tmp_path: Path, model: Any, folder: Path) -> None:
    optimizer = adamw(model)
    train(model, optimizer)
    state = by_name(model, optimizer.state_dict())
    state["state"] = {name.replace("q_proj", "query"): entry for name, entry in state["state"].items()}
    state["param_groups"][0]["params"] = list(state["state"])
    with pytest.raises(
        GraftbenchError,
        match=r"2 things are wrong:\n.*'model\.layers\.0\.self_attn\.query\.weight' \[16, 16\], but .* has no "
        r"parameter of that name; nearest: 'model\.layers\.\d\.self_attn\.",
    ):
        export_second_moments(write(tmp_path, state), tmp_path / "out", folder)
    assert not (tmp_path / "out").exists()


def test_unknown_groups_of_numbers_are_refused(tmp_path: Path, model: Any, folder: Path) -> None:
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW([{"params": parameters[:2]}, {"params": parameters[2:5]}, {"params": parameters[5:]}])
    train(model, optimizer)
    with pytest.raises(GraftbenchError, match="3 parameter groups and numbers their parameters"):
        export_second_moments(write(tmp_path, optimizer.state_dict()), tmp_path / "out", folder)
    halves = torch.optim.AdamW([{"params": parameters[:9]}, {"params": parameters[9:]}])
    train(model, halves)
    with pytest.raises(GraftbenchError, match="does not fit"):
        export_second_moments(write(tmp_path, halves.state_dict()), tmp_path / "out", folder)


class Malicious:
    """Unpickled freely, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, model: Any, folder: Path) -> None:
    optimizer = adamw(model)
    train(model, optimizer)
    file = write(tmp_path, {**optimizer.state_dict(), "extra": Malicious(tmp_path / "made")})
    with pytest.raises(GraftbenchError, match=r"holds more than tensors \(posix\.mkdir\).*save the state dict of the"):
        export_second_moments(file, tmp_path / "out", folder)
    assert not (tmp_path / "made").exists()


def test_a_half_written_file_is_refused(tmp_path: Path, model: Any, folder: Path) -> None:
    optimizer = adamw(model)
    train(model, optimizer)
    file = write(tmp_path, optimizer.state_dict())
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(GraftbenchError, match=r"state\.pt is not a whole PyTorch file"):
        export_second_moments(file, tmp_path / "out", folder)


@pytest.mark.parametrize(
    ("optimizer", "said"), [(torch.optim.SGD, "no second moments"), (torch.optim.RMSprop, "keeps square_avg")]
)
def test_optimizers_without_adam_s_moments_are_refused(
    tmp_path: Path, model: Any, folder: Path, optimizer: Any, said: str
) -> None:
    live = optimizer(model.parameters(), lr=1e-3)
    train(model, live)
    with pytest.raises(GraftbenchError, match=said):
        export_second_moments(write(tmp_path, live.state_dict()), tmp_path / "out", folder)


def test_a_rank_s_part_of_a_tensor_is_refused(tmp_path: Path, model: Any, folder: Path) -> None:
    """FSDP 2's own state, saved by each rank for itself."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        optimizer = adamw(model)
        train(model, optimizer)
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        state = optimizer.state_dict()
        for entry in state["state"].values():
            entry["exp_avg_sq"] = distribute_tensor(entry["exp_avg_sq"], mesh)
        with pytest.raises(GraftbenchError, match="its state is a DTensor, not a plain tensor; gather the whole state"):
            export_second_moments(write(tmp_path, state), tmp_path / "out", folder)
    finally:
        torch.distributed.destroy_process_group()


def test_values_that_are_no_second_moments_leave_no_file(tmp_path: Path, model: Any, folder: Path) -> None:
    optimizer = adamw(model)
    train(model, optimizer)
    optimizer.state[model.model.norm.weight]["exp_avg_sq"][3] = float("nan")
    with pytest.raises(GraftbenchError, match=r"'model\.norm\.weight' range from nan"):
        export_second_moments(write(tmp_path, optimizer.state_dict()), tmp_path / "out", folder)
    assert list((tmp_path / "out").iterdir()) == []


def test_steps_that_differ_are_left_out_of_the_metadata(
    tmp_path: Path, model: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = adamw(model)
    train(model, optimizer)
    optimizer.state[model.model.norm.weight]["step"] += 1
    report = export_second_moments(write(tmp_path, optimizer.state_dict()), tmp_path / "out", folder)
    with SecondMoments(report.path) as moments:
        assert moments.metadata.step is None and moments.metadata.correction is None
    assert "differ in step ([3, 4])" in caplog.text
