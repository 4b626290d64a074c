"""From momentum-aware training to a merge, through the files that it leaves."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from harness.cli import main
from harness.curvature import SecondMoments, Umtam, save_umtam
from harness.curvature.second_moments import FILE_NAME
from harness.curvature.umtam_files import SALIENCY_FILE_NAME
from harness.errors import GraftbenchError
from tests.checkpoints.llama import TOKENS
from tests.curvature.export.live import tied_model, train


def trained(steps: int = 3, **options: object) -> tuple[torch.nn.Module, Umtam]:
    model = tied_model()
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    optimizer = Umtam(
        model.parameters(),
        **{"lr": 0.01, "betas": (0.9, 0.95), "rank": 2, "dense_below": 300, **options},  # type: ignore[arg-type]
    )
    train(model, optimizer, steps)
    return model, optimizer


def test_the_file_holds_the_live_second_moments_of_every_trained_parameter(tmp_path: Path) -> None:
    model, optimizer = trained()
    paths = save_umtam(optimizer, model, tmp_path / "expert", base_digest="abc")
    expected, factored = {}, 0
    for name, parameter in model.named_parameters():
        if state := optimizer.state.get(parameter):
            factored += "row" in state
            whole = "exp_avg_sq" in state
            expected[name] = (
                state["exp_avg_sq"] if whole else torch.outer(state["row"] / state["row"].sum(), state["col"])
            )
    assert 0 < factored < len(expected), "some are factored, and some are not"
    with SecondMoments(paths[FILE_NAME]) as moments:
        assert moments.shapes == {name: tuple(value.shape) for name, value in expected.items()}
        for name, value in expected.items():
            torch.testing.assert_close(moments.read(name), value, rtol=1e-5, atol=0)
        metadata = moments.metadata
    assert (metadata.kind, metadata.optimizer, metadata.beta2, metadata.step) == ("adam", "Umtam", 0.95, 3)
    assert (metadata.base_digest, metadata.bias_corrected, metadata.compression) == (
        "abc",
        False,
        "row and column sums",
    )
    assert metadata.correction == pytest.approx(1 / (1 - 0.95**3))


def test_the_other_file_holds_the_saliency_of_every_entry(tmp_path: Path) -> None:
    model, optimizer = trained()
    path = save_umtam(optimizer, model, tmp_path)[SALIENCY_FILE_NAME]
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = load_file(path)
    assert found.keys() == names.keys()
    assert all(torch.equal(found[name], optimizer.state[p]["saliency"]) for name, p in names.items())
    assert all(value.any() and (value >= 0).all() for value in found.values())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "graftbench.saliency"}


def test_without_saliency_there_is_no_file_of_it(tmp_path: Path) -> None:
    model, optimizer = trained(saliency=False)
    assert save_umtam(optimizer, model, tmp_path).keys() == {FILE_NAME}
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_another_optimizer_and_one_without_a_step_are_refused(tmp_path: Path) -> None:
    model = tied_model()
    with pytest.raises(GraftbenchError, match="AdamW, not Umtam"):
        save_umtam(torch.optim.AdamW(model.parameters()), model, tmp_path)
    with pytest.raises(GraftbenchError, match=r"no step of 'model\.embed_tokens\.weight'"):
        save_umtam(Umtam(model.parameters()), model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_two_experts_trained_so_are_merged_by_the_command(tmp_path: Path) -> None:
    base = tied_model()
    base.save_pretrained(tmp_path / "base")
    steps = {"one": 3, "other": 5}
    for name, count in steps.items():
        model = tied_model()
        optimizer = Umtam(model.parameters(), lr=0.01, betas=(0.9, 0.95), rank=2, dense_below=300)
        # Other tokens for each, so that they learn other things.
        generator = torch.Generator().manual_seed(count)
        for _ in range(count):
            tokens = torch.randint(0, TOKENS, (2, 6), generator=generator)
            optimizer.zero_grad()
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
        model.save_pretrained(tmp_path / name)
        save_umtam(optimizer, model, tmp_path / name)
    experts = [f"zoo.experts.{name}={tmp_path / name}" for name in steps]
    out = tmp_path / "merged"
    main(["merge", "method=umtam", f"zoo.base={tmp_path / 'base'}", *experts, f"out={out}", f"home={tmp_path}"])
    assert "umtam" in (out / "merge.json").read_text(encoding="utf-8")
    merged, before = load_file(out / "model.safetensors"), load_file(tmp_path / "base" / "model.safetensors")
    assert merged.keys() == before.keys()
    kept = sum(int((merged[name] != before[name]).sum()) for name in before)
    entries = sum(value.numel() for value in before.values())
    assert 0.4 * entries <= kept <= 0.8 * entries, "two experts keep 40 % each, and where both do they elect a sign"
