"""`graftbench moments compress` at the command line."""

import json
from pathlib import Path

import pytest
import torch

from harness.cli import main
from harness.curvature import SecondMoments, SecondMomentsMetadata, write_second_moments
from tests.merging.models import SHAPES, Models


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, experts and their second moments, where the command is typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRAFTBENCH_HOME", str(tmp_path / "home"))
    Models(tmp_path)
    return tmp_path


@pytest.mark.parametrize("form", ["sums", "rank", "blocks"])
def test_the_command_writes_the_form_and_reports_what_it_costs(
    folder: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["base=base", "expert=math", "densities=[0.1,0.5]", "report=report.json"]
    main(["moments", "compress", "source=math.v", "out=small.safetensors", f"format={form}", *models])
    report = json.loads((folder / "report.json").read_text())
    full, small = folder / "math.v", folder / "small.safetensors"
    assert report["bytes_before"] == full.stat().st_size > report["bytes_after"] == small.stat().st_size
    assert (report["parameters"], report["kept_whole"], report["format"]) == (4, 2, form)
    with SecondMoments(full) as before, SecondMoments(small) as after:
        errors = torch.cat([(before.read(n).log10() - after.read(n).log10()).flatten().abs() for n in SHAPES])
        assert after.stored("model.layers.0.self_attn.q_proj.weight").form == form
    assert report["reconstruction"]["compared"] == len(errors)
    assert report["reconstruction"]["mean_error"] == pytest.approx(float(errors.double().mean()), rel=1e-3)
    overlaps = {each["density"]: each["iou"] for each in report["overlap"]}
    assert overlaps.keys() == {0.1, 0.5}
    assert all(0.99 < iou <= 1 if form == "blocks" else 0.2 < iou < 1 for iou in overlaps.values())
    said = capsys.readouterr().out
    assert "wrote small.safetensors: 4 parameters, 2 of them whole" in said
    assert f"{overlaps[0.5]:.3f}" in said


def test_a_folder_gets_the_file_under_its_usual_name(folder: Path) -> None:
    fisher = SecondMomentsMetadata(kind="fisher")
    write_second_moments(folder / "f.safetensors", {"p": torch.ones(9, 9)}, fisher)
    main(["moments", "compress", "source=f.safetensors", "out=small"])
    with SecondMoments(folder / "small" / "fisher.safetensors") as moments:
        assert moments.metadata == SecondMomentsMetadata(kind="fisher", compression="row and column sums")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["source=math.v", "out=out", "format=zip"], "unknown format 'zip'"),
        (["source=math.v", "out=out", "rank=0"], "rank=0 must be 1 or more"),
        (["source=math.v", "out=out", "expert=math"], "base is not set"),
        (["source=math.v", "out=out", "densities=[1.5]"], "densities: 1.5 must lie in 0..1"),
        (["source=nowhere", "out=out.safetensors"], "second moments nowhere do not exist"),
        (["source=math.v", "out=math/model.safetensors"], "math/model.safetensors exists already"),
    ],
)
def test_bad_options_are_refused(
    folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["moments", "compress", *arguments])
    assert stopped.value.code == 1
    assert said in capsys.readouterr().err.replace("\n", " ")
