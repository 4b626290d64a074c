"""Files and folders are whole or absent, and readable by whom the umask says."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.files import (
    canonical_json,
    digests_kept_in,
    file_digest,
    folder_written_atomically,
    readable_size,
    text_digest,
    write_text_atomically,
)


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


def test_another_process_knows_the_digests_of_large_files_until_they_change(tmp_path: Path) -> None:
    large, small, kept = tmp_path / "large file", tmp_path / "small", tmp_path / "digests.json"
    large.write_bytes(b"a" * 10**7)
    small.write_bytes(b"a")
    time.sleep(2.1)
    with digests_kept_in(kept):
        digest = file_digest(large)
        file_digest(small)
    entries = json.loads(kept.read_text())
    assert list(entries.values()) == [digest]
    kept.write_text(json.dumps(dict.fromkeys(entries, "what another process said")))
    asked = f"from pathlib import Path\nfrom harness.files import *\nwith digests_kept_in(Path({str(kept)!r})):\n"
    asked += f"    print(file_digest(Path({str(large)!r})))"

    def another_process() -> str:
        return subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()

    assert another_process() == "what another process said"
    large.write_bytes(b"b" * 10**7)
    assert another_process() == hashlib.sha256(b"b" * 10**7).hexdigest()
    kept.write_text("not JSON")
    assert another_process() == hashlib.sha256(b"b" * 10**7).hexdigest()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (45_649, "45.6 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (1_234_000_000, "1.23 GB"),
        (140 * 10**9, "140 GB"),
        (2 * 10**12, "2 TB"),
        (3 * 10**15, "3000 TB"),
    ],
)
def test_a_size_is_written_in_a_unit_that_fits(count: int, text: str) -> None:
    assert readable_size(count) == text
