"""`graftbench moments export` at the command line."""

from pathlib import Path

import pytest
import torch

from harness.cli import main
from tests.curvature.export.live import adamw, constants, plant, read_constants, saved, tied_model, train


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder with a model and its optimizer, where the command is typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRAFTBENCH_HOME", str(tmp_path / "home"))
    model = tied_model()
    optimizer = adamw(model)
    train(model, optimizer)
    plant(model, optimizer)
    torch.save(optimizer.state_dict(), saved(tmp_path / "run", model) / "state.pt")
    return tmp_path


def test_the_command_writes_the_file_and_says_what_it_holds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["moments", "export", "source=run/state.pt", "out=moments"])
    assert read_constants(folder / "moments" / "exp_avg_sq.safetensors") == constants(tied_model())
    said = capsys.readouterr().out
    assert "second moments of 20 parameters" in said and "AdamW, step 3, β₂ 0.95, learning rate 0.001" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["source=run/state.pt", "out=out", "format=pickle"], "unknown format 'pickle'"),
        (["source=nowhere", "out=out"], "source=nowhere does not exist"),
        (["source=run/state.pt"], "option out needs a value"),
        (["source=run/config.json", "model=run", "out=out"], "config.json is not a whole PyTorch file"),
        (["source=run", "out=out"], "run holds no optimizer state that is known (trainer: "),
        (["source=run/state.pt", "out=run/model.safetensors"], "run/model.safetensors exists already"),
    ],
)
def test_bad_options_are_refused(
    folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["moments", "export", *arguments])
    assert stopped.value.code == 1
    assert said in capsys.readouterr().err.replace("\n", " ")
