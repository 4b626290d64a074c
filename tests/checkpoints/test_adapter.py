"""LoRA adapters on their base, against PEFT's own merge of the same files."""

import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel

from harness.checkpoints import Checkpoint
from harness.checkpoints.adapter import AdaptedCheckpoint
from harness.errors import GraftbenchError
from tests.checkpoints.llama import llama
from tests.checkpoints.small import write_checkpoint


def base_model(tied: bool = False) -> LlamaForCausalLM:
    """With biases in attention, and fewer key and value heads than query heads."""
    return llama(1, num_key_value_heads=1, attention_bias=True, tie_word_embeddings=tied)


def trained(folder: Path, model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """The base and an adapter in two folders; every tensor of the adapter is random, as if it had been trained."""
    model.save_pretrained(folder / "base")
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(2)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder / "adapter")
    return adapted


def opened(folder: Path) -> AdaptedCheckpoint:
    return AdaptedCheckpoint(Checkpoint(folder / "base"), folder / "adapter")


def merged_by_peft(adapted: PeftModel, folder: Path) -> dict[str, Tensor]:
    adapted.merge_and_unload().save_pretrained(folder / "merged")
    return load_file(folder / "merged" / "model.safetensors")


def assert_same_model(checkpoint: AdaptedCheckpoint, expected: Mapping[str, Tensor]) -> None:
    assert checkpoint.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(checkpoint.read(name).float(), tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "down_proj"], "lora_alpha": 3},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": ["embed_tokens", "lm_head", "o_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "v_proj"]},
        {"target_modules": ["q_proj"], "bias": "all"},
        {"target_modules": ["q_proj"], "bias": "lora_only", "lora_bias": True},
        {
            "target_modules": ["q_proj", "v_proj", "gate_proj"],
            "rank_pattern": {"v_proj": 4, r"layers.1.self_attn.q_proj": 6},
            "alpha_pattern": {"_proj": 99, "layers.0.self_attn.v": 77, "layers.0.self_attn.v_proj": 5, "gate_proj": 32},
            "use_rslora": True,
        },
    ],
    ids=lambda options: "-".join(map(str, options)),
)
def test_an_adapted_checkpoint_is_what_peft_merges(tmp_path: Path, options: dict[str, Any]) -> None:
    adapted = trained(tmp_path, base_model(), LoraConfig(r=2, **options))
    checkpoint = opened(tmp_path)
    changed = {name for name in checkpoint.tensors if not torch.equal(checkpoint.read(name), base(tmp_path, name))}
    assert changed
    assert_same_model(checkpoint, merged_by_peft(adapted, tmp_path))


def base(folder: Path, name: str) -> Tensor:
    return load_file(folder / "base" / "model.safetensors")[name]


@pytest.mark.parametrize("targets", [["c_attn", "c_proj", "c_fc"], ["c_proj"]])
def test_gpt2_stores_its_weights_transposed(tmp_path: Path, targets: list[str]) -> None:
    """c_proj of attention is square, so only fan_in_fan_out tells; hub files leave out `transformer.`."""
    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=8))
    adapted = trained(tmp_path, model, LoraConfig(r=2, target_modules=targets, fan_in_fan_out=True))
    expected = {name: tensor for name, tensor in merged_by_peft(adapted, tmp_path).items() if "lm_head" not in name}
    assert_same_model(opened(tmp_path), expected)

    file = tmp_path / "base" / "model.safetensors"
    save_file({name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}, file)
    assert_same_model(
        opened(tmp_path), {name.removeprefix("transformer."): tensor for name, tensor in expected.items()}
    )


def test_an_adapter_in_pytorch_format_is_read(tmp_path: Path) -> None:
    adapted = trained(tmp_path, base_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    assert_same_model(opened(tmp_path), merged_by_peft(adapted, tmp_path))


def test_a_half_precision_adapter_is_applied_in_fp32(tmp_path: Path) -> None:
    """PEFT rounds the update to the adapter's bf16 first: 1·1 + 1/16·1/16 would become 1."""
    write_checkpoint(tmp_path / "base", {"l.weight": [[0.0]]}, torch.bfloat16)
    factors = {"l.lora_A.weight": [[1.0], [0.0625]], "l.lora_B.weight": [[1.0, 0.0625]]}
    write_adapter(tmp_path, factors, r=2, dtype=torch.bfloat16)
    assert opened(tmp_path).read("l.weight").tolist() == [[1.00390625]]


@pytest.mark.parametrize("options", [{"target_modules": ["embed_tokens"]}, {"modules_to_save": ["embed_tokens"]}])
def test_a_tied_matrix_is_changed_once_where_head_and_embedding_agree(tmp_path: Path, options: dict[str, Any]) -> None:
    """The oracle is the adapted model itself: merge_and_unload adds to the one matrix for each of its two names."""
    both = {"target_modules": ["q_proj"]} | options
    if "embed_tokens" in both["target_modules"]:
        both["target_modules"] = ["q_proj", "embed_tokens", "lm_head"]
    adapted = trained(tmp_path, base_model(tied=True), LoraConfig(r=2, ensure_weight_tying=True, **both))
    checkpoint = opened(tmp_path)
    assert "lm_head.weight" not in checkpoint.tensors
    ours = base_model(tied=True)
    ours.load_state_dict({name: checkpoint.read(name) for name in checkpoint.tensors}, strict=False)
    ours.tie_weights()
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(tokens).logits, adapted.eval()(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embedding alone"),
        ({"target_modules": ["q_proj", "lm_head"]}, "head alone"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, "embedding alone"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}, "differently"),
    ],
)
def test_an_adapter_that_takes_a_tied_matrix_apart_is_refused(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    trained(tmp_path, base_model(tied=True), LoraConfig(r=2, **options))
    with pytest.raises(GraftbenchError, match=f"head is its embedding.*{said}.*ensure_weight_tying"):
        opened(tmp_path)


def test_an_adapter_may_bring_a_longer_vocabulary(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", {"model.embed_tokens.weight": [[1.0], [2.0]], "lm_head.weight": [[3.0], [4.0]]})
    replaced = [[5.0], [6.0], [7.0]]
    write_adapter(tmp_path, {"model.embed_tokens.weight": replaced, "lm_head.weight": replaced})
    assert opened(tmp_path).folder == tmp_path / "base"
    (tmp_path / "adapter" / "tokenizer.json").write_text("{}")
    checkpoint = opened(tmp_path)
    assert checkpoint.folder == tmp_path / "adapter"
    assert checkpoint.config["vocab_size"] == 3
    assert checkpoint.tensors["lm_head.weight"].shape == (3, 1)
    assert checkpoint.read("model.embed_tokens.weight").tolist() == replaced
    assert checkpoint.tokenizer_digest != Checkpoint(tmp_path / "base").tokenizer_digest


def write_adapter(folder: Path, tensors: Mapping[str, Any], dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """An adapter written by hand, with rank and alpha 1 unless said otherwise."""
    adapter = folder / "adapter"
    adapter.mkdir(exist_ok=True)
    rank = options.get("r", 1)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank} | options
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    values = {f"base_model.model.{name}": torch.as_tensor(value).to(dtype) for name, value in tensors.items()}
    save_file(values, adapter / "adapter_model.safetensors")
    return adapter


FACTORS = {"l.lora_A.weight": [[1.0, 2.0, 3.0]], "l.lora_B.weight": [[1.0], [10.0]]}


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., AdaptedCheckpoint]:
    """A base with one 2×3 matrix of zeros, and whatever adapter is written for it."""
    write_checkpoint(tmp_path / "base", {"l.weight": torch.zeros(2, 3), "conv.weight": torch.zeros(2, 3, 1, 1)})

    def build(tensors: Mapping[str, Any] = FACTORS, **options: Any) -> AdaptedCheckpoint:
        write_adapter(tmp_path, tensors, **options)
        return opened(tmp_path)

    return build


def test_the_update_by_hand(small: Callable[..., AdaptedCheckpoint]) -> None:
    assert small(lora_alpha=4).read("l.weight").tolist() == [[4.0, 8.0, 12.0], [40.0, 80.0, 120.0]]


@pytest.mark.parametrize(
    ("tensors", "options", "said"),
    [
        ({}, {"peft_type": "IA3"}, "of the type IA3"),
        ({}, {"peft_type": "VERA"}, "of the type VERA"),
        ({}, {"use_dora": True}, "DoRA is not supported"),
        ({}, {"target_parameters": ["experts.gate_up_proj"]}, "bare parameters"),
        ({}, {"trainable_token_indices": [1]}, "trained token indices"),
        ({}, {"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4, which changes the base weights"),
        ({"l.lora_magnitude_vector": [1.0]}, {}, "belongs to DoRA"),
        ({"l.lora_diag": [1.0]}, {}, "not known here"),
        ({"m.lora_A.weight": [[1.0]], "m.lora_B.weight": [[1.0]]}, {}, r"the base has no 'm\.weight'"),
        ({"l.bias": [1.0, 2.0]}, {}, r"the base has no 'l\.bias'"),
        ({"l.lora_B.bias": [1.0, 2.0]}, {}, r"the base has no 'l\.bias'"),
        ({"l.weight": [[1.0]]}, {}, r"is \[1, 1\], where the base has \[2, 3\]"),
        ({"l.lora_A.weight": [[1.0, 2.0]]}, {}, r"is \[2, 2\], where the base has \[2, 3\]"),
        ({"l.lora_A.weight": [[1.0, 2.0, 3.0]] * 2}, {}, "no product"),
        ({}, {"r": 2}, "has rank 1, where adapter_config.json says 2"),
        (
            {"conv.lora_A.weight": torch.zeros(1, 3, 1, 1), "conv.lora_B.weight": torch.zeros(2, 1, 1, 1)},
            {},
            "convolutions",
        ),
        ({"l.weight": torch.ones(2, 3, dtype=torch.int32)}, {"dtype": torch.int32}, "int32, not floating point"),
    ],
)
def test_what_cannot_be_applied_is_refused(
    small: Callable[..., AdaptedCheckpoint], tensors: Mapping[str, Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(GraftbenchError, match=f"cannot be applied.*{said}.*merge_and_unload"):
        small(FACTORS | tensors, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"r": 0}, "r is 0, which is no rank"),
        ({"rank_pattern": {"l": "a"}}, "rank_pattern.l is 'a', which is no rank"),
        ({"lora_alpha": None}, "lora_alpha is None, which is no scaling"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan, which is no scaling"),
        ({"alpha_pattern": {"(": 1}}, r"alpha_pattern has the pattern '\(', which is not valid"),
    ],
)
def test_numbers_that_scale_nothing_are_refused(
    small: Callable[..., AdaptedCheckpoint], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(GraftbenchError, match=f"cannot be applied.*{said}"):
        small(FACTORS, **options)


def test_all_reasons_are_given_at_once(small: Callable[..., AdaptedCheckpoint]) -> None:
    with pytest.raises(GraftbenchError, match=r"DoRA.*no counterpart"):
        small({"l.lora_magnitude_vector": [1.0], "l.lora_A.weight": [[1.0, 2.0, 3.0]]})


def test_a_square_matrix_of_unknown_orientation_is_refused(tmp_path: Path) -> None:
    """The other matrix is stored as [in, out], though fan_in_fan_out says otherwise."""
    write_checkpoint(tmp_path / "base", {"s.weight": torch.zeros(2, 2), "l.weight": torch.zeros(3, 2)})
    square = {"s.lora_A.weight": [[1.0, 2.0]], "s.lora_B.weight": [[1.0], [2.0]]}
    write_adapter(tmp_path, FACTORS | square)
    with pytest.raises(GraftbenchError, match=r"'l\.weight' shows the contrary, and 's\.weight' is square"):
        opened(tmp_path)
    write_adapter(tmp_path, FACTORS | square, fan_in_fan_out=True)
    assert opened(tmp_path).read("s.weight").tolist() == [[1.0, 2.0], [2.0, 4.0]]


def test_an_adapter_needs_its_files(tmp_path: Path, small: Callable[..., AdaptedCheckpoint]) -> None:
    small()
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(GraftbenchError, match="holds neither adapter_model"):
        opened(tmp_path)
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(GraftbenchError, match="must be the folder of a PEFT adapter"):
        opened(tmp_path)


def test_the_digest_follows_base_adapter_and_scaling(tmp_path: Path, small: Callable[..., AdaptedCheckpoint]) -> None:
    one = small().weights_digest
    assert small(base_model_name_or_path="elsewhere").weights_digest == one
    others = {small(lora_alpha=2).weights_digest, small(FACTORS | {"l.lora_B.weight": [[1.0], [9.0]]}).weights_digest}
    assert len(others | {one, Checkpoint(tmp_path / "base").weights_digest}) == 4


def test_a_truncated_adapter_is_an_error_even_after_opening(
    tmp_path: Path, small: Callable[..., AdaptedCheckpoint]
) -> None:
    checkpoint = small()
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(GraftbenchError, match=r"adapter_model\.safetensors: tensor '.*lora_B.*too early"):
        checkpoint.read("l.weight")


@given(cuts=st.lists(st.integers(0, 300 * 700), min_size=2, max_size=6), threads=st.sampled_from([1, 2, 3]))
@settings(max_examples=25, deadline=None)
def test_the_bits_do_not_depend_on_pieces_or_threads(large: AdaptedCheckpoint, cuts: list[int], threads: int) -> None:
    whole = large.read("l.weight").view(-1)
    start, stop = min(cuts), max(cuts)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for begin, end in zip(sorted(cuts), sorted(cuts)[1:], strict=False):
            piece = large.fetch("l.weight", begin, end, torch.empty((end - begin) * 8, dtype=torch.uint8))
            assert torch.equal(piece, whole[begin:end])
        piece = large.fetch("l.weight", start, stop, torch.empty((stop - start) * 8, dtype=torch.uint8))
        assert torch.equal(piece, whole[start:stop])
    finally:
        torch.set_num_threads(before)


def test_threads_may_read_one_tensor_at_the_same_time(large: AdaptedCheckpoint) -> None:
    whole = large.read("l.weight").view(-1)
    large.close()

    def piece(start: int) -> bool:
        stop = min(start + 5000, whole.numel())
        scratch = torch.empty((stop - start) * 8, dtype=torch.uint8)
        return torch.equal(large.fetch("l.weight", start, stop, scratch), whole[start:stop])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(piece, range(0, whole.numel(), 5000)))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> AdaptedCheckpoint:
    """A matrix of more rows than a block has, on a bf16 base."""
    folder = tmp_path_factory.mktemp("large")
    torch.manual_seed(3)
    write_checkpoint(folder / "base", {"l.weight": torch.randn(300, 700)}, torch.bfloat16)
    write_adapter(folder, {"l.lora_A.weight": torch.randn(16, 700), "l.lora_B.weight": torch.randn(300, 16)}, r=16)
    return opened(folder)


def test_another_base_is_a_warning(
    tmp_path: Path, small: Callable[..., AdaptedCheckpoint], caplog: pytest.LogCaptureFixture
) -> None:
    small()
    checkpoint = Checkpoint(tmp_path / "base")
    checkpoint.source = "owner/base@main"
    for hint, warned in (("Owner/Base", False), ("/some/folder", False), ("owner/other", True)):
        write_adapter(tmp_path, FACTORS, base_model_name_or_path=hint)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            AdaptedCheckpoint(checkpoint, tmp_path / "adapter")
        assert ("trained on owner/other" in caplog.text) == warned
