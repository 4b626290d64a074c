"""Small Llama checkpoints with byte-level BPE tokenizers, whose rows can be told apart by the token they belong to."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from harness.checkpoints import Checkpoint
from tests.checkpoints.llama import llama

SPECIAL = ("<bos>", "<eos>")
HIDDEN = 8
TEMPLATE = "{% for message in messages %}<bos>{{ message['content'] }}<eos>{% endfor %}"


@cache
def trained() -> str:
    """A BPE with 270 tokens, as JSON."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=270, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat", "a dog ran over the log"] * 5, trainer)
    return str(tokenizer.to_str())


def tokenizer(added: Sequence[AddedToken | str] = (), numbers: Mapping[str, int] | None = None) -> Tokenizer:
    """The trained tokenizer with more tokens; `numbers` renumbers those of its core vocabulary."""
    described = json.loads(trained())
    if numbers is not None:
        described["model"]["vocab"] = dict(numbers)
        for token in described["added_tokens"]:
            token["id"] = numbers[token["content"]]
    built = Tokenizer.from_str(json.dumps(described))
    built.add_tokens(list(added))
    return built


def save(
    folder: Path, built: Tokenizer | None, rows: int | None = None, seed: int = 0, *, tied: bool = False
) -> Checkpoint:
    """A random Llama with a tokenizer and `rows` embedding rows (as many as tokens, if not given)."""
    if built is not None:
        rows = rows or built.get_vocab_size()
        fast = PreTrainedTokenizerFast(
            tokenizer_object=built, bos_token="<bos>", eos_token="<eos>", chat_template=TEMPLATE
        )
        fast.save_pretrained(folder)
    model = llama(
        seed,
        vocab_size=rows or 0,
        hidden_size=HIDDEN,
        intermediate_size=8,
        num_hidden_layers=1,
        num_key_value_heads=1,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=tied,
    )
    model.save_pretrained(folder)
    return Checkpoint(folder)


def ids(checkpoint: Checkpoint) -> dict[str, int]:
    """Token numbers by tokenizers alone."""
    found: dict[str, int] = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json")).get_vocab()
    return found


def save_as_gpt2(folder: Path, added: Mapping[str, int]) -> None:
    """The trained tokenizer and added tokens in the files of older releases, without tokenizer.json."""
    model = json.loads(trained())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (folder / "added_tokens.json").write_text(json.dumps(added))
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
