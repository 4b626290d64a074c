"""The benchmark refuses what it cannot run on, before it makes checkpoints of gigabytes or measures for hours."""

import sys
from pathlib import Path

import pytest

from benchmarks.options import read_options


@pytest.fixture(autouse=True)
def no_mergekit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFTBENCH_MERGEKIT_PYTHON", raising=False)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        read_options([*map(str, arguments), "--graftbench", sys.executable])
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_folder_is_made_and_its_own_files_are_no_obstacle(tmp_path: Path) -> None:
    options = read_options([str(tmp_path / "new" / "set"), "--graftbench", sys.executable, "--sizes", "tiny"])
    assert options.folder.is_dir() and options.sizes == ["tiny"] and options.mergekit_python is None
    (options.folder / "llama-tiny").mkdir()
    (options.folder / "merge_speed.json").touch()
    assert read_options([str(options.folder), "--graftbench", sys.executable]).folder == options.folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "0.3b"], "argument --sizes: invalid choice: '0.3b'"),
        (["--repeat", "0"], "argument --repeat: 0 is no number of runs, 1 or more"),
        (["--repeat", "few"], "argument --repeat: few is no number of runs"),
        (["--device", "gpu"], "--device gpu: name cpu, cuda or cuda:N"),
        (["--override", "memory"], "--override memory: options of graftbench are written name=value"),
        (["--mergekit-python", "/nowhere/python"], "--mergekit-python: /nowhere/python is no program; name the python"),
        (["--mergekit-python", sys.executable + "x"], "is no program; name the python of an environment with mergekit"),
        (["--report", "/nowhere/report.md"], "--report /nowhere/report.md: name a file in a folder that exists"),
        (["--report", "/"], "--report /: name a file in a folder that exists"),
    ],
)
def test_bad_options_are_named(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, tmp_path / "set", *options)


def test_an_unknown_command_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options([str(tmp_path), "--graftbench", "graftbensh --fast"])
    assert "--graftbench graftbensh --fast: there is no such command" in capsys.readouterr().err


def test_a_folder_of_something_else_is_not_written_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").touch()
    (tmp_path / "data").mkdir()
    told = refused(capsys, tmp_path)
    assert f"{tmp_path} holds 'data' and 1 more, which is not of this benchmark; name an empty folder" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "thesis.tex"]


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file'} is a file; name a folder" in refused(capsys, tmp_path / "file")
    assert "set cannot be written to (Not a directory); name another folder" in refused(
        capsys, tmp_path / "file" / "set"
    )
    assert "cannot be written to" in refused(capsys, "/proc/set")
