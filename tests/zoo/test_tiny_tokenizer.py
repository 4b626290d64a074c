"""The character tokenizer: what goes in comes out, and training and evaluation render the same text."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from harness.zoo.tiny.items import CAPABILITIES, Counts, generate_items
from harness.zoo.tiny.tokenizer import build_tokenizer, encode_example


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(128).save_pretrained(folder)
    loaded: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    return loaded


def test_text_survives_encoding_and_decoding(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "def f(a,b):\n  return  a%3==0 # ~ok!"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_foreign_character_is_unknown(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("é")["input_ids"] == [tokenizer.unk_token_id]


def test_the_chat_template_marks_turns_with_one_token_each(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "1+1="}]
    asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert asked == "<|user|>1+1=<|assistant|>"
    assert len(tokenizer(asked)["input_ids"]) == 6
    answered = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": "2"}], tokenize=False)
    assert answered == "<|user|>1+1=<|assistant|>2<|end|>"


def test_only_the_answer_and_its_end_are_learnt(tokenizer: PreTrainedTokenizerFast) -> None:
    input_ids, labels = encode_example(tokenizer, "1+1=", "2")
    assert tokenizer.decode(input_ids) == "<|user|>1+1=<|assistant|>2<|end|>"
    assert labels[:6] == [-100] * 6
    assert labels[6:] == input_ids[6:] and len(labels) == 8
    assert labels[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_item_fits_and_has_no_unknown_character(capability: str, tokenizer: PreTrainedTokenizerFast) -> None:
    for items in generate_items(capability, 0, Counts(300, 60, 60)).values():
        for item in items:
            input_ids, _ = encode_example(tokenizer, item["prompt"], item["answer"])
            assert len(input_ids) <= 80
            assert tokenizer.unk_token_id not in input_ids
