"""lm-eval's VLLM, mended where it would fail or answer other than its HFLM. Importing this imports vLLM."""

import importlib.metadata
import sys
from typing import Any
from unittest import mock

import vllm  # it looks up its own version, so it comes before lm-eval's part

from harness.evaluation.engines.vllm import vllm_version

_VERSION, _version_of = str(vllm_version()), importlib.metadata.version


def _version(name: str) -> str:
    """lm-eval asks for the version of `vllm`, which the build for processors does not answer to."""
    return _VERSION if name == "vllm" else _version_of(name)


with mock.patch("importlib.metadata.version", _version):  # lm-eval keeps the function that it imports
    from lm_eval.models.vllm_causallms import VLLM


class AskedVLLM(VLLM):
    """Answers are decoded as HFLM decodes them: special tokens left out, an unfinished character marked.

    vLLM stops at the same tokens either way, since stop texts are looked for in a text that has special tokens.
    """

    def _model_generate(self, requests: Any, generate: bool = False, sampling_params: Any = None) -> Any:
        if not generate or sampling_params is None:
            sampling_params = vllm.SamplingParams(temperature=0, prompt_logprobs=1, max_tokens=1, detokenize=False)
        prompts = [vllm.TokensPrompt(prompt_token_ids=tokens) for tokens in requests]
        outputs = self.model.generate(prompts, sampling_params=sampling_params, use_tqdm=sys.stderr.isatty())
        if generate:
            for output in outputs:
                answer = output.outputs[0]
                answer.text = self.tokenizer.decode(list(answer.token_ids), skip_special_tokens=True)
        return outputs
