"""Files and folders are whole or absent, and readable by whom the umask says."""

import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.files import canonical_json, file_digest, folder_written_atomically, text_digest, write_text_atomically


def test_a_folder_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    with folder_written_atomically(tmp_path / "a" / "final") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "a" / "final").exists()
    assert (tmp_path / "a" / "final" / "file").read_text() == "x"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["final"]


def test_a_failure_leaves_the_former_folder(tmp_path: Path) -> None:
    with folder_written_atomically(tmp_path / "final") as folder:
        (folder / "file").write_text("old")
    with pytest.raises(RuntimeError), folder_written_atomically(tmp_path / "final") as folder:
        (folder / "file").write_text("new")
        raise RuntimeError
    assert (tmp_path / "final" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with folder_written_atomically(tmp_path / "final") as folder:
            save_file({"p": torch.ones(1)}, folder / "model.safetensors")
        write_text_atomically(tmp_path / "text", "x")
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.rglob("*")}
    assert modes == {"final": "0o755", "model.safetensors": "0o644", "text": "0o644"}


def test_texts_are_replaced_whole(tmp_path: Path) -> None:
    write_text_atomically(tmp_path / "file", "one")
    write_text_atomically(tmp_path / "file", "two")
    assert (tmp_path / "file").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_canonical_json_is_one_text_for_one_value() -> None:
    assert canonical_json({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'
    assert text_digest(canonical_json({"a": 1, "b": 2})) == text_digest(canonical_json({"b": 2, "a": 1}))
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


def test_a_digest_follows_every_change(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    assert file_digest(file) == text_digest("one")
    file.write_text("two")
    assert file_digest(file) == text_digest("two")
    os.utime(file, (1, 1))
    assert file_digest(file) == text_digest("two")
    time.sleep(2.1)
    assert file_digest(file) == text_digest("two")
    file.write_text("six")
    os.utime(file, (1, 1))
    assert file_digest(file) == text_digest("six"), "same size and time of writing, yet another content"
