"""Writing a checkpoint in place: pieces in any order into files that have their full size from the start."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from harness.checkpoints import Checkpoint, CheckpointWriter, TensorInfo, plan_shards

NAMES = ("a", "b", "c")


def infos(folder: Path) -> list[TensorInfo]:
    """Three tensors of 40 bytes each in fp32."""
    return [TensorInfo(name, (5, 2), torch.float32, folder / "from.safetensors") for name in NAMES]


@pytest.mark.parametrize(("shard_bytes", "files"), [(1000, 1), (80, 2), (79, 3), (1, 3)])
def test_shards_are_cut_by_size_and_read_back(tmp_path: Path, shard_bytes: int, files: int) -> None:
    (tmp_path / "config.json").write_text("{}")
    with CheckpointWriter(tmp_path, plan_shards(infos(tmp_path), None, shard_bytes)) as writer:
        for value, name in enumerate(NAMES):
            writer.write(name, 0, torch.full((10,), float(value)))
        writer.finish()
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert (tmp_path / "model.safetensors.index.json").exists() == (files > 1)
    checkpoint = Checkpoint(tmp_path)
    assert [checkpoint.read(name).unique().tolist() for name in NAMES] == [[0.0], [1.0], [2.0]]


@given(order=st.permutations(range(30)), whole=st.booleans())
@settings(max_examples=25, deadline=None)
def test_pieces_may_come_in_any_order(tmp_path_factory: pytest.TempPathFactory, order: list[int], whole: bool) -> None:
    folder = tmp_path_factory.mktemp("out")
    values = {name: torch.randn(5, 2) for name in NAMES}
    with CheckpointWriter(folder, plan_shards(infos(folder), None, 1000 if whole else 79)) as writer:
        for place in order:
            name, entry = NAMES[place // 10], place % 10
            writer.write(name, entry, values[name].flatten()[entry : entry + 1])
        for name in NAMES:
            assert torch.equal(writer.read(name, 2, 7, torch.float32), values[name].flatten()[2:9])
        writer.finish()
    found = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert found.keys() == values.keys()
    assert all(torch.equal(found[name], values[name]) for name in NAMES)


def test_files_have_their_full_size_and_header_before_any_weight(tmp_path: Path) -> None:
    shards = plan_shards(infos(tmp_path), None, 80)
    with CheckpointWriter(tmp_path, shards):
        assert [(tmp_path / shard.name).stat().st_size for shard in shards] == [shard.bytes for shard in shards]
        assert [shard.bytes - len(shard.header) for shard in shards] == [80, 40]
        assert [sorted(load_file(tmp_path / shard.name)) for shard in shards] == [["a", "b"], ["c"]]


def test_the_index_counts_the_bytes_as_written(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, plan_shards(infos(tmp_path), torch.bfloat16, 20)) as writer:
        writer.finish()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 60
    assert index["weight_map"] == {name: f"model-0000{i}-of-00003.safetensors" for i, name in enumerate(NAMES, 1)}


def test_what_another_writer_left_is_kept(tmp_path: Path) -> None:
    shards = plan_shards(infos(tmp_path), None, 1000)
    with CheckpointWriter(tmp_path, shards) as writer:
        writer.write("b", 4, torch.tensor([7.0]))
    with CheckpointWriter(tmp_path, shards) as writer:
        assert writer.read("b", 3, 3, torch.float32).tolist() == [0.0, 7.0, 0.0]


def test_every_tensor_is_aligned_to_its_own_width(tmp_path: Path) -> None:
    """One bf16 number, then fp64: readers that map the file need each tensor at a multiple of its width."""
    dtypes = {"half": torch.bfloat16, "ids": torch.int64, "flag": torch.bool, "double": torch.float64}
    tensors = [TensorInfo(name, (3,), dtype, tmp_path) for name, dtype in dtypes.items()]
    (shard,) = plan_shards(tensors, None, 1000)
    assert all(shard.begins[name] % dtype.itemsize == 0 for name, dtype in dtypes.items())
    assert len(shard.header) % 8 == 0


def test_integers_keep_their_type(tmp_path: Path) -> None:
    tensors = [TensorInfo("ids", (2,), torch.int64, tmp_path), TensorInfo("p", (2,), torch.float32, tmp_path)]
    with CheckpointWriter(tmp_path, plan_shards(tensors, torch.float16, 1000)) as writer:
        writer.write("ids", 0, torch.tensor([3, 2**40]))
        writer.write("p", 0, torch.tensor([0.5, 2.0], dtype=torch.float16))
        writer.finish()
    found = load_file(tmp_path / "model.safetensors")
    assert found["ids"].tolist() == [3, 2**40]
    assert found["p"].dtype == torch.float16 and found["p"].tolist() == [0.5, 2.0]


def test_a_tensor_without_entries_and_a_scalar(tmp_path: Path) -> None:
    tensors = [TensorInfo("none", (0, 3), torch.float32, tmp_path), TensorInfo("one", (), torch.float32, tmp_path)]
    with CheckpointWriter(tmp_path, plan_shards(tensors, None, 1000)) as writer:
        writer.write("none", 0, torch.empty(0))
        writer.write("one", 0, torch.tensor([3.0]))
    found = load_file(tmp_path / "model.safetensors")
    assert found["none"].shape == (0, 3) and found["one"].shape == () and float(found["one"]) == 3.0
