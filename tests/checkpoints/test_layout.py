"""Reading a checkpoint's headers, and refusing what is not whole."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.checkpoints import Checkpoint, require_finite, role_and_layer
from harness.errors import GraftbenchError
from tests.checkpoints.small import write_checkpoint


def sharded(folder: Path) -> Path:
    """A checkpoint of two shards with an index."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["TestModel"]}))
    save_file({"a": torch.ones(2)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": torch.ones(3)}, folder / "model-00002-of-00002.safetensors")
    files = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def test_shapes_and_types_come_from_headers(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "m", {"p": [[1.0, 2.0, 3.0]]}, torch.bfloat16))
    assert checkpoint.tensors["p"].shape == (1, 3)
    assert checkpoint.tensors["p"].dtype == torch.bfloat16
    assert checkpoint.entries == 3
    assert checkpoint.read("p").tolist() == [[1.0, 2.0, 3.0]]


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    with Checkpoint(sharded(tmp_path / "m")) as checkpoint:
        assert {name: checkpoint.read(name).numel() for name in checkpoint.tensors} == {"a": 2, "b": 3}


def test_a_tied_head_is_not_a_parameter_of_its_own(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", {"model.embed_tokens.weight": [[1.0]], "lm_head.weight": [[1.0]]})
    assert len(Checkpoint(folder).tensors) == 2
    (folder / "config.json").write_text(json.dumps({"architectures": ["T"], "tie_word_embeddings": True}))
    assert list(Checkpoint(folder).tensors) == ["model.embed_tokens.weight"]


def test_digests_follow_the_content(tmp_path: Path) -> None:
    one = Checkpoint(write_checkpoint(tmp_path / "one", {"p": [1.0]}))
    same = Checkpoint(write_checkpoint(tmp_path / "same", {"p": [1.0]}))
    other = Checkpoint(write_checkpoint(tmp_path / "other", {"p": [2.0]}))
    assert one.weights_digest == same.weights_digest != other.weights_digest


@pytest.mark.parametrize("kept", [0, 7, 60, -1])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, kept: int) -> None:
    folder = write_checkpoint(tmp_path / "m", {"p": [1.0, 2.0]})
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(GraftbenchError, match=r"model\.safetensors is not a whole safetensors file"):
        Checkpoint(folder)


def test_a_missing_shard_is_refused_by_name(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(GraftbenchError, match=r"model-00002-of-00002\.safetensors does not exist"):
        Checkpoint(folder)


def test_a_tensor_that_the_index_promises_must_be_there(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    save_file({"c": torch.ones(3)}, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(GraftbenchError, match="tensor 'b' is missing"):
        Checkpoint(folder)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_are_refused_by_file_and_tensor(tmp_path: Path, bad: float) -> None:
    require_finite(Checkpoint(write_checkpoint(tmp_path / "good", {"p": [1.0, -2.0], "q": []})))
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "m", {"a": [1.0], "p": [1.0, bad, 2.0]}))
    with pytest.raises(GraftbenchError, match=r"m/model\.safetensors: tensor 'p' has NaN or Inf"):
        require_finite(checkpoint)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a model configuration"),
        (json.dumps({"quantization_config": {"quant_method": "gptq"}}), r"quantised \(gptq\)"),
    ],
)
def test_a_bad_configuration_is_refused(tmp_path: Path, config: str, message: str) -> None:
    folder = write_checkpoint(tmp_path / "m", {"p": [1.0]})
    (folder / "config.json").write_text(config)
    with pytest.raises(GraftbenchError, match=message):
        Checkpoint(folder)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GraftbenchError, match="does not exist, and it is no hub name"):
        Checkpoint(tmp_path / "nothing")
    with pytest.raises(GraftbenchError, match="is not a Hugging Face checkpoint"):
        Checkpoint(tmp_path)
    folder = write_checkpoint(tmp_path / "m", {"p": [1.0]})
    with pytest.raises(GraftbenchError, match="is a file"):
        Checkpoint(folder / "config.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(GraftbenchError, match="holds neither"):
        Checkpoint(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2])
def test_quantised_weights_are_refused_by_name(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = write_checkpoint(tmp_path / "m", {"p": [1.0]})
    save_file({"p": torch.ones(1), "q": torch.ones(2).to(dtype)}, folder / "model.safetensors")
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(GraftbenchError, match=rf"tensor 'q' is quantised \({kind}\)"):
        Checkpoint(folder)


def test_integer_buffers_are_no_parameters(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", {"p": [1.0]})
    save_file({"p": torch.ones(1), "ids": torch.arange(3)}, folder / "model.safetensors")
    checkpoint = Checkpoint(folder)
    assert (list(checkpoint.tensors), list(checkpoint.buffers)) == (["p"], ["ids"])
    assert checkpoint.read("ids").tolist() == [0, 1, 2]


def test_ranges_are_read_as_they_are_stored(tmp_path: Path) -> None:
    values = torch.randn(7, 5).to(torch.bfloat16)
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "m", {"a": [1.0], "p": values}, torch.bfloat16))
    scratch = torch.empty(35 * 8, dtype=torch.uint8)
    for start, stop in ((0, 35), (3, 4), (34, 35), (5, 5), (6, 29)):
        assert torch.equal(checkpoint.fetch("p", start, stop, scratch), values.flatten()[start:stop])


def test_a_file_cut_short_later_is_named_with_its_tensor(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "m", {"a": [1.0], "p": [2.0, 3.0]}))
    file = tmp_path / "m" / "model.safetensors"
    os.truncate(file, file.stat().st_size - 4)
    with pytest.raises(GraftbenchError, match=r"m/model\.safetensors: tensor 'p' ends 4 bytes too early"):
        checkpoint.read("p")
    assert checkpoint.read("a").tolist() == [1.0]


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "m", {"p": [2.0, 3.0]}))
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(GraftbenchError, match=r"m/model\.safetensors cannot be opened \(No such file"):
        checkpoint.read("p")


def test_it_opens_again_after_it_was_closed(tmp_path: Path) -> None:
    with Checkpoint(write_checkpoint(tmp_path / "m", {"p": [2.0]})) as checkpoint:
        assert checkpoint.read("p").tolist() == [2.0]
    assert checkpoint.read("p").tolist() == [2.0]
    checkpoint.close()


@pytest.mark.parametrize(
    ("name", "role", "layer"),
    [
        ("model.embed_tokens.weight", "embedding", None),
        ("model.layers.11.self_attn.q_proj.weight", "q", 11),
        ("model.layers.0.self_attn.o_proj.weight", "o", 0),
        ("model.layers.3.mlp.gate_proj.weight", "gate", 3),
        ("model.layers.3.post_attention_layernorm.weight", "norm", 3),
        ("model.norm.weight", "norm", None),
        ("lm_head.weight", "head", None),
        ("visual.patch.weight", "other", None),
    ],
)
def test_roles_and_layers_by_name(name: str, role: str, layer: int | None) -> None:
    assert role_and_layer(name) == (role, layer)
