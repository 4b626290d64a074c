"""What goes on in the process that holds a model of vLLM's, be it the engine's own or one of several ranks.

The functions are called there through `collective_rpc`, which gives them vLLM's worker.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch

from harness.evaluation.engines.handover import received
from harness.evaluation.engines.interface import Weights
from harness.evaluation.engines.samples import Held, sampled_in_part
from harness.evaluation.engines.vllm_shards import shards_of
from harness.merging.merge import tensor_digest

_set_num_threads = torch.set_num_threads


@dataclass(frozen=True)
class Taken:
    """How a rank took new weights."""

    complaints: list[str]
    """What vLLM only warns of: weights that did not come, and layers that kept their old ones."""
    digests: dict[str, str] = field(default_factory=dict)
    """Of the tensors that came through shared memory, by name."""


def take_weights(worker: Any, weights: Weights) -> Taken:
    """Reload all weights in place."""
    # vLLM's build for processors forbids to set the number of threads, which merges do for a thread of theirs.
    with (
        _complaints_about_loading(_kinds_with_weights(worker.get_model())) as complaints,
        mock.patch("torch.set_num_threads", _set_num_threads),
    ):
        worker.reload_weights(weights_iterator=iter(weights))
    return Taken(complaints)


def take_weights_from(worker: Any, address: bytes) -> Taken:
    """Reload all weights in place as they come from another process; vLLM takes this rank's part of each tensor."""
    digests: dict[str, str] = {}

    def hashed(tensors: Weights) -> Weights:
        for name, tensor in tensors:
            digests[name] = tensor_digest(tensor)
            yield name, tensor

    with contextlib.closing(received(address)) as tensors:  # so that a failure here is seen there at once
        return Taken(take_weights(worker, hashed(tensors)).complaints, digests)


def held_samples(worker: Any, shapes: Mapping[str, tuple[int, ...]]) -> list[Held]:
    """What this rank holds of the sampled entries; see `Engine.held`."""
    from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

    rank, ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
    shards = shards_of(worker.get_model(), shapes, rank, ranks)
    return [sampled_in_part(shard.name, shard.block, shapes[shard.name], shard.start) for shard in shards]


def _kinds_with_weights(model: Any) -> set[str]:
    """The kinds of layers that have weights of their own; others have tables, which no checkpoint holds."""
    return {type(layer).__name__ for layer in model.modules() if any(True for _ in layer.parameters(recurse=False))}


@contextlib.contextmanager
def _complaints_about_loading(weighted: set[str]) -> Iterator[list[str]]:
    complaints: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            kept = text.endswith(": Failed to load weights") and text.partition(":")[0] in weighted
            if kept or "weights were not loaded" in text:
                complaints.append(text)

    logger = logging.getLogger("vllm")
    level, handlers = logger.level, logger.handlers
    logger.handlers = [Listener()]
    logger.setLevel(logging.WARNING)
    try:
        yield complaints
    finally:
        logger.handlers = handlers
        logger.setLevel(level)
