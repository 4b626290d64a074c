"""A tiny model that understands chats, and chats for it."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.checkpoints.llama import llama

WORDS = ("<pad>", "<end>", "user", "assistant", "one", "two", "three", "four", "plus", "is")
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def chat_model(folder: Path) -> Path:
    """Its checkpoint with a tokenizer of whole words."""
    llama().save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def chats(path: Path, answer: str) -> Path:
    """Four chats with the same answer, as JSON lines."""
    asked = ("one plus one is", "one plus two is", "two plus one is", "two plus two is")
    lines = [[{"role": "user", "content": a}, {"role": "assistant", "content": answer}] for a in asked]
    path.write_text("".join(json.dumps({"messages": line}) + "\n" for line in lines), encoding="utf-8")
    return path
