"""The store under several processes that write and read at the same time, and are killed while they do."""

import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from harness.results import Store
from harness.results.store import ABANDONED_SECONDS
from tests.results.test_records import record

FORK = multiprocessing.get_context("fork")
ITEMS = 400


def answers_of(writer: int, size: int = ITEMS) -> pa.Table:
    """Large enough that writing them takes a while."""
    return pa.table({"writer": [writer] * size, "answer": [f"answer {number} of {writer}" for number in range(size)]})


def write_for_ever(root: Path, writer: int) -> None:
    while True:
        Store(root).put(replace(record("k"), label=f"writer {writer}"), answers_of(writer))


def write(root: Path, writer: int, times: int) -> None:
    for _ in range(times):
        Store(root).put(replace(record("k"), label=f"writer {writer}"), answers_of(writer))


def check_whole(root: Path) -> None:
    """The record is one of the writers', and so are its answers."""
    found = Store(root).get("k")
    assert found is not None and found.label.startswith("writer ")
    assert replace(found, label="ties") == record("k")
    assert pq.read_table(root / "k.parquet").num_rows == ITEMS


def test_two_writers_of_one_key_and_a_reader(tmp_path: Path) -> None:
    write(tmp_path, 0, times=1)
    writers = [FORK.Process(target=write, args=(tmp_path, number, 60)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        check_whole(tmp_path)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    last = Store(tmp_path).get("k")
    assert last is not None and last.label in ("writer 1", "writer 2")
    of = set(pq.read_table(tmp_path / "k.parquet").column("writer").to_pylist())
    assert of == {int(last.label.split()[1])}, "the answers are those of the record's own writer"
    assert not list(tmp_path.glob(".*.partial"))


def test_killed_writers_leave_whole_files_and_hold_up_nobody(tmp_path: Path) -> None:
    write(tmp_path, 0, times=1)
    moments = random.Random(7)
    for _ in range(20):
        writers = [FORK.Process(target=write_for_ever, args=(tmp_path, number)) for number in (1, 2)]
        for writer in writers:
            writer.start()
        time.sleep(moments.uniform(0.0, 0.06))
        for writer in writers:
            writer.kill()
        for writer in writers:
            writer.join()
            assert writer.exitcode == -signal.SIGKILL
        check_whole(tmp_path)
    write(tmp_path, 3, times=1)
    assert [found.label for found in Store(tmp_path).records()] == ["writer 3"]


def test_what_killed_writers_left_is_removed_some_day(tmp_path: Path) -> None:
    old, new = tmp_path / ".k.json.a.partial", tmp_path / ".k.json.b.partial"
    for file in (old, new):
        file.write_text("{")
    long_ago = time.time() - 2 * ABANDONED_SECONDS
    os.utime(old, (long_ago, long_ago))
    Store(tmp_path).put(record())
    assert new.exists() and not old.exists()
