"""8-bit Adam and Adafactor, as their libraries save them."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.optimization import Adafactor

from harness.curvature import SecondMoments, SecondMomentsMetadata, write_second_moments
from harness.curvature.export import export_second_moments
from harness.errors import GraftbenchError
from methods.ota import Ota
from tests.curvature.export.live import assert_merges_like_live, saved, tied_model, train
from tests.merging.models import merged, same_bytes

WIDTH = {"hidden_size": 64, "intermediate_size": 96}
"""Matrices of 4,096 entries and more, which bitsandbytes keeps in 8 bits."""


def export(tmp_path: Path, model: nn.Module, optimizer: Any) -> Any:
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    return export_second_moments(tmp_path / "state.pt", tmp_path / "out", saved(tmp_path / "model", model))


@pytest.fixture
def eight_bit() -> tuple[Any, Any]:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = tied_model(**WIDTH)
    optimizer = bitsandbytes.optim.AdamW8bit(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    train(model, optimizer)
    return model, optimizer


def dequantised_by_its_library(model: nn.Module, optimizer: Any) -> tuple[dict[str, Tensor], int]:
    """What bitsandbytes itself makes of its state, and how many parameters have 8 bits."""
    from bitsandbytes.functional import dequantize_blockwise

    values, count = {}, 0
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        values[name] = state["state2"]
        if "qmap2" in state:
            count += 1
            values[name] = dequantize_blockwise(
                state["state2"], absmax=state["absmax2"], code=state["qmap2"], blocksize=256
            )
    return values, count


def test_8_bit_adam_is_what_bitsandbytes_makes_of_it(tmp_path: Path, eight_bit: tuple[Any, Any]) -> None:
    model, optimizer = eight_bit
    report = export(tmp_path, model, optimizer)
    expected, count = dequantised_by_its_library(model, optimizer)
    found = load_file(report.path)
    assert count == 14, "none of the large matrices is in 8 bits, so nothing would be shown"
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert report.metadata == SecondMomentsMetadata("adam", "8-bit Adam, dequantised block by block", 0.95, 3, 1e-3)


def test_ota_with_the_file_is_ota_with_the_dequantised_state(tmp_path: Path, eight_bit: tuple[Any, Any]) -> None:
    model, optimizer = eight_bit
    exported = export(tmp_path, model, optimizer).path
    assert_merges_like_live(tmp_path, exported, dequantised_by_its_library(model, optimizer)[0], **WIDTH)


def test_every_parameter_has_its_own_8_bit_moments(tmp_path: Path, eight_bit: tuple[Any, Any]) -> None:
    model, optimizer = eight_bit
    planted = {}
    for place, (name, parameter) in enumerate(model.named_parameters(), start=1):
        state = optimizer.state[parameter]
        state["absmax2" if "qmap2" in state else "state2"].fill_(place)
        planted[name] = place
    found = load_file(export(tmp_path, model, optimizer).path)
    # The largest code of a block stands for the block's scale.
    assert {name: float(value.max()) for name, value in found.items()} == planted


def test_scales_that_do_not_fit_are_refused(tmp_path: Path, eight_bit: tuple[Any, Any]) -> None:
    model, optimizer = eight_bit
    state = optimizer.state[model.model.layers[0].self_attn.q_proj.weight]
    state["absmax2"] = state["absmax2"][:-1].clone()
    with pytest.raises(GraftbenchError, match=r"15 scales for 4096 entries of 8-bit state"):
        export(tmp_path, model, optimizer)


def adafactor(model: nn.Module) -> Adafactor:
    return Adafactor(model.parameters(), lr=1e-3, relative_step=False, scale_parameter=False)


def torch_adafactor(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(model.parameters(), lr=1e-3)


FACTORS = {adafactor: ("exp_avg_sq_row", "exp_avg_sq_col"), torch_adafactor: ("row_var", "col_var")}


@pytest.mark.parametrize("make", [adafactor, torch_adafactor])
def test_adafactors_means_become_sums(tmp_path: Path, make: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = tied_model()
    optimizer = make(model)
    train(model, optimizer)
    with caplog.at_level(logging.WARNING):
        report = export(tmp_path, model, optimizer)
    assert report.metadata == SecondMomentsMetadata("adam", "Adafactor", None, 3, 1e-3, None, bias_corrected=True)
    assert not caplog.text, "its average needs no correction, so there is nothing to warn about"
    row, column = FACTORS[make]
    with SecondMoments(report.path) as moments:
        for name, parameter in model.named_parameters():
            state = optimizer.state[parameter]
            if parameter.dim() < 2:
                assert torch.equal(moments.read(name), state["variance" if "variance" in state else "exp_avg_sq"])
                continue
            rows, columns = state[row].flatten(), state[column].flatten()
            # Shazeer and Stern 2018, algorithm 4: row·col over the mean of the rows' means.
            live = torch.outer(rows, columns) / rows.mean()
            torch.testing.assert_close(moments.read(name), live, rtol=1e-5, atol=0)
    stored = load_file(report.path)
    weight = model.model.layers[0].mlp.up_proj.weight
    assert torch.equal(
        stored["model.layers.0.mlp.up_proj.weight.row"], optimizer.state[weight][row].flatten() * weight.shape[1]
    )


def test_ota_with_adafactors_file_is_ota_with_its_live_factors(tmp_path: Path) -> None:
    model = tied_model()
    optimizer = adafactor(model)
    train(model, optimizer)
    report = export(tmp_path, model, optimizer)
    live = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        if parameter.dim() < 2:
            live[name] = state["exp_avg_sq"]
        else:
            live[name + ".row"] = state["exp_avg_sq_row"] * parameter.shape[1]
            live[name + ".col"] = state["exp_avg_sq_col"] * parameter.shape[0]
    write_second_moments(tmp_path / "live.v", live, report.metadata)
    models = {"base": saved(tmp_path / "base", tied_model(seed=7))}
    models |= {name: saved(tmp_path / name, tied_model(seed=8 + i)) for i, name in enumerate(("one", "other"))}
    random = {name: torch.rand(p.shape) / 512 for name, p in model.named_parameters()}
    write_second_moments(tmp_path / "other.v", random, SecondMomentsMetadata("adam", "AdamW", 0.999, 2000))
    found = merged(Ota(), models, {"one": report.path, "other": tmp_path / "other.v"})
    assert same_bytes(found, merged(Ota(), models, {"one": tmp_path / "live.v", "other": tmp_path / "other.v"}))
    assert not same_bytes(found, merged(Ota(), models, {"one": tmp_path / "other.v", "other": tmp_path / "other.v"}))
    assert found.keys() == {name for name, _ in model.named_parameters()}


def test_factors_of_stacked_matrices_are_multiplied_out() -> None:
    from harness.curvature.export.entries import read_entry
    from harness.curvature.export.state import StoredState

    parameter = nn.Parameter(torch.randn(2, 3, 4))
    optimizer = Adafactor([parameter], lr=1e-3, relative_step=False, scale_parameter=False)
    (parameter**2).sum().backward()
    optimizer.step()
    state = {
        n: StoredState(tuple(v.shape), lambda v=v: v)
        for n, v in optimizer.state[parameter].items()
        if hasattr(v, "shape")
    }
    entry = read_entry("here", state)
    assert entry is not None and entry.moments.shape == (2, 3, 4)
    found = entry.moments.read()[""]
    rows, columns = optimizer.state[parameter]["exp_avg_sq_row"], optimizer.state[parameter]["exp_avg_sq_col"]
    for matrix in (0, 1):
        expected = torch.outer(rows[matrix], columns[matrix]) / rows[matrix].mean()
        torch.testing.assert_close(found[matrix], expected, rtol=1e-5, atol=0)
