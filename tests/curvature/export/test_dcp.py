"""Distributed checkpoints that `torch.distributed.checkpoint` wrote: by one process, and by two with FSDP."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as distributed_checkpoint
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

from harness.curvature import second_moments_of
from harness.curvature.export import export_second_moments
from harness.errors import GraftbenchError
from tests.curvature.export.live import (
    adamw,
    assert_merges_like_live,
    constants,
    plant,
    read_constants,
    saved,
    tied_model,
    train,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def trained() -> tuple[Any, torch.optim.Optimizer]:
    model = tied_model()
    optimizer = adamw(model)
    train(model, optimizer)
    return model, optimizer


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["names", "flattened names", "numbers"])
def test_every_parameter_has_its_own_moments(tmp_path: Path, trained: Any, kind: str) -> None:
    model, optimizer = trained
    plant(model, optimizer)
    options = StateDictOptions(flatten_optimizer_state_dict=kind == "flattened names")
    named = get_optimizer_state_dict(model, optimizer, options=options)
    state = optimizer.state_dict() if kind == "numbers" else named
    distributed_checkpoint.save({"model": model.state_dict(), "optim": state}, checkpoint_id=tmp_path / "dcp")
    report = export_second_moments(tmp_path / "dcp", tmp_path / "out", saved(tmp_path / "model", model))
    assert read_constants(report.path) == constants(model)
    metadata = report.metadata
    assert (metadata.optimizer, metadata.step, metadata.beta2, metadata.learning_rate) == ("AdamW", 3, 0.95, 1e-3)


def write(folder: Path, trained: tuple[Any, torch.optim.Optimizer]) -> Path:
    distributed_checkpoint.save({"optim": get_optimizer_state_dict(*trained)}, checkpoint_id=folder)
    return folder


def test_ota_with_the_file_is_ota_with_the_live_optimizer(tmp_path: Path, trained: Any) -> None:
    model, optimizer = trained
    folder = write(tmp_path / "run" / "optimizer_0", trained).parent
    exported = export_second_moments(folder, tmp_path / "out", saved(tmp_path / "model", model)).path
    assert_merges_like_live(tmp_path, exported, second_moments_of(optimizer, model))


def test_two_processes_with_fsdp(tmp_path: Path) -> None:
    """FSDP 1 and 2, each saved in shards and gathered whole; one pair of processes, whose start takes longest."""
    script = str(Path(__file__).parent / "fsdp_script.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, str(tmp_path), str(29000 + os.getpid() % 1000)]
    both = [subprocess.Popen([*command, str(rank)], env=environment) for rank in (0, 1)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    for kind in ("fsdp1", "fsdp2"):
        live = load_file(tmp_path / kind / "live.safetensors")
        assert len({float(value.flatten()[0]) for value in live.values()}) == len(live), "one parameter is like another"
        sharded, whole = tmp_path / kind / "state", tmp_path / kind  # which holds optimizer.bin
        assert {"__0_0.distcp", "__1_0.distcp"} <= {file.name for file in sharded.iterdir()}
        for source in (sharded, whole):
            report = export_second_moments(source, tmp_path / f"{kind}.{source.name}", tmp_path / "model")
            found = load_file(report.path)
            assert found.keys() == live.keys()
            assert all(torch.equal(found[name], live[name]) for name in live)
            assert report.metadata.step == 3 and report.metadata.beta2 == 0.95
        (sharded / "__1_0.distcp").unlink()
        with pytest.raises(GraftbenchError, match=r"__1_0\.distcp is missing, which holds a rank's part"):
            export_second_moments(sharded, tmp_path / "again", tmp_path / "model")


def test_half_written_and_missing_parts_are_refused(tmp_path: Path, trained: Any) -> None:
    folder, model = write(tmp_path / "dcp", trained), saved(tmp_path / "model", trained[0])
    file = folder / "__0_0.distcp"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(GraftbenchError, match=r"__0_0\.distcp has .* bytes where its index expects .* half written"):
        export_second_moments(folder, tmp_path / "out", model)
    index = folder / ".metadata"
    file.write_bytes(whole)
    index.write_bytes(index.read_bytes()[:50])
    with pytest.raises(GraftbenchError, match=r"\.metadata is not a whole index"):
        export_second_moments(folder, tmp_path / "out", model)
    index.unlink()
    with pytest.raises(GraftbenchError, match="the save was interrupted"):
        export_second_moments(folder, tmp_path / "out", model, format="dcp")


class Malicious:
    """Unpickled freely, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_code_in_the_index_or_in_an_option_is_refused_and_not_run(tmp_path: Path, trained: Any) -> None:
    model = saved(tmp_path / "model", trained[0])
    state = get_optimizer_state_dict(*trained)
    state["param_groups"][0]["lr"] = Malicious(tmp_path / "made")  # type: ignore[index]
    distributed_checkpoint.save({"optim": state}, checkpoint_id=tmp_path / "option")
    with pytest.raises(GraftbenchError, match=r"'optim\.param_groups\.0\.lr' holds more than plain values"):
        export_second_moments(tmp_path / "option", tmp_path / "out", model)
    folder = write(tmp_path / "index", trained)
    index = pickle.loads((folder / ".metadata").read_bytes())
    index.planner_data = Malicious(tmp_path / "made")
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(GraftbenchError, match=r"holds more than descriptions of tensors \(posix\.mkdir\)"):
        export_second_moments(folder, tmp_path / "out", model)
    assert not (tmp_path / "made").exists()


def test_a_model_s_checkpoint_without_optimizer_is_refused(tmp_path: Path, trained: Any) -> None:
    distributed_checkpoint.save({"model": trained[0].state_dict()}, checkpoint_id=tmp_path / "dcp")
    with pytest.raises(GraftbenchError, match=r"holds no optimizer's state .*, but model\.model\.embed_tokens\.weight"):
        export_second_moments(tmp_path / "dcp", tmp_path / "out", saved(tmp_path / "model", trained[0]))
