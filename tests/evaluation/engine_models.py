"""Random Llama models, with tied and untied heads, long enough for prefix caches; and engines that go wrong."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from harness.evaluation.engines import HFEngine, Weights
from harness.evaluation.engines.samples import Held
from tests.checkpoints.llama import llama

PROMPTS = (
    "Hello world, this is",
    "a b c d e f",
    "What is 3 + 4? ",
    "def add(a, b):\n    ",
    "one two three four five six seven eight nine ten",
)


def random_llama(folder: Path, tokenizer: Path, seed: int, tied: bool, like: Path | None = None) -> Path:
    """A Llama of two layers with weights large enough to make other weights answer otherwise.

    Args:
        folder: where it is written.
        tokenizer: a folder with the tokenizer.
        seed: of the weights.
        tied: whether the head is the embedding.
        like: a model near which the weights are drawn, as fine-tuning would; None draws them far from everything.
    """
    fast = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    if like is None:
        model = llama(
            seed,
            vocab_size=len(fast),
            hidden_size=64,
            intermediate_size=128,
            num_key_value_heads=1,
            max_position_embeddings=1024,
            tie_word_embeddings=tied,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    else:
        torch.manual_seed(seed)
        model = LlamaForCausalLM.from_pretrained(like)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.15 if like is None else 0.02))
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


class Faulty(HFEngine):
    """transformers with the faults that a running engine can have; `fault` names one."""

    fault = ""

    def exchange(self, lm: Any, weights: Weights) -> Sequence[Mapping[str, str]]:
        """Exchange the weights, less what the fault leaves out."""
        own = lm.model.state_dict()
        with torch.no_grad():
            for name, tensor in weights:
                if not (self.fault == "skipped tensor" and name == "model.layers.1.mlp.down_proj.weight"):
                    own[name].copy_(tensor)
        return ()

    def held(self, lm: Any, shapes: Any) -> Iterator[Held]:
        """Nothing can be read back, as of matrices that vLLM packs: the canary is on its own."""
        yield from ()

    def cached_tokens(self, lm: Any, prompt: str) -> int:
        """A prefix cache that was not dropped, if that is the fault."""
        return 128 if self.fault == "stale prefix cache" else 0
