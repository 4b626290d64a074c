"""Merges that are really killed: nothing looks whole, and the same merge goes on where it was."""

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from harness.errors import GraftbenchError
from harness.merging.journal import FILE_NAME, Journal, unfinished_path
from tests.checkpoints.small import write_checkpoint
from tests.merging.blocking import merge, started, until

TENSORS = [f"t{i}" for i in range(8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two experts, and an open gate."""
    folder = tmp_path_factory.mktemp("inputs")
    for seed, name in enumerate(("base", "x", "y")):
        generator = torch.Generator().manual_seed(seed)
        write_checkpoint(folder / name, {tensor: torch.randn(50, 40, generator=generator) for tensor in TENSORS})
    return folder


@pytest.fixture
def gate(folder: Path) -> Path:
    """The gate, shut."""
    gate = folder / "gate"
    gate.unlink(missing_ok=True)
    return gate


def weights(out: Path) -> dict[str, bytes]:
    """The weights' files, index included, by name."""
    return {file.name: file.read_bytes() for file in sorted(out.glob("model*"))}


def names(out: Path) -> list[str]:
    return sorted(file.name for file in out.iterdir())


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The weights of merges that nobody interrupted; they do not depend on where the others stop."""
    (folder / "gate").touch()
    out = tmp_path_factory.mktemp("whole") / "out"
    assert merge(folder, out, "t0").resumed == 0
    return weights(out)


def killed(folder: Path, out: Path, stop: int, threads: int = 1, **options: object) -> None:
    """Kill a merge that blocks at a tensor, and see that its workers go."""
    with started(folder, out, f"t{stop}", threads, **options) as running:
        running.wait_for(stop)
        workers = running.workers()
        assert len(workers) == (threads if threads > 1 else 0)
        running.end(signal.SIGKILL)
        until(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers), "workers")
    assert not out.exists()
    assert unfinished_path(out).exists()


@pytest.mark.parametrize(("stop", "threads"), [(0, 1), (4, 2), (7, 1)])
def test_a_killed_merge_goes_on_where_it_was(
    tmp_path: Path, folder: Path, whole: dict[str, bytes], gate: Path, stop: int, threads: int
) -> None:
    out = tmp_path / "out"
    killed(folder, out, stop, threads)
    gate.touch()
    report = merge(folder, out, f"t{stop}")
    assert report.resumed == stop
    assert weights(out) == whole
    assert names(tmp_path) == ["out"]
    assert FILE_NAME not in names(out)


@pytest.fixture(scope="module")
def interrupted(folder: Path, whole: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a merge left that was killed at t5, to be copied by each test that goes on with it."""
    (folder / "gate").unlink(missing_ok=True)
    out = tmp_path_factory.mktemp("killed") / "out"
    killed(folder, out, 5, shard_bytes=20_000)
    (folder / "gate").touch()
    return unfinished_path(out)


@pytest.fixture
def out(tmp_path: Path, interrupted: Path) -> Path:
    """A name under which that merge was interrupted."""
    out = tmp_path / "out"
    unfinished = unfinished_path(out)
    unfinished.mkdir()
    for file in interrupted.iterdir():
        (unfinished / file.name).write_bytes(file.read_bytes())
    return out


@pytest.fixture(scope="module")
def whole_in_shards(folder: Path, interrupted: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "out"
    merge(folder, out, "t5", shard_bytes=20_000)
    return weights(out)


def test_shards_go_on_too(folder: Path, out: Path, whole_in_shards: dict[str, bytes]) -> None:
    assert merge(folder, out, "t5", shard_bytes=20_000).resumed == 5
    assert weights(out) == whole_in_shards
    assert len(whole_in_shards) == 5  # four shards of two tensors, and an index


def test_another_merge_of_the_same_name_starts_over(
    tmp_path: Path, folder: Path, out: Path, whole: dict[str, bytes]
) -> None:
    """The other one has other shards: nothing of the first may stay beside them."""
    assert merge(folder, out, "t4").resumed == 0
    assert weights(out) == whole
    merge(folder, tmp_path / "afresh", "t4")
    assert names(out) == names(tmp_path / "afresh")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_data_type_starts_over(tmp_path: Path, folder: Path, out: Path, dtype: str) -> None:
    assert merge(folder, out, "t5", shard_bytes=20_000, dtype=dtype).resumed == 0
    merge(folder, tmp_path / "afresh", "t5", shard_bytes=20_000, dtype=dtype)
    assert weights(out) == weights(tmp_path / "afresh")


@pytest.mark.parametrize("cut", [1, 20, 66])
def test_a_line_of_the_journal_that_was_cut_is_done_again(
    folder: Path, out: Path, whole_in_shards: dict[str, bytes], cut: int
) -> None:
    journal = unfinished_path(out) / FILE_NAME
    text = journal.read_text()
    last = text.splitlines()[-1]
    assert len(last) > cut
    journal.write_text(text[: -1 - cut])
    assert merge(folder, out, "t5", shard_bytes=20_000).resumed == 4
    assert weights(out) == whole_in_shards


@pytest.mark.parametrize("garbage", [b"", b"\x00" * 100, b"\xff\xfe garbage", b"[]\n3\n"])
def test_a_journal_that_cannot_be_read_starts_over(
    folder: Path, out: Path, whole_in_shards: dict[str, bytes], garbage: bytes
) -> None:
    (unfinished_path(out) / FILE_NAME).write_bytes(garbage)
    assert merge(folder, out, "t5", shard_bytes=20_000).resumed == 0
    assert weights(out) == whole_in_shards


@pytest.mark.parametrize("line", [b"\x00" * 50, b"\xff\xfe", b"3", b'["t0"]', b"null"])
def test_garbage_at_the_journals_end_is_no_progress(
    folder: Path, out: Path, whole_in_shards: dict[str, bytes], line: bytes
) -> None:
    """What a machine may leave when its power fails."""
    journal = unfinished_path(out) / FILE_NAME
    journal.write_bytes(journal.read_bytes() + line)
    assert merge(folder, out, "t5", shard_bytes=20_000).resumed <= 5
    assert weights(out) == whole_in_shards


def test_a_shard_that_was_damaged_is_done_again(folder: Path, out: Path, whole_in_shards: dict[str, bytes]) -> None:
    shard = unfinished_path(out) / "model-00001-of-00004.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # the last entry of t1
    shard.write_bytes(content)
    assert merge(folder, out, "t5", shard_bytes=20_000).resumed == 4
    assert weights(out) == whole_in_shards


@pytest.mark.parametrize("kept", [0, 100, 9_000])
def test_a_shard_that_was_cut_is_done_again(
    folder: Path, out: Path, whole_in_shards: dict[str, bytes], kept: int
) -> None:
    os.truncate(unfinished_path(out) / "model-00002-of-00004.safetensors", kept)
    assert merge(folder, out, "t5", shard_bytes=20_000).resumed == (4 if kept == 9_000 else 3)
    assert weights(out) == whole_in_shards


def test_a_shard_that_is_gone_is_done_again(folder: Path, out: Path, whole_in_shards: dict[str, bytes]) -> None:
    (unfinished_path(out) / "model-00001-of-00004.safetensors").unlink()
    assert merge(folder, out, "t5", shard_bytes=20_000).resumed == 3
    assert weights(out) == whole_in_shards


def test_two_processes_do_not_make_the_same_folder(
    tmp_path: Path, folder: Path, whole: dict[str, bytes], gate: Path
) -> None:
    out = tmp_path / "out"
    with started(folder, out, "t3") as running:
        running.wait_for(3)
        with pytest.raises(GraftbenchError, match=rf"another process is making {out} at this moment; wait for it"):
            merge(folder, out, "t3")
        gate.touch()
        assert running.process.wait(60) == 0
    assert weights(out) == whole
    with pytest.raises(GraftbenchError, match=f"{out} exists already"):
        merge(folder, out, "t3")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_merge_that_was_told_to_end_goes_on_too(
    tmp_path: Path, folder: Path, whole: dict[str, bytes], gate: Path, number: int
) -> None:
    out = tmp_path / "out"
    with started(folder, out, "t3", threads=2) as running:
        running.wait_for(3)
        workers = running.workers()
        running.process.send_signal(number)
        gate.touch()  # the piece at work is finished
        assert running.process.wait(60) != 0
        until(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers), "workers")
    assert not out.exists()
    assert merge(folder, out, "t3").resumed >= 3
    assert weights(out) == whole


def test_a_journal_notes_what_is_finished(tmp_path: Path) -> None:
    file = tmp_path / FILE_NAME
    journal = Journal(file, "identity")
    journal.add('a "name"\n', "1")
    journal.add("b", "2")
    assert Journal(file, "identity").finished == {'a "name"\n': "1", "b": "2"}
    assert Journal(file, "identity").finished == {'a "name"\n': "1", "b": "2"}
    assert Journal(file, "another").finished == {}
    assert Journal(file, "identity").finished == {}


def test_headers_are_there_before_the_weights(interrupted: Path) -> None:
    """What is left of a killed merge is readable, which is why it does not lie under the final name."""
    with safe_open(interrupted / "model-00001-of-00004.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == ["t0", "t1"]
