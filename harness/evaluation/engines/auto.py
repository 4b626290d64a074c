"""`backend=auto`: vLLM where a GPU and vLLM are present, else transformers."""

from dataclasses import dataclass

from harness.evaluation.engines.hf import HFEngine
from harness.evaluation.engines.vllm import VLLMEngine, vllm_version


@dataclass
class AutoBackend:
    """These fields are the schema of `backend=auto`: what both engines have."""

    name: str = "auto"
    """Name of the choice."""
    dtype: str = "auto"
    """Number format of the weights while answering: float32, bfloat16, float16, or auto for the checkpoint's
    own."""
    max_length: int | None = None
    """Longest prompt and answer together, in tokens. Default: what the model's configuration says."""

    def engine(self) -> HFEngine | VLLMEngine:
        """The engine for this machine; it describes itself as if it had been named."""
        import torch

        kind = VLLMEngine if vllm_version() is not None and torch.cuda.is_available() else HFEngine
        return kind(dtype=self.dtype, max_length=self.max_length)
