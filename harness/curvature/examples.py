"""Examples to estimate Fisher information from: chats, or prompts and answers, out of a file of JSON lines."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.errors import GraftbenchError

IGNORED = -100
"""The label of tokens that are not predicted."""

ANSWERS = ("answer", "completion")
"""What the answer to a prompt may be called."""


@dataclass(frozen=True)
class Example:
    """One text as a model sees it."""

    input_ids: Tensor
    """int64, `[tokens]`."""
    labels: Tensor
    """The same; −100 where nothing is predicted."""


def read_examples(
    path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int, limit: int | None = None, seed: int = 0
) -> list[Example]:
    """The examples of a file, in its order; those without a token to predict are left out.

    A line holds `messages` (a list of `role` and `content`), or `prompt` and `answer` (or `completion`). Chats are
    rendered by the tokenizer's chat template, and what the assistant says is predicted, its end mark included. A
    prompt and its answer are a chat of two messages where there is a template, or else plain text and its end.

    Args:
        path: the file, one JSON object on a line.
        tokenizer: the model's.
        max_length: tokens after which an example is cut off.
        limit: take so many lines, drawn at random; None takes all.
        seed: of that choice.

    Raises:
        GraftbenchError: a line is none of these, chats have no template, or nothing is left to predict; the line is
            named.
    """
    if not tokenizer.is_fast:
        raise GraftbenchError(f"the tokenizer {type(tokenizer).__name__} cannot tell where its tokens lie in a text")
    lines = list(_lines(path))
    if limit is not None and limit < len(lines):
        chosen = sorted(random.Random(seed).sample(range(len(lines)), limit))
        lines = [lines[place] for place in chosen]
    found = [_example(tokenizer, given, f"{path}:{number}", max_length) for number, given in lines]
    examples = [example for example in found if bool((example.labels[1:] != IGNORED).any())]
    if not examples:
        raise GraftbenchError(f"{path}: no example has a token to predict within max_length={max_length} tokens")
    return examples


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, json.loads(line)
    except OSError as error:
        raise GraftbenchError(f"{path} cannot be read ({error.strerror}); name a file of JSON lines") from error
    except ValueError as error:
        raise GraftbenchError(f"{path}: line {number} is no JSON ({error})") from error


def _example(tokenizer: PreTrainedTokenizerBase, given: Any, where: str, max_length: int) -> Example:
    messages = _messages(given, where)
    if tokenizer.chat_template is None and "messages" in given:
        raise GraftbenchError(f"{where}: the model has no chat template, so give prompts and answers instead of chats")
    text, spans = _rendered(tokenizer, messages, where) if tokenizer.chat_template else _plain(tokenizer, messages)
    encoded = tokenizer(text, add_special_tokens=not tokenizer.chat_template, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"][:max_length], encoded["offset_mapping"][:max_length]
    labels = [
        token if any(begin <= first < end for begin, end in spans) else IGNORED
        for token, (first, _) in zip(ids, offsets, strict=True)
    ]
    return Example(torch.tensor(ids, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64))


def _messages(given: Any, where: str) -> list[dict[str, str]]:
    """The line as a chat."""
    held = given if isinstance(given, Mapping) else {}
    prompt, answer = held.get("prompt"), next((held[name] for name in ANSWERS if name in held), None)
    if isinstance(prompt, str) and isinstance(answer, str):
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    messages = held.get("messages")
    if not isinstance(messages, list) or not all(
        isinstance(each, Mapping) and isinstance(each.get("role"), str) and isinstance(each.get("content"), str)
        for each in messages
    ):
        raise GraftbenchError(
            f"{where} holds {', '.join(held) or 'no object with names'}; it must hold messages (each with role and "
            f"content), or prompt and {' or '.join(ANSWERS)}, as text"
        )
    if not any(each["role"] == "assistant" for each in messages):
        raise GraftbenchError(f"{where}: no message is the assistant's, so there is nothing to predict")
    return [dict(each) for each in messages]


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], where: str
) -> tuple[str, list[tuple[int, int]]]:
    """A chat as its template has it, and where the assistant's words lie in that text."""

    def render(count: int, asked: bool = False) -> str:
        return str(tokenizer.apply_chat_template(list(messages[:count]), tokenize=False, add_generation_prompt=asked))

    text, spans = render(len(messages)), []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = render(place, asked=True), render(place + 1)
        if not (text.startswith(after) and after.startswith(before)):
            raise GraftbenchError(
                f"{where}: the chat template renders message {place + 1} otherwise than at the end of a shorter chat, "
                "so nobody can tell which tokens the model has to predict; split the chat into prompts and answers"
            )
        spans.append((len(before), len(after)))
    return text, spans


def _plain(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]
) -> tuple[str, list[tuple[int, int]]]:
    prompt, answer = messages[0]["content"], messages[1]["content"] + (tokenizer.eos_token or "")
    return prompt + answer, [(len(prompt), len(prompt) + len(answer))]
