"""`graftbench merge` on small checkpoints: sweeps, and what an interruption leaves."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.cli import main
from harness.merging.journal import FILE_NAME
from tests.checkpoints.small import write_checkpoint
from tests.merging.blocking import PATIENCE_SECONDS, until

WAITING = '''
import time
from dataclasses import dataclass
from pathlib import Path
from methods import Method

@dataclass(frozen=True, kw_only=True)
class Waiting(Method):
    """The mean of the experts; at t2 it waits for a file."""

    gate: str = ""
    """The file."""

    def merge(self, parameter):
        while parameter.name == "t2" and not Path(self.gate).exists():
            time.sleep(0.01)
        return parameter.experts.mean(dim=0)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base and two experts, where the command is typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRAFTBENCH_HOME", str(tmp_path / "home"))
    for seed, name in enumerate(("base", "x", "y")):
        generator = torch.Generator().manual_seed(seed)
        write_checkpoint(tmp_path / name, {f"t{i}": torch.randn(9, generator=generator) for i in range(4)})
    return tmp_path


MODELS = ("zoo.base=base", "zoo.experts.x=x", "zoo.experts.y=y")


def test_a_sweep_puts_what_varies_into_the_name(folder: Path) -> None:
    main(["merge", "-m", "method=linear,ties", *MODELS, "out=merges/${method.name}"])
    assert sorted(path.name for path in (folder / "merges").iterdir()) == ["linear", "ties"]
    main(["merge", "-m", "method=ties", "method.density=0.1,0.5", *MODELS, "out=ties-${method.density}"])
    for density in (0.1, 0.5):
        recipe = json.loads((folder / f"ties-{density}" / "merge.json").read_text())["recipe"]
        assert recipe["hyperparameters"]["density"] == density


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_merge_says_so_and_goes_on(folder: Path, number: signal.Signals) -> None:
    (folder / "waiting.py").write_text(WAITING)
    command = ["merge", "method.path=waiting.py", "method.gate=gate", *MODELS, "out=out", "threads=2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    journal = folder / ".out.unfinished" / FILE_NAME
    process = subprocess.Popen(
        [sys.executable, "-m", "harness", *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts jobs in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        until(lambda: process.poll() is not None or _lines(journal) == 3, "two finished tensors")
        process.send_signal(number)
        (folder / "gate").touch()  # the piece at work is finished
        told = process.communicate(timeout=PATIENCE_SECONDS)[1]
    finally:
        process.kill()
    assert process.returncode == 130, told
    assert "interrupted; what was finished is kept, and the same command goes on from there" in told
    assert "Traceback" not in told
    assert not (folder / "out").exists() and _lines(journal) >= 3
    main(command)
    assert (folder / "out" / "merge.json").is_file()
    assert not journal.parent.exists()


def _lines(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0
