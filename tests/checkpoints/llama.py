"""Small random Llama models, for what only a real architecture shows."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS = 40


def llama(seed: int = 0, **changed: Any) -> LlamaForCausalLM:
    """Two blocks of width 16 with two heads over 40 tokens, its head untied, unless settings of the architecture say
    otherwise; the same weights for the same seed."""
    settings = {
        "vocab_size": TOKENS,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        **changed,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**settings))
