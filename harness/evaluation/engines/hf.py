"""The engine `hf`: transformers, through lm-eval's HFLM. Works on a processor and on one GPU."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from harness.errors import GraftbenchError, unknown_name
from harness.evaluation.engines.dtypes import check_dtype, dtype_of
from harness.evaluation.engines.interface import Weights
from harness.evaluation.engines.samples import Held, sampled_in_part


@dataclass
class HFEngine:
    """These fields are the schema of `backend=hf`."""

    own_process: ClassVar[bool] = False

    name: str = "hf"
    """Name of the engine."""
    batch_size: int = 16
    """Requests that are answered together; larger is faster until memory ends."""
    dtype: str = "auto"
    """Number format of the weights while answering: float32, bfloat16, float16, or auto for the checkpoint's
    own."""
    device: str = "auto"
    """cpu, cuda, cuda:0 …; auto takes a GPU if there is one."""
    max_length: int | None = None
    """Longest prompt and answer together, in tokens. Default: what the model's configuration says."""

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise GraftbenchError(f"backend.batch_size is {self.batch_size}; it must be a whole number, 1 or more")

    def load(self, model: str | Path) -> Any:
        """Load a checkpoint as an lm-eval HFLM.

        Raises:
            GraftbenchError: the device does not exist, or transformers cannot load the model.
        """
        try:
            return self._asked_through(pretrained=_absolute(model), dtype=self.dtype)
        except (OSError, ValueError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise GraftbenchError(f"{model}: transformers cannot load this model: {first_line}") from error

    def check_exchange(self) -> None:
        """All settings allow it."""

    def hollow(self, folder: Path) -> Any:
        """An HFLM of the folder's configuration and tokenizer, whose weights are drawn at random."""
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        config = AutoConfig.from_pretrained(folder)
        dtype = getattr(torch, dtype_of(folder) if self.dtype == "auto" else self.dtype)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        if (folder / "generation_config.json").exists():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        model = model.eval().to(self.resolved_device())
        return self._asked_through(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder))

    def exchange(self, lm: Any, weights: Weights) -> Sequence[Mapping[str, str]]:
        """Copy each tensor over the one of its name.

        Raises:
            GraftbenchError: a tensor is not the model's, or of another shape, or one of the model's did not come.
        """
        own = lm.model.state_dict()
        left = set(own)
        with torch.no_grad():
            for name, tensor in weights:
                if name not in own or own[name].shape != tensor.shape:
                    raise GraftbenchError(f"the model in the engine has no tensor '{name}' of shape {[*tensor.shape]}")
                own[name].copy_(tensor)
                left.discard(name)
        if left:
            raise GraftbenchError(f"{len(left)} tensors of the model were not replaced, such as '{min(left)}'")
        return ()

    def held(self, lm: Any, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Held]:
        """Of all the model's tensors."""
        for name, tensor in lm.model.state_dict().items():
            if name in shapes:
                yield sampled_in_part(name, tensor, shapes[name], (0,) * tensor.dim())

    def cached_tokens(self, lm: Any, prompt: str) -> int:
        """None: every prompt is computed whole."""
        return 0

    def describe(self) -> dict[str, Any]:
        """Engine, options and versions that can change a score; the kind of device, not its number."""
        return {
            "name": self.name,
            "batch_size": self.batch_size,
            "dtype": self.dtype,
            "device": self.resolved_device().partition(":")[0],
            "max_length": self.max_length,
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        }

    def resolved_device(self) -> str:
        """The device to use.

        Raises:
            GraftbenchError: it does not exist here.
        """
        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        kind, _, number = self.device.partition(":")
        if kind not in ("cpu", "cuda"):
            raise unknown_name("device", self.device, ("cpu", "cuda", "auto"))
        if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
            raise GraftbenchError(
                f"device '{self.device}' does not exist here ({torch.cuda.device_count()} GPUs); use device=cpu"
            )
        return self.device

    def _asked_through(self, **model: Any) -> Any:
        from lm_eval.models.huggingface import HFLM

        device = self.resolved_device()
        return HFLM(device=device, batch_size=self.batch_size, max_length=self.max_length, **model)


def _absolute(model: str | Path) -> str:
    """A folder's absolute path: a relative one shaped like `org/name` would be looked up on the hub."""
    path = Path(model).expanduser()
    return str(path.absolute()) if path.exists() else str(model)
