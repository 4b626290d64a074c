"""Checkpoints of DeepSpeed's ZeRO: its own where it is installed, else in the layout that it writes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from harness.curvature.export import export_second_moments
from harness.errors import GraftbenchError
from tests.curvature.export.deepspeed_script import STAGES, partly_frozen, planted
from tests.curvature.export.live import assert_merges_like_live, saved, tied_model
from tests.curvature.export.zero_shards import write_zero

ROOT = Path(__file__).parents[3]
OPTIMIZER = "bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt"


def in_groups(values: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Matrices, then vectors: the groups of weight decay."""
    return [{n: v for n, v in values.items() if (v.dim() > 1) == matrices} for matrices in (True, False)]


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in found)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("zero") / "model", tied_model())


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_what_two_ranks_of_deepspeed_wrote(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tests.curvature.export.deepspeed_script", str(tmp_path)]
    command.append(str(28000 + os.getpid() % 1000))
    both = [subprocess.Popen([*command, str(rank), "2"], env=environment, cwd=ROOT) for rank in (0, 1)]
    assert [process.wait(timeout=500) for process in both] == [0, 0]
    expected = planted(partly_frozen())
    for stage in STAGES:
        report = export_second_moments(tmp_path / f"stage{stage}", tmp_path / f"{stage}.out", tmp_path / "model")
        assert same(load_file(report.path), expected), stage
        metadata = report.metadata
        assert (metadata.optimizer, metadata.step, metadata.beta2, metadata.learning_rate) == ("AdamW", 3, 0.95, 1e-3)
        assert "deepspeed" not in sys.modules


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("told", [True, False])
def test_every_entry_is_found_whatever_the_ranks(
    tmp_path: Path, model_folder: Path, stage: int, world: int, told: bool
) -> None:
    values = planted(partly_frozen())
    source = write_zero(tmp_path / "global_step3", stage, in_groups(values), world, told)
    report = export_second_moments(source, tmp_path / "out", model_folder)
    assert same(load_file(report.path), values)
    assert (report.metadata.step, report.metadata.beta2) == (3, 0.95)


@pytest.mark.parametrize("stage", STAGES)
def test_ota_with_the_file_is_ota_with_the_live_optimizer(tmp_path: Path, model_folder: Path, stage: int) -> None:
    generator = torch.Generator().manual_seed(5)
    live = {n: torch.rand(p.shape, generator=generator) / 512 for n, p in tied_model().named_parameters()}
    source = write_zero(tmp_path / "global_step3", stage, in_groups(live))
    exported = export_second_moments(source, tmp_path / "out", model_folder).path
    assert_merges_like_live(tmp_path, exported, live)


def test_the_latest_step_is_taken(tmp_path: Path, model_folder: Path) -> None:
    values = planted(tied_model())
    for step in (2, 10):
        write_zero(tmp_path / f"global_step{step}", 2, in_groups({n: v + step for n, v in values.items()}))
    with pytest.raises(GraftbenchError, match=r"several steps \(global_step10, global_step2\); name one of them"):
        export_second_moments(tmp_path, tmp_path / "out", model_folder)
    (tmp_path / "latest").write_text("global_step10")
    report = export_second_moments(tmp_path, tmp_path / "out", model_folder)
    assert same(load_file(report.path), {n: v + 10 for n, v in values.items()})
    one_rank = tmp_path / "global_step2" / OPTIMIZER.format(0)
    report = export_second_moments(one_rank, tmp_path / "one rank", model_folder)
    assert same(load_file(report.path), {n: v + 2 for n, v in values.items()})


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / OPTIMIZER.format(1)).unlink(), r"lacks the file of rank 1; copy"),
        (
            lambda f: (f / OPTIMIZER.format(2)).unlink(),
            r"files of 2 ranks, but .* that 3 took part; copy those of rank 2",
        ),
        (lambda f: half(f / OPTIMIZER.format(1)), r"rank_1_mp_rank_00_optim_states\.pt is not a whole PyTorch file"),
        (lambda f: [m.unlink() for m in f.glob("*model_states.pt")], r"which says what parameters are called"),
        (lambda f: (f / OPTIMIZER.format(2)).rename(f / "zero_pp_rank_2_mp_rank_01_optim_states.pt"), "tensor paralle"),
    ],
    ids=["a rank in between", "the last rank", "half written", "no names", "tensor parallel"],
)
def test_damage_is_named(tmp_path: Path, model_folder: Path, stage: int, damage: Any, said: str) -> None:
    source = write_zero(tmp_path / "step", stage, in_groups(planted(tied_model())), world=3)
    damage(source)
    with pytest.raises(GraftbenchError, match=said):
        export_second_moments(source, tmp_path / "out", model_folder)
    assert not (tmp_path / "out").exists()


class Malicious:
    """Unpickled freely, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_code_is_refused_and_not_run(tmp_path: Path, model_folder: Path) -> None:
    source = write_zero(tmp_path / "step", 2, in_groups(planted(tied_model())))
    torch.save({"optimizer_state_dict": Malicious(tmp_path / "made")}, source / OPTIMIZER.format(1))
    with pytest.raises(GraftbenchError, match=r"rank_1.* holds more than tensors \(posix\.mkdir\).*was not loaded"):
        export_second_moments(source, tmp_path / "out", model_folder)
    assert not (tmp_path / "made").exists()
