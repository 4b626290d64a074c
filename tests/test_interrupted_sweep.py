"""A sweep that is killed at random moments and started again ends as one that ran through."""

import contextlib
import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch

from harness.results import Record, Store
from harness.zoo.tiny.items import CAPABILITIES, Counts, generate_items, write_splits
from harness.zoo.tiny.tokenizer import build_tokenizer, save_tokenizer
from tests.checkpoints.llama import llama

KILLS = 10
METHODS = ("linear", "ties", "dare", "dare_ties")


class Sweeps:
    """Command lines of graftbench, each in a process group of its own; see forking_sweeps.py."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.forking_sweeps"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            cwd=Path(__file__).parents[1],
        )

    def run(self, arguments: list[str], seconds: float | None = None) -> int:
        """Run to the end, or kill the whole process group after so many seconds; the exit code, or minus the signal.
        No process that it had started is left."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        group = int(self.process.stdout.readline())
        if seconds is not None:
            time.sleep(seconds)
            try:
                started = psutil.Process(group).children(recursive=True)
            except psutil.NoSuchProcess:
                started = []
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            assert not psutil.wait_procs(started, timeout=30)[1]
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweeps]:
    sweeps = Sweeps(tmp_path_factory.mktemp("log") / "stderr")
    yield sweeps
    assert sweeps.process.stdin is not None
    sweeps.process.stdin.close()
    sweeps.process.wait()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A random base and two experts near it, and a few items of the embedded tasks."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = build_tokenizer(256)
    model = llama(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    for name in ("base", "math", "code"):
        model.save_pretrained(folder / name)
        save_tokenizer(tokenizer, folder / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    for capability in CAPABILITIES:
        items = folder / "data/graftbench/tiny" / capability
        items.mkdir(parents=True)
        write_splits(items, generate_items(capability, 0, Counts(train=8, validation=8, test=8)))
    return [
        "zoo=custom",
        f"zoo.base={folder / 'base'}",
        *(f"zoo.experts.{name}={folder / name}" for name in ("math", "code")),
        f"suite.data_root={folder / 'data'}",
        "suite.limit=3",
        "backend=hf",
    ]


def test_killed_ten_times_it_ends_with_the_same_records_and_board(
    sweeps: Sweeps, settings: list[str], tmp_path: Path
) -> None:
    sweep = ["run", "-m", f"method={','.join(METHODS)}", *settings]
    through, killed = tmp_path / "through", tmp_path / "killed"
    started = time.monotonic()
    assert sweeps.run([*sweep, f"home={through}"]) == 0
    needed = time.monotonic() - started

    moments = random.Random(3)
    ended = [sweeps.run([*sweep, f"home={killed}"], moments.uniform(0, 0.16) * needed) for _ in range(KILLS)]
    assert set(ended) <= {-signal.SIGKILL, 0} and ended.count(-signal.SIGKILL) >= KILLS // 2, ended
    for record in Store(killed / "results").records():  # as far as it came
        assert comparable(record) == comparable(of_key(through, record.key))
    assert sweeps.run([*sweep, f"home={killed}"]) == 0, sweeps.log.read_text(encoding="utf-8")[-3000:]

    keys = [record.key for record in Store(through / "results").records()]
    assert len(keys) == len(METHODS)
    assert [record.key for record in Store(killed / "results").records()] == keys
    for key in keys:
        assert comparable(of_key(killed, key)) == comparable(of_key(through, key))
        assert answers(killed, key) == answers(through, key)
    assert board(sweeps, killed, settings) == board(sweeps, through, settings)
    assert not list((killed / "merges").glob("*/")), "what killed runs have left there is removed by later ones"


def comparable(record: Record) -> Record:
    """Without what differs from run to run."""
    costs = {name: cost for name, cost in record.costs.items() if name != "peak_memory_bytes"}
    return replace(record, timings={}, costs=costs)


def of_key(home: Path, key: str) -> Record:
    record = Store(home / "results").get(key)
    assert record is not None
    return record


def answers(home: Path, key: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(home / "results" / f"{key}.parquet").to_pylist()
    return rows


def board(sweeps: Sweeps, home: Path, settings: list[str]) -> list[dict[str, str]]:
    """The board's rows, without how long each merge took, and how much memory."""
    assert sweeps.run(["leaderboard", *settings, f"home={home}", f"out={home / 'board'}"]) == 0
    rows = list(csv.DictReader(io.StringIO((home / "board/leaderboard.csv").read_text(encoding="utf-8"))))
    assert [row for row in rows if row.pop("merge_seconds") and row.pop("peak_memory_bytes")] == rows
    return rows
