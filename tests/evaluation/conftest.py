"""A tiny random model, a scripted one, and a mirror of a few items of real tasks: all made here, nothing fetched."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.model import LM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harness.evaluation import sandbox
from tests.checkpoints.llama import llama

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterable[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    sandbox.stop()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of some 30,000 parameters over characters, with a chat template."""
    folder = tmp_path_factory.mktemp("tiny-model")
    words = ["<pad>", "<end>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>", *string.printable]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    fast.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|system|>"]})
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    model = llama(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    model.save_pretrained(folder)
    return folder


class ScriptedModel(LM):
    """Answers by looking up a piece of the prompt; the likelihood of a choice is what the script gives it, else -10."""

    max_gen_toks = 256

    def __init__(self, script: Mapping[str, Any]) -> None:
        super().__init__()
        self.script = script
        self.prompts: list[str] = []

    def tok_encode(self, text: str) -> list[str]:
        return text.split()

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self.prompts += [request.args[0] for request in requests]
        return [str(self._answer(request.args[0])) for request in requests]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.prompts += [request.args[0] for request in requests]
        chosen = [(self._answer(request.args[0]), request.args[1].strip()) for request in requests]
        return [(-1.0, True) if answer == choice else (-10.0, False) for answer, choice in chosen]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError

    def _answer(self, prompt: str) -> Any:
        """The answer to the piece that stands last in the prompt, behind the few-shot examples."""
        found = {prompt.rfind(piece): answer for piece, answer in self.script.items() if piece in prompt}
        return found[max(found)] if found else ""


class Template:
    """Stands for a tokenizer with a chat template."""

    chat_template = "{{ messages }}"


class ChattingModel(ScriptedModel):
    """The same behind a chat template that puts every turn into angle brackets."""

    tokenizer_name = "template"
    tokenizer = Template()

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return "".join(f"<{turn['content']}>" for turn in chat_history)

    def chat_template(self, name: bool | str = False) -> str:
        return Template.chat_template


class ScriptedEngine:
    """An engine over a ScriptedModel."""

    def __init__(self, script: Mapping[str, Any]) -> None:
        self.model = ScriptedModel(script)

    def load(self, model: str | Path) -> ScriptedModel:
        return self.model

    def describe(self) -> dict[str, Any]:
        return {"name": "scripted"}


@pytest.fixture
def scripted() -> type[ScriptedEngine]:
    return ScriptedEngine


def write_items(path: Path, items: Iterable[Mapping[str, Any]]) -> None:
    """Write items as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A mirror with four items of gsm8k, two of ifeval and three of mmlu_anatomy, in the data sets' own fields."""
    root = tmp_path / "mirror"
    gsm8k = [{"question": f"What is {n} plus {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(10, 14)]
    write_items(root / "openai/gsm8k/main/test.jsonl", gsm8k)
    shots = [{"question": f"What is {n} minus 1?", "answer": f"#### {n - 1}"} for n in range(20, 26)]
    write_items(root / "openai/gsm8k/main/train.jsonl", shots)
    mmlu = [
        {"question": f"Bone number {n}?", "subject": "anatomy", "choices": list("wxyz"), "answer": n} for n in range(3)
    ]
    write_items(root / "cais/mmlu/anatomy/test.jsonl", mmlu)
    write_items(root / "cais/mmlu/anatomy/dev.jsonl", mmlu[:1])
    ifeval = [
        {
            "key": 1,
            "prompt": "Greet me in double quotation marks, and use no commas.",
            "instruction_id_list": ["startend:quotation", "punctuation:no_comma"],
            "kwargs": [{"num_words": None}, {"num_words": None}],
        },
        {
            "key": 2,
            "prompt": "Write no commas at all.",
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{"num_words": None}],
        },
    ]
    write_items(root / "google/IFEval/default/train.jsonl", ifeval)
    return root


@pytest.fixture
def punkt_tab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NLTK finds the folder that lm-eval looks for; the items above count no sentences, so that it may be empty."""
    import nltk

    (tmp_path / "nltk/tokenizers/punkt_tab").mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk")])


@pytest.fixture
def own_tasks(tmp_path: Path) -> Path:
    """Declarations of one's own: `capitals` (choices), `echo` (scored by its own code), `program` (runs code)."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = tmp_path / "mirror/own/data"
    cities = [("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Spain", "Madrid")]
    items = [{"country": country, "city": city, "choices": ["Paris", "Rome", "Madrid"]} for country, city in cities]
    for split in ("test", "validation"):
        write_items(data / f"default/{split}.jsonl", items if split == "test" else items[:2])
    (folder / "capitals.yaml").write_text(
        """
task: capitals
dataset_path: own/data
output_type: multiple_choice
validation_split: validation
test_split: test
doc_to_text: "The capital of {{country}} is"
doc_to_choice: "{{choices}}"
doc_to_target: "{{choices.index(city)}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 2.0}
"""
    )
    (folder / "echo.yaml").write_text(
        """
task: echo
dataset_path: own/data
output_type: generate_until
test_split: test
doc_to_text: "Say {{city}}:"
doc_to_target: "{{city}}"
process_results: !function scoring.process_results
generation_kwargs: {until: ["\\n"], max_gen_toks: 5, do_sample: false}
metric_list:
  - {metric: same, aggregation: mean, higher_is_better: true}
  - {metric: length, aggregation: mean, higher_is_better: false}
metadata: {version: 1.0}
"""
    )
    (folder / "program.yaml").write_text(
        """
include: echo.yaml
task: program
unsafe_code: true
process_results: !function scoring.run
metric_list:
  - {metric: pass@1, aggregation: mean, higher_is_better: true}
"""
    )
    (folder / "scoring.py").write_text(
        """
from harness.evaluation.sandbox import run_program


def process_results(doc, results):
    return {"same": float(results[0].strip() == doc["city"]), "length": len(results[0]) / 100}


def run(doc, results):
    return {"pass@1": float(run_program(results[0]).passed)}
"""
    )
    return folder
