"""From what a user names to a checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.checkpoints.adapter import AdaptedCheckpoint
from harness.checkpoints.averaged import AveragedCheckpoint
from harness.checkpoints.layout import Checkpoint
from harness.checkpoints.opening import open_checkpoint, split_adapter
from harness.errors import GraftbenchError
from tests.checkpoints.small import write_checkpoint


def base(folder: Path, value: float = 0.0) -> Path:
    return write_checkpoint(folder, {"l.weight": torch.full((1, 2), value)})


def adapter(folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    factors = {"l.lora_A.weight": torch.tensor([[1.0, 2.0]]), "l.lora_B.weight": torch.tensor([[4.0]])}
    save_file(factors, folder / "adapter_model.safetensors")
    return folder


def test_a_folder_is_a_checkpoint(tmp_path: Path) -> None:
    assert isinstance(open_checkpoint(base(tmp_path / "m")), Checkpoint)


def test_base_plus_adapter(tmp_path: Path) -> None:
    source = f"{base(tmp_path / 'm')}+{adapter(tmp_path / 'a')}"
    checkpoint = open_checkpoint(source)
    assert isinstance(checkpoint, AdaptedCheckpoint)
    assert checkpoint.is_adapter
    assert checkpoint.source == source
    assert checkpoint.read("l.weight").tolist() == [[4.0, 8.0]]


def test_a_folder_with_a_plus_in_its_name_wins(tmp_path: Path) -> None:
    base(tmp_path / "m")
    adapter(tmp_path / "a+b")
    assert open_checkpoint(f"{tmp_path}/m+{tmp_path}/a+b").read("l.weight").tolist() == [[4.0, 8.0]]
    assert isinstance(open_checkpoint(base(tmp_path / "c++")), Checkpoint)
    for name in ("x", "x+y", "y+z", "z"):
        base(tmp_path / name)
    assert split_adapter(f"{tmp_path}/x+y") == (f"{tmp_path}/x+y", None)


def test_an_ambiguous_plus_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x", "x+y", "y+z", "z"):
        base(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GraftbenchError, match=r"'x' with 'y\+z' or 'x\+y' with 'z'"):
        open_checkpoint("x+y+z")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("owner/base+owner/adapter", ("owner/base", "owner/adapter")),
        ("owner/base@v1+owner/adapter@main", ("owner/base@v1", "owner/adapter@main")),
        ("owner/base", ("owner/base", None)),
    ],
)
def test_hub_names_have_no_plus(source: str, expected: tuple[str, str | None]) -> None:
    assert split_adapter(source) == expected


def test_the_missing_part_is_named(tmp_path: Path) -> None:
    base(tmp_path / "m")
    with pytest.raises(GraftbenchError, match=r"base\+adapter it names '.*/nothing'"):
        open_checkpoint(f"{tmp_path}/m+{tmp_path}/nothing")


def test_an_adapter_alone_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(GraftbenchError, match=r"is a PEFT adapter, not a model; .*BASE\+"):
        open_checkpoint(adapter(tmp_path / "a"))


def test_several_checkpoints_are_averaged(tmp_path: Path) -> None:
    one, other = base(tmp_path / "one", 1.0), base(tmp_path / "other", 4.0)
    adapted = f"{one}+{adapter(tmp_path / 'a')}"
    checkpoint = open_checkpoint([adapted, str(other)])
    assert isinstance(checkpoint, AveragedCheckpoint)
    assert checkpoint.is_adapter
    assert checkpoint.read("l.weight").tolist() == [[4.5, 6.5]]
    assert isinstance(open_checkpoint([other]), Checkpoint)
    with pytest.raises(GraftbenchError, match="empty list"):
        open_checkpoint([])
