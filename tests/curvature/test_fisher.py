"""Fisher information in batches, against the loop over single examples, and the examples that it is estimated from."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel

from harness.curvature import SecondMoments, empirical_fisher
from harness.curvature.batched_fisher import batched_fisher
from harness.curvature.estimating import estimate_fisher
from harness.curvature.examples import IGNORED, Example, read_examples
from harness.errors import GraftbenchError
from harness.zoo.tiny.tokenizer import build_tokenizer, encode_example, save_tokenizer
from tests.checkpoints.llama import TOKENS, llama

CHAT = [
    {"role": "user", "content": "1+1="},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2="},
    {"role": "assistant", "content": "4"},
]


def examples(lengths: tuple[int, ...], seed: int = 0) -> list[Example]:
    draw = torch.Generator().manual_seed(seed)
    found = []
    for length in lengths:
        ids = torch.randint(TOKENS, (length,), generator=draw)
        found.append(Example(ids, torch.cat([torch.full((2,), IGNORED), ids[2:]])))
    return found


def as_mappings(given: list[Example]) -> list[dict[str, Tensor]]:
    return [{"input_ids": each.input_ids, "labels": each.labels} for each in given]


def eager(**settings: Any) -> LlamaForCausalLM:
    """As the command loads models: fused attention has no rule for batches of single gradients."""
    return llama(attn_implementation="eager", **settings)


def gpt2() -> PreTrainedModel:
    torch.manual_seed(1)
    settings = {"vocab_size": TOKENS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**settings, bos_token_id=None, eos_token_id=None, attn_implementation="eager"))  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
@pytest.mark.parametrize("make", [lambda: eager(tie_word_embeddings=True), lambda: eager(), lambda: gpt2()])
def test_batches_give_what_the_loop_gives(make: Any, batch_size: int) -> None:
    """Texts of unequal length, so that some are padded; and a mean over seven, of which the last batch has fewer."""
    model, given = make(), examples((5, 9, 4, 9, 12, 3, 7))
    wanted = empirical_fisher(model, as_mappings(given))
    found = batched_fisher(model, given, batch_size)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=float(wanted[name].max()) * 1e-6)


def test_a_batch_is_not_taken_for_one_example() -> None:
    """The square of a batch's mean gradient would be another number."""
    model, given = eager(), examples((6, 6, 6, 6))
    name = "model.layers.0.mlp.up_proj.weight"
    mean = torch.zeros_like(model.get_parameter(name))
    for each in given:
        logits = model(input_ids=each.input_ids[None]).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, each.labels[1:], ignore_index=IGNORED, reduction="sum")
        mean += torch.autograd.grad(loss, model.get_parameter(name))[0] / len(given)
    found = batched_fisher(model, given, 4)[name]
    assert float(found.sum()) > 2 * float(mean.square().sum())


def test_sampled_labels_depend_on_the_seed_and_not_on_batches() -> None:
    model, given = eager(), examples((8, 5, 6))
    one = batched_fisher(model, given, 1, "sampled", seed=3)
    for size, seed, same in ((3, 3, True), (3, 4, False)):
        other = batched_fisher(model, given, size, "sampled", seed=seed)
        close = [torch.allclose(other[name], one[name], rtol=1e-3, atol=float(one[name].max()) * 1e-5) for name in one]
        assert all(close) is same
    assert not torch.allclose(one["lm_head.weight"], batched_fisher(model, given, 3)["lm_head.weight"], rtol=1e-2)


def test_sampled_labels_estimate_the_mean_over_the_models_own_answers() -> None:
    """Against Σ p(y)·(∂ log p(y))² over all tokens y, on a model that is far from indifferent between them."""
    model = eager()
    with torch.no_grad():
        model.lm_head.weight *= 200.0
    ids = torch.tensor([3, 7, 11])
    logits = model(input_ids=ids[None]).logits[0, 1]
    log_p = logits.log_softmax(-1)
    weight = model.lm_head.weight
    exact = torch.zeros_like(weight)
    for token in range(TOKENS):
        gradient = torch.autograd.grad(log_p[token], weight, retain_graph=True)[0]
        exact += log_p[token].detach().exp() * gradient.square()
    given = [Example(ids, torch.tensor([IGNORED, IGNORED, 11]))] * 2000
    found = batched_fisher(model, given, 200, "sampled")["lm_head.weight"]
    assert float((found - exact).norm() / exact.norm()) < 0.1
    data = batched_fisher(model, given[:1])["lm_head.weight"]
    assert float((data - exact).norm() / exact.norm()) > 0.5


def test_chats_are_rendered_by_the_template_and_answers_alone_are_predicted(tmp_path: Path) -> None:
    tokenizer, path = build_tokenizer(128), tmp_path / "chats.jsonl"
    lines = [{"prompt": "1+1=", "answer": "2"}, {"messages": CHAT[:2]}, {"messages": CHAT}]
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    first, second, both = read_examples(path, tokenizer, 128)
    ids, labels = encode_example(tokenizer, "1+1=", "2")
    for each in (first, second):
        assert each.input_ids.tolist() == ids and each.labels.tolist() == labels
    predicted = both.input_ids[both.labels != IGNORED]
    answer = [token for token in labels if token != IGNORED]
    four = [token for token in encode_example(tokenizer, "2+2=", "4")[1] if token != IGNORED]
    assert predicted.tolist() == answer + four
    assert torch.equal(both.labels[both.labels != IGNORED], predicted)


def test_without_a_template_text_is_plain_and_ends(tmp_path: Path) -> None:
    tokenizer, path = build_tokenizer(128), tmp_path / "plain.jsonl"
    tokenizer.chat_template = None
    path.write_text(json.dumps({"prompt": "1+1=", "completion": "2"}))
    (example,) = read_examples(path, tokenizer, 128)
    assert example.input_ids[example.labels != IGNORED].tolist() == [*tokenizer("2").input_ids, tokenizer.eos_token_id]
    path.write_text(json.dumps({"messages": CHAT}))
    with pytest.raises(GraftbenchError, match=r"plain.jsonl:1: the model has no chat template"):
        read_examples(path, tokenizer, 128)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "a"', "line 1 is no JSON"),
        ('{"question": "a"}', "bad.jsonl:1 holds question; it must hold messages"),
        ("[1]", "holds no object with names"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "no message is the assistant's"),
        ("", "no example has a token to predict"),
        ('{"prompt": "' + "1" * 60 + '", "answer": "2"}', "no example has a token to predict within max_length=32"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(GraftbenchError, match=said):
        read_examples(tmp_path / "bad.jsonl", build_tokenizer(128), 32)
    with pytest.raises(GraftbenchError, match="cannot be read"):
        read_examples(tmp_path / "nowhere.jsonl", build_tokenizer(128), 32)


def test_a_sample_of_the_lines_is_seeded(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{n}+1=", "answer": str(n + 1)}) for n in range(50)))
    tokenizer = build_tokenizer(128)

    def drawn(seed: int) -> list[list[int]]:
        return [each.input_ids.tolist() for each in read_examples(path, tokenizer, 128, 5, seed)]

    assert len(drawn(0)) == 5 and drawn(0) == drawn(0) != drawn(1)


@pytest.fixture
def expert(tmp_path: Path) -> Path:
    """A model of the embedded set's tokens, with its tokenizer and a file of examples beside it."""
    tokenizer = build_tokenizer(128)
    llama(vocab_size=len(tokenizer), tie_word_embeddings=True).save_pretrained(tmp_path / "expert")
    save_tokenizer(tokenizer, tmp_path / "expert")
    lines = [json.dumps({"prompt": f"{n}+1=", "answer": str(n + 1)}) for n in range(6)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_the_command_writes_fisher_information_and_squared_task_vectors(
    expert: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.cli import main

    monkeypatch.chdir(expert)
    monkeypatch.setenv("GRAFTBENCH_HOME", str(expert / "home"))
    main(["moments", "estimate", "model=expert", "data=data.jsonl", "out=expert", "base=expert", "batch_size=4"])
    assert "from 6 examples, labels=data" in capsys.readouterr().out
    model = LlamaForCausalLM.from_pretrained(expert / "expert")
    given = read_examples(expert / "data.jsonl", build_tokenizer(128), 1024)
    wanted = empirical_fisher(model, as_mappings(given))
    with SecondMoments(expert / "expert", "fisher") as moments:
        assert moments.tensors.keys() == wanted.keys()
        assert moments.metadata.kind == "fisher" and moments.metadata.base_digest
        assert moments.metadata.estimate == "6 examples, the data's answers"
        for name, value in wanted.items():
            torch.testing.assert_close(moments.read(name), value, rtol=1e-4, atol=float(value.max()) * 1e-6)
    main(["moments", "estimate", "kind=delta", "model=expert", "base=expert", "out=."])
    with SecondMoments(expert / "delta.safetensors") as moments:
        assert all(float(moments.read(name).abs().max()) == 0.0 for name in wanted)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model=expert", "out=x"], "data is not set"),
        (["model=expert", "out=x", "kind=delta"], "base is not set"),
        (["model=expert", "out=x", "kind=delta", "base=expert", "data=data.jsonl"], "cannot be given with kind=delta"),
        (["model=expert", "out=x", "kind=hessian"], "unknown kind 'hessian'"),
        (["model=expert", "out=x", "data=data.jsonl", "labels=guess"], "unknown labels 'guess'"),
        (["model=expert", "out=x", "data=data.jsonl", "batch_size=0"], "batch_size=0 must be 1 or more"),
        (["model=expert", "out=x", "data=data.jsonl", "device=tpu"], "device"),
        (["model=expert", "out=expert/model.safetensors", "data=data.jsonl"], "exists already"),
    ],
)
def test_bad_options_are_refused(
    expert: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.cli import main

    monkeypatch.chdir(expert)
    monkeypatch.setenv("GRAFTBENCH_HOME", str(expert / "home"))
    with pytest.raises(SystemExit) as stopped:
        main(["moments", "estimate", *arguments])
    assert stopped.value.code == 1
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_no_examples_and_a_checkpoint_under_other_names_are_refused(expert: Path) -> None:
    with pytest.raises(GraftbenchError, match="at least one example"):
        batched_fisher(llama(), [])
    from safetensors.torch import load_file, save_file

    file = expert / "expert" / "model.safetensors"
    save_file({f"base.{name}": value for name, value in load_file(file).items()}, file)
    with pytest.raises(GraftbenchError, match=r"trains 'model\.embed_tokens\.weight' \(and"):
        estimate_fisher(expert / "expert", expert / "data.jsonl", expert / "out.safetensors")
