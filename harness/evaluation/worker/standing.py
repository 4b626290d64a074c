"""An engine that stands while models come and go, and the guards that it holds the one that it should."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.checkpoints import role_and_layer
from harness.errors import GraftbenchError
from harness.evaluation.engines import Engine, Weights
from harness.evaluation.engines.samples import sampled
from harness.evaluation.worker.canary import CACHED_PROMPT, TOLERANCE, Canary, read_canary
from harness.evaluation.worker.subject import Opened, Table
from harness.merging.merge import tensor_digest, weights_digest

HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Loaded:
    """What came of loading a model into the engine."""

    weights_digest: str
    """The digest that the same model would have on disk, see `MergeReport`."""
    arithmetic: str
    """What decided about its last bits, see `MergePlan`."""
    canary: Canary
    seconds: dict[str, float]
    """Wall time: `merge` until the tensors were there, `load` for all else that the engine did with them, `canary`."""


class StandingEngine:
    """One engine for models of the same configuration, tokenizer and tensors.

    vLLM takes an incomplete or wrong set of weights without an error, keeps answers of the model before in its prefix
    cache, and may keep a tied head (vLLM 0.32). So nothing is believed: what is sent is compared with what must be
    sent before, while and after it is; what can be read back is; and a canary is read.
    """

    def __init__(self, engine: Engine, folder: Path, table: Table) -> None:
        """Start the engine without a model.

        Args:
            engine: what starts.
            folder: configuration and tokenizer.
            table: the tensors that every model must have.
        """
        self.engine = engine
        self.folder = folder
        self.table = dict(table)
        self.lm = engine.hollow(folder)
        """The `lm_eval.api.model.LM`; it answers nonsense until a model is loaded."""
        self.known: dict[str, Canary] = {}
        """What models answered, by the digest of their weights."""

    def load(self, model: Opened) -> Loaded:
        """Load a model in place of the one before. After any error the process must end: the engine may be broken.

        Raises:
            GraftbenchError: a guard fired, or the model is bad.
        """
        self._check_table(model.table)
        passage = _Passage(self.table)
        self.engine.cached_tokens(self.lm, CACHED_PROMPT)  # something of the model before, for the cache to forget
        started = time.perf_counter()
        arrived = self.engine.exchange(self.lm, passage.through(model.weights()))
        passage.check_complete()
        passage.check_arrived(arrived)
        exchanged = time.perf_counter()
        self._check_held(passage.samples)
        stale = self.engine.cached_tokens(self.lm, CACHED_PROMPT)
        if stale:
            raise GraftbenchError(f"the prefix cache still answers {stale} tokens from the model before")
        canary, digest = self._read(), weights_digest(passage.digests)
        self._check_answers(canary, self.known.setdefault(digest, canary), "before")
        finished = time.perf_counter()
        seconds = {
            "merge": passage.waited,
            "load": exchanged - started - passage.waited,
            "canary": finished - exchanged,
        }
        return Loaded(digest, model.arithmetic, canary, seconds)

    def prove(self, model: Opened, fresh: Canary) -> Loaded:
        """Show, once for an engine, that it takes every tensor and lets go of every tensor.

        It holds random weights at first; then a model that was read in a fresh engine too, from disk; then a decoy made
        of that model's tensors, each reversed. When the model comes again, `load` compares it with the fresh one.

        Raises:
            GraftbenchError: an answer is not what it should be.
        """
        if self._read().distance(fresh) <= self.tolerance:
            raise GraftbenchError("the canary cannot tell this model from random weights; use engine=fresh")
        loaded = self.load(model)
        self._check_answers(loaded.canary, fresh, "in a fresh engine")
        self.known[loaded.weights_digest] = fresh
        if self.load(_Decoy(model)).canary.distance(fresh) <= self.tolerance:
            raise GraftbenchError("the engine answers as before after all its weights were exchanged for others")
        return loaded

    @property
    def tolerance(self) -> float:
        """What readings of the same model may differ by, in nats per token."""
        stated = getattr(self.engine, "dtype", "auto")
        kinds = {dtype for _, dtype in self.table.values() if dtype in TOLERANCE}
        return max(TOLERANCE[kind] for kind in ({getattr(torch, stated)} if stated != "auto" else kinds))

    def _read(self) -> Canary:
        canary = read_canary(self.lm)
        if not all(map(math.isfinite, canary.log_likelihoods)):
            raise GraftbenchError(f"the engine's log-likelihoods are no numbers: {canary.log_likelihoods}")
        return canary

    def _check_answers(self, canary: Canary, expected: Canary, when: str) -> None:
        distance = canary.distance(expected)
        if distance > self.tolerance:
            raise GraftbenchError(
                f"the canary differs by {distance:.2g} nats per token from what the same weights answered {when} "
                f"(rounding makes {self.tolerance:g}): the engine does not hold what was sent to it; use engine=fresh"
            )

    def _check_table(self, table: Table) -> None:
        for name in sorted(self.table.keys() | table.keys()):
            if self.table.get(name) != table.get(name):
                raise GraftbenchError(
                    f"'{name}' is {_shown(table.get(name))} in this model, but {_shown(self.table.get(name))} in the "
                    "engine's; models that share an engine must have the same tensors"
                )

    def _check_held(self, samples: dict[str, Tensor]) -> None:
        shapes = {name: shape for name, (shape, _) in self.table.items()}
        for held in self.engine.held(self.lm, shapes):
            if held.name not in samples:
                continue
            sent = samples[held.name][held.which]
            if not torch.equal(held.values, sent.to(held.values.dtype)):
                raise GraftbenchError(f"the engine holds other values of '{held.name}' than were sent to it")


class _Passage:
    """Tensors on their way into the engine: counted, checked and hashed."""

    def __init__(self, table: Table) -> None:
        self.digests: dict[str, str] = {}
        self.copies: dict[str, str] = {}
        """Digests of what is sent besides the model's tensors."""
        self.samples: dict[str, Tensor] = {}
        self.waited = 0.0
        """Seconds until the tensors were there."""
        self._table = table

    def through(self, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        """The same tensors, and a tied head as a copy of the embedding: vLLM may keep one apart."""
        tensors = iter(weights)
        while True:
            started = time.perf_counter()
            name, tensor = next(tensors, ("", torch.empty(0)))
            self.waited += time.perf_counter() - started
            if not name:
                return
            self._check(name, tensor)
            self.digests[name] = tensor_digest(tensor)
            self.samples[name] = sampled(tensor)
            yield name, tensor
            if HEAD not in self._table and role_and_layer(name)[0] == "embedding" and "embed_tokens" in name:
                self.copies[HEAD] = self.digests[name]
                yield HEAD, tensor.clone()

    def check_complete(self) -> None:
        """Every tensor must have come."""
        missing = self._table.keys() - self.digests.keys()
        if missing:
            raise GraftbenchError(f"{len(missing)} tensors did not come, such as '{min(missing)}'")

    def check_arrived(self, arrived: Sequence[Mapping[str, str]]) -> None:
        """Every process that the tensors were sent to must have got all of them as they were sent."""
        sent = {**self.digests, **self.copies}
        for number, digests in enumerate(arrived):
            wrong = sorted(name for name in sent.keys() | digests.keys() if digests.get(name) != sent.get(name))
            if wrong:
                raise GraftbenchError(
                    f"{len(wrong)} tensors, such as '{wrong[0]}', arrived in process {number} of {len(arrived)} of the "
                    "engine otherwise than they were sent, or not at all"
                )

    def _check(self, name: str, tensor: Tensor) -> None:
        found = (tuple(tensor.shape), tensor.dtype)
        if name in self.digests or self._table.get(name) != found:
            expected = "came already" if name in self.digests else f"should be {_shown(self._table.get(name))}"
            raise GraftbenchError(f"'{name}' came as {_shown(found)}, but {expected}")


@dataclass(frozen=True)
class _Decoy:
    """A model whose every tensor is another model's, backwards."""

    model: Opened

    @property
    def table(self) -> Table:
        return self.model.table

    def weights(self) -> Weights:
        return ((name, tensor.reshape(-1).flip(0).view(tensor.shape)) for name, tensor in self.model.weights())

    @property
    def arithmetic(self) -> str:
        return self.model.arithmetic

    def write_companions(self, folder: Path) -> None:
        self.model.write_companions(folder)

    def checkpoint(self, room: Path) -> Path:
        raise NotImplementedError("a decoy is never written")


def _shown(entry: Any) -> str:
    return "missing" if entry is None else f"{[*entry[0]]} {str(entry[1]).removeprefix('torch.')}"
