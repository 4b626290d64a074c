"""The engine `hf`: transformers, through lm-eval's HFLM. Works on a processor and on one GPU."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import GraftbenchError, unknown_name

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class HFEngine:
    """These fields are the schema of `backend=hf`."""

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
        if self.dtype not in DTYPES:
            raise unknown_name("value of backend.dtype", self.dtype, DTYPES)
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise GraftbenchError(f"backend.batch_size is {self.batch_size}; it must be a whole number, 1 or more")

    def load(self, model: str | Path) -> Any:
        """Load a checkpoint as an lm-eval HFLM.

        Raises:
            GraftbenchError: the device does not exist, or transformers cannot load the model.
        """
        from lm_eval.models.huggingface import HFLM

        device = self.resolved_device()
        try:
            return HFLM(
                pretrained=_absolute(model),
                device=device,
                dtype=self.dtype,
                batch_size=self.batch_size,
                max_length=self.max_length,
            )
        except (OSError, ValueError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise GraftbenchError(f"{model}: transformers cannot load this model: {first_line}") from error

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
        import torch

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


def _absolute(model: str | Path) -> str:
    """A folder's absolute path: a relative one shaped like `org/name` would be looked up on the hub."""
    path = Path(model).expanduser()
    return str(path.absolute()) if path.exists() else str(model)
