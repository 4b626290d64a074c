"""From the configuration group `backend` to an engine."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from harness.errors import unknown_name
from harness.evaluation.engines.auto import AutoBackend
from harness.evaluation.engines.hf import HFEngine
from harness.evaluation.engines.interface import Engine
from harness.evaluation.engines.vllm import VLLMEngine

BACKENDS: dict[str, type[AutoBackend] | type[HFEngine] | type[VLLMEngine]] = {
    "auto": AutoBackend,
    "hf": HFEngine,
    "vllm": VLLMEngine,
}


def engine_from_config(config: Mapping[str, Any]) -> Engine:
    """The engine that a configuration describes; whether it can run here is seen when it is described.

    Raises:
        GraftbenchError: an unknown engine, or an unknown option or value of one.
    """
    given = {str(name): value for name, value in config.items()}
    name = str(given.get("name", "hf"))
    if name not in BACKENDS:
        raise unknown_name("backend", name, BACKENDS)
    valid = [each.name for each in fields(BACKENDS[name])]
    for option in given:
        if option not in valid:
            raise unknown_name(f"option of backend={name}", option, valid)
    backend = BACKENDS[name](**given)
    return backend.engine() if isinstance(backend, AutoBackend) else backend
