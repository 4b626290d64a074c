"""Writing a checkpoint shard by shard."""

import json
from pathlib import Path

import pytest
import torch

from harness.checkpoints import Checkpoint, CheckpointWriter, TensorInfo
from harness.errors import GraftbenchError


def planned(folder: Path, shard_bytes: int, dtype: torch.dtype | None = None) -> CheckpointWriter:
    """Three tensors of 40 bytes each in fp32."""
    infos = [TensorInfo(name, (10,), torch.float32, folder) for name in ("a", "b", "c")]
    (folder / "config.json").write_text("{}")
    return CheckpointWriter(folder, infos, dtype, shard_bytes)


@pytest.mark.parametrize(("shard_bytes", "files"), [(1000, 1), (80, 2), (79, 3), (1, 3)])
def test_shards_are_cut_by_size_and_read_back(tmp_path: Path, shard_bytes: int, files: int) -> None:
    writer = planned(tmp_path, shard_bytes)
    for value, name in enumerate("abc"):
        writer.add(name, torch.full((10,), float(value)))
    writer.close()
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert (tmp_path / "model.safetensors.index.json").exists() == (files > 1)
    checkpoint = Checkpoint(tmp_path)
    assert [float(checkpoint.read(name)[0]) for name in "abc"] == [0.0, 1.0, 2.0]


def test_a_shard_is_on_disk_as_soon_as_it_is_full(tmp_path: Path) -> None:
    writer = planned(tmp_path, 80)
    writer.add("a", torch.zeros(10))
    assert not list(tmp_path.glob("*.safetensors"))
    writer.add("b", torch.zeros(10))
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["model-00001-of-00002.safetensors"]


def test_the_index_counts_the_bytes_as_written(tmp_path: Path) -> None:
    writer = planned(tmp_path, 20, torch.bfloat16)
    for name in "abc":
        writer.add(name, torch.zeros(10))
    writer.close()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 60


def test_an_overflow_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GraftbenchError, match=r"'a' does not fit into torch\.float16"):
        planned(tmp_path, 1000, torch.float16).add("a", torch.full((10,), 1e6))
