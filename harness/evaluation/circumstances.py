"""What an evaluation finds where it runs: facts that a score may depend on and that nobody could know beforehand."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

from harness.files import text_digest

NUMERIC_SWITCHES = ("VLLM_", "CUBLAS_", "CUDA_", "NVIDIA_TF32_", "NCCL_", "TORCH_", "PYTORCH_", "ATEN_", "OMP_", "MKL_")
"""Beginnings of environment variables that choose kernels, number formats or the order of sums."""
PRIVATE = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")
"""Variables with these in their names are never recorded."""


def circumstances(lm: Any, sandbox: str | None) -> dict[str, Any]:
    """JSON-able facts about a loaded model, as lm-eval sees it, and the machine; those that an engine does not tell
    are null.

    Args:
        lm: an `lm_eval.api.model.LM`.
        sandbox: how far model-written code is shut in; None where none runs.
    """
    return {
        "model": {
            "dtype": _dtype(lm),
            "max_length": _plain(getattr(lm, "max_length", None)),
            "max_new_tokens": _plain(getattr(lm, "max_gen_toks", None)),
            "first_token_is_bos": _starts_with_bos(lm),
            "world_size": _plain(getattr(lm, "world_size", None)),
        },
        "tokenizer": _tokenizer(getattr(lm, "tokenizer", None)),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "processor": _processor(),
            "gpus": _gpus(),
            "environment": numeric_environment(os.environ),
        },
        "sandbox": sandbox,
    }


def numeric_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that can change a number, without any that could be a secret."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if name.startswith(NUMERIC_SWITCHES) and not any(word in name for word in PRIVATE)
    }


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    template = getattr(tokenizer, "chat_template", None)
    tokens = {name: _plain(getattr(tokenizer, f"{name}_token_id", None)) for name in ("bos", "eos", "pad")}
    return {"chat_template": text_digest(str(template)) if template else None, **tokens}


def _dtype(lm: Any) -> str | None:
    """The number format that the weights have, whatever was asked for."""
    model = getattr(lm, "model", None)
    engine = getattr(getattr(model, "llm_engine", None), "model_config", None)
    dtype = getattr(engine if engine is not None else model, "dtype", None)
    return str(dtype).removeprefix("torch.") if dtype is not None else None


def _starts_with_bos(lm: Any) -> bool | None:
    """Whether a prompt's first token is the tokenizer's beginning-of-sequence token."""
    bos = getattr(getattr(lm, "tokenizer", None), "bos_token_id", None)
    if not isinstance(bos, int):
        return None
    tokens = lm.tok_encode("a")
    return bool(tokens) and tokens[0] == bos


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
            return next(names, platform.processor())
    except OSError:
        return platform.processor()


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _plain(value: Any) -> int | str | None:
    return value if value is None or isinstance(value, int) else str(value)
