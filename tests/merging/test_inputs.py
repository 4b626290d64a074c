"""What experts may be: other types, pickles, adapters, several checkpoints, other vocabularies; in whole merges."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tokenizers import AddedToken
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.checkpoints import Checkpoint
from harness.curvature.compressing import compress_file
from harness.curvature.stored import Form
from harness.merging import Execution, merge_to_folder, plan_merge
from methods.linear import Linear
from methods.ota import Ota
from methods.ota_ffg import OtaFfg
from methods.task_arithmetic import TaskArithmetic
from methods.ties import Ties
from tests.checkpoints.llama import llama
from tests.checkpoints.small import write_checkpoint, write_moments
from tests.checkpoints.vocabulary.models import ids, save, tokenizer
from tests.merging.models import SHAPES, merge, merged, random_tensors

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def written(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("output", [None, "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mixed_data_types_meet_in_fp32(tmp_path: Path, base_dtype: torch.dtype, output: str | None) -> None:
    dtypes = {"base": base_dtype, "x": torch.bfloat16, "y": torch.float16, "z": torch.float32}
    values = {name: random_tensors(seed) for seed, name in enumerate(dtypes)}
    models = {name: write_checkpoint(tmp_path / name, values[name], dtypes[name]) for name in dtypes}
    out = merge(tmp_path / "out", TaskArithmetic(scale=0.5), models, dtype=output)
    wanted = {None: base_dtype, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[output]
    for name, found in written(out).items():
        base = values["base"][name].to(base_dtype).float()
        deltas = [values[e][name].to(dtypes[e]).float() - base for e in ("x", "y", "z")]
        expected = (base + 0.5 * ((deltas[0] + deltas[1]) + deltas[2])).to(wanted)
        assert found.dtype == wanted
        torch.testing.assert_close(found, expected, rtol=1e-6 if wanted == torch.float32 else 0.01, atol=1e-6)
    assert json.loads((out / "config.json").read_text()).get("dtype") == output


def test_tensors_of_one_model_may_differ_in_type(tmp_path: Path) -> None:
    """Norms are often kept in fp32; the output has each tensor's type as the base has it."""
    from safetensors.torch import save_file

    models = {name: write_checkpoint(tmp_path / name, random_tensors(seed)) for seed, name in enumerate(("base", "x"))}
    stored = {name: t if "norm" in name else t.bfloat16() for name, t in random_tensors(0).items()}
    save_file(stored, models["base"] / "model.safetensors")
    found = written(merge(tmp_path / "out", TaskArithmetic(), models))
    assert {name: tensor.dtype for name, tensor in found.items()} == {name: t.dtype for name, t in stored.items()}


@pytest.mark.parametrize("sharded", [False, True])
def test_a_pickled_expert_is_the_same_expert(tmp_path: Path, sharded: bool) -> None:
    values = {name: random_tensors(seed) for seed, name in enumerate(("base", "x"))}
    models = {name: write_checkpoint(tmp_path / name, values[name]) for name in values}
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((models["x"] / "config.json").read_bytes())
    if sharded:
        halves = [dict(list(values["x"].items())[i::2]) for i in range(2)]
        shards = [f"pytorch_model-0000{i + 1}-of-00002.bin" for i in range(2)]
        for shard, half in zip(shards, halves, strict=True):
            torch.save(half, pickled / shard)
        weight_map = {name: shard for shard, half in zip(shards, halves, strict=True) for name in half}
        (pickled / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        torch.save(values["x"], pickled / "pytorch_model.bin")
    wanted = merge(tmp_path / "wanted", Ties(), models)
    for threads in (1, 2):
        execution = Execution(threads=threads, piece_entries=64)
        found = merge(tmp_path / f"out{threads}", Ties(), models | {"x": pickled}, execution=execution)
        assert (found / "model.safetensors").read_bytes() == (wanted / "model.safetensors").read_bytes()


@pytest.mark.parametrize("threads", [1, 2])
def test_an_adapter_is_merged_as_peft_merges_it(tmp_path: Path, threads: int) -> None:
    """The mean of base+adapter and a full expert, against the mean of PEFT's own merge and that expert."""
    base, expert = llama(0), llama(1)
    base.save_pretrained(tmp_path / "base")
    expert.save_pretrained(tmp_path / "full")
    adapted = get_peft_model(base, LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"]))
    generator = torch.Generator().manual_seed(2)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(tmp_path / "adapter")
    models = {
        "base": tmp_path / "base",
        "lora": f"{tmp_path / 'base'}+{tmp_path / 'adapter'}",
        "full": tmp_path / "full",
    }
    out = merge(tmp_path / "out", Linear(), models, execution=Execution(threads=threads, piece_entries=64))
    by_peft, full = adapted.merge_and_unload().state_dict(), expert.state_dict()
    found = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert found.keys() == full.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (by_peft[name] + full[name]) / 2, rtol=1e-5, atol=1e-5)
    changed = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(
        found[changed], (load_file(tmp_path / "base" / "model.safetensors")[changed] + full[changed]) / 2
    )


def test_checkpoints_of_one_run_are_one_expert(tmp_path: Path) -> None:
    values = {name: random_tensors(seed) for seed, name in enumerate(("base", "step1", "step2", "y"))}
    models: dict[str, Any] = {name: write_checkpoint(tmp_path / name, values[name]) for name in values}
    sources = {"base": models["base"], "x": [models["step1"], models["step2"]], "y": models["y"]}
    found = written(merge(tmp_path / "out", TaskArithmetic(scale=1.0), sources))
    for name in SHAPES:
        base = values["base"][name].double()
        x = (values["step1"][name].double() + values["step2"][name].double()) / 2
        expected = base + (x - base) + (values["y"][name].double() - base)
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_vocabulary_base_matches_rows_by_token(tmp_path: Path) -> None:
    """The expert numbers all its tokens backwards and has one more, which the output lacks."""
    plain = tokenizer()
    count = plain.get_vocab_size()
    core = json.loads(plain.to_str())["model"]["vocab"]
    base = save(tmp_path / "base", plain, seed=1)
    backwards = {token: count - 1 - number for token, number in core.items()}
    expert = save(tmp_path / "x", tokenizer([AddedToken("<call>")], backwards), seed=2)
    models = {"base": base.folder, "x": expert.folder}
    out = merge(tmp_path / "out", Linear(), models, vocabulary="base", execution=Execution(piece_entries=64))
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.config.vocab_size == count
    theirs = {name: expert.read(name) for name in (EMBEDDING, HEAD)}
    found, there = Checkpoint(out), ids(expert)
    for token, row in ids(base).items():
        for name in (EMBEDDING, HEAD):
            assert torch.equal(found.read(name)[row], theirs[name][there[token]]), token
    assert (
        AutoTokenizer.from_pretrained(out)("the cat").input_ids
        == AutoTokenizer.from_pretrained(base.folder)("the cat").input_ids
    )


def test_vocabulary_union_has_everyones_tokens(tmp_path: Path) -> None:
    base = save(tmp_path / "base", tokenizer(), seed=1)
    count = tokenizer().get_vocab_size()
    x = save(tmp_path / "x", tokenizer([AddedToken("<call>", special=True)]), seed=2)
    y = save(tmp_path / "y", tokenizer([AddedToken("<end>"), AddedToken("<call>", special=True)]), seed=3)
    models = {"base": base.folder, "x": x.folder, "y": y.folder}
    for threads in (1, 2):
        execution = Execution(threads=threads, piece_entries=64)
        merge(tmp_path / f"out{threads}", TaskArithmetic(scale=0.5), models, vocabulary="union", execution=execution)
    out = tmp_path / "out1"
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "out2" / "model.safetensors").read_bytes()
    loaded, words = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert loaded.config.vocab_size == len(words) == count + 2
    rows = {"base": ids(base), "x": ids(x), "y": ids(y)}
    values = {name: each.read(EMBEDDING) for name, each in (("base", base), ("x", x), ("y", y))}
    found = loaded.get_input_embeddings().weight
    cat = words.convert_tokens_to_ids("c")
    old = values["base"][rows["base"]["c"]]
    expected = old + 0.5 * ((values["x"][rows["x"]["c"]] - old) + (values["y"][rows["y"]["c"]] - old))
    torch.testing.assert_close(found[cat], expected)
    # Both experts have <call>, the base starts from their mean; <end> is y's alone, from which y does not differ.
    call = (values["x"][rows["x"]["<call>"]] + values["y"][rows["y"]["<call>"]]) / 2
    torch.testing.assert_close(found[words.convert_tokens_to_ids("<call>")], call, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[words.convert_tokens_to_ids("<end>")], values["y"][rows["y"]["<end>"]])
    assert words.convert_tokens_to_ids("<call>") in words.all_special_ids or "<call>" in words.get_added_vocab()
    assert loaded(words("the cat<call>", return_tensors="pt").input_ids).logits.isfinite().all()


def test_curvature_rows_move_with_their_tokens(tmp_path: Path) -> None:
    """Rows numbered backwards in the expert and its second moments give what rows in the base's order give."""
    plain = tokenizer()
    core = json.loads(plain.to_str())["model"]["vocab"]
    count = plain.get_vocab_size()
    base = save(tmp_path / "base", plain, seed=1)
    y = save(tmp_path / "y", plain, seed=4)
    backwards = {token: count - 1 - number for token, number in core.items()}
    there = save(tmp_path / "x", tokenizer((), backwards), seed=2)
    order = torch.tensor([ids(there)[token] for token, _ in sorted(ids(base).items(), key=lambda item: item[1])])

    def in_order(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: t[order] if name in (EMBEDDING, HEAD) else t for name, t in values.items()}

    weights = {name: there.read(name) for name in there.tensors}
    moments = {name: torch.rand(t.shape, generator=torch.Generator().manual_seed(9)) for name, t in weights.items()}
    here = save(tmp_path / "same", plain, seed=2)
    from safetensors.torch import save_file

    save_file({name: t.contiguous() for name, t in in_order(weights).items()}, here.folder / "model.safetensors")
    files = {
        "x": write_moments(tmp_path / "x.v", moments),
        "y": write_moments(tmp_path / "y.v", {name: t.square() for name, t in moments.items()}),
    }
    moved = merged(Ota(), {"base": base.folder, "x": there.folder, "y": y.folder}, files, vocabulary="base")
    files["x"] = write_moments(tmp_path / "same.v", in_order(moments))
    plainly = merged(Ota(), {"base": base.folder, "x": here.folder, "y": y.folder}, files)
    assert all(torch.equal(moved[name], plainly[name]) for name in plainly)


def test_the_tokenizer_comes_from_where_it_is_asked_for(tmp_path: Path) -> None:
    base, expert = save(tmp_path / "base", tokenizer(), seed=1), save(tmp_path / "x", tokenizer(), seed=2)
    (expert.folder / "chat_template.jinja").write_text("{{ 'mine' }}")
    with plan_merge("m", Linear(), base.folder, {"x": expert.folder}, {}, tokenizer="x") as plan:
        out = merge_to_folder(plan, tmp_path / "out").folder
    assert (out / "chat_template.jinja").read_text() == "{{ 'mine' }}"


@pytest.mark.parametrize("form", ["sums", "rank", "blocks"])
def test_compressed_curvature_rows_move_with_their_tokens(tmp_path: Path, form: Form) -> None:
    """On the fly and from files alike, though the output has an expert's rows backwards, and a row that only it has."""
    plain = tokenizer()
    core = json.loads(plain.to_str())["model"]["vocab"]
    backwards = {token: plain.get_vocab_size() - 1 - number for token, number in core.items()}
    base = save(tmp_path / "base", plain, seed=1)
    x = save(tmp_path / "x", tokenizer([AddedToken("<call>")], backwards), seed=2)
    y = save(tmp_path / "y", plain, seed=3)
    models, full, small = {"base": base.folder, "x": x.folder, "y": y.folder}, {}, {}
    for seed, (name, model) in enumerate((("x", x), ("y", y))):
        draw = torch.Generator().manual_seed(seed)
        values = {key: 10.0 ** (torch.rand(info.shape, generator=draw) * 8 - 16) for key, info in model.tensors.items()}
        full[name] = write_moments(tmp_path / f"{name}.v", values, beta2=0.9, step=1 + 5 * seed)
        small[name] = compress_file(full[name], tmp_path / f"{name}.{form}", form).path
    kind: Any = {"sums": "compressed"}.get(form, form)
    on_the_fly = merged(OtaFfg(curvature=kind, density=0.3), models, full, vocabulary="union")
    from_files = merged(OtaFfg(density=0.3), models, small, Execution(piece_entries=64), vocabulary="union")
    assert all(torch.equal(on_the_fly[name], from_files[name]) for name in from_files)
    whole = merged(OtaFfg(density=0.3), models, full, vocabulary="union")
    assert not all(torch.equal(on_the_fly[name], whole[name]) for name in whole)
