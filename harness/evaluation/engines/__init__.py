"""Engines: what answers the requests of an evaluation. One file each; the configuration group `backend`
chooses."""

from harness.evaluation.engines.auto import AutoBackend
from harness.evaluation.engines.choice import engine_from_config
from harness.evaluation.engines.hf import HFEngine
from harness.evaluation.engines.interface import Engine, Weights
from harness.evaluation.engines.vllm import VLLMEngine

__all__ = ["AutoBackend", "Engine", "HFEngine", "VLLMEngine", "Weights", "engine_from_config"]
