"""The canary: what a model answers to a few fixed prompts, by which one tells whether an engine holds it."""

from dataclasses import dataclass
from typing import Any

import torch

PROMPTS = (
    ("The capital of France is", " Paris, and the capital of Italy is Rome."),
    ("Question: What is 17 + 25?\nAnswer:", " 42"),
    ("def add(a, b):\n    ", "return a + b\n"),
    ("Once upon a time", " there was a king who had three daughters."),
    ("List three colours:\n1. red\n2.", " green\n3. blue"),
    ("She sells sea shells", " by the sea shore; the shells she sells are surely sea shells."),
    ("1, 1, 2, 3, 5, 8,", " 13, 21, 34, 55"),
    ("Translate to German: Good morning!\n", "Guten Morgen!"),
)
"""Contexts and continuations that any tokenizer can read: prose, arithmetic, code, lists, another language."""

CACHED_PROMPT = " ".join(f"{number} sheep and {number + 1} goats," for number in range(40))
"""Some 350 tokens: longer than the blocks that prefix caches consist of (16 on a GPU, 128 on a processor)."""

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest difference of a mean log-likelihood per token, in nats, by the number format of the weights: the same
weights give the same numbers up to the order of sums; other weights miss by far more."""


@dataclass(frozen=True)
class Canary:
    """Mean log-likelihood per token of each continuation, in nats."""

    log_likelihoods: tuple[float, ...]

    def distance(self, other: "Canary") -> float:
        """Largest difference between two readings; infinite where one has no number."""
        pairs = zip(self.log_likelihoods, other.log_likelihoods, strict=True)
        differences = [abs(mine - theirs) for mine, theirs in pairs]
        return max(difference if difference == difference else float("inf") for difference in differences)


def read_canary(lm: Any) -> Canary:
    """Ask a loaded model, through the same requests that tasks make."""
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood", {}, prompt, number) for number, prompt in enumerate(PROMPTS)]
    answered = lm.loglikelihood(requests, disable_tqdm=True)
    tokens = [max(len(lm.tok_encode(continuation)), 1) for _, continuation in PROMPTS]
    return Canary(tuple(value / number for (value, _), number in zip(answered, tokens, strict=True)))
