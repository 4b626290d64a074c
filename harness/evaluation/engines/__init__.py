"""Engines: what answers the requests of an evaluation. One file each; the configuration group `backend`
chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from harness.errors import GraftbenchError, unknown_name
from harness.evaluation.engines.hf import HFEngine

ENGINES: dict[str, type[HFEngine]] = {"hf": HFEngine}


class Engine(Protocol):
    """Turns a checkpoint's folder into the language-model object that lm-eval asks."""

    def load(self, model: str | Path) -> Any:
        """Load a checkpoint (a folder, or a name on the Hugging Face hub) as an `lm_eval.api.model.LM`."""
        ...

    def describe(self) -> dict[str, Any]:
        """What of the engine can change a score: JSON-able, for the key of a result."""
        ...


def engine_from_config(config: Mapping[str, Any]) -> Engine:
    """The engine that a configuration describes.

    Raises:
        GraftbenchError: an unknown engine, option or device.
    """
    given = {str(name): value for name, value in config.items()}
    name = str(given.pop("name", "hf"))
    if name == "vllm":
        raise GraftbenchError("the vLLM engine comes with a later version; use backend=hf")
    if name not in ENGINES:
        raise unknown_name("backend", name, ENGINES)
    valid = [each.name for each in fields(ENGINES[name])]
    for option in given:
        if option not in valid:
            raise unknown_name("option of backend", option, valid)
    return ENGINES[name](**given)
