"""Training of one tiny model: AdamW, loss on the answers alone, the same bytes every time."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

log = logging.getLogger(__name__)

THREADS = 2
"""Threads of the matrix kernels: a fixed number, since sums in another order would give other weights."""
IGNORED = -100


@dataclass(frozen=True)
class Example:
    """One question and its answer as token ids; labels are -100 outside the answer."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Pool:
    """Examples of one kind, and the share of every batch (on average) that is drawn from them."""

    examples: Sequence[Example]
    share: float


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a model is trained."""

    steps: int
    learning_rate: float
    batch_size: int = 64
    warmup_share: float = 0.05
    final_share: float = 0.1
    """The learning rate falls along a cosine to this share of its peak."""
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_norm: float = 1.0

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, …: a linear warm-up, then half a cosine."""
        warmup = max(1, round(self.warmup_share * self.steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * (self.final_share + (1 - self.final_share) * cosine)


@dataclass(frozen=True)
class Progress:
    """What a running training reports after a step."""

    step: int
    steps: int
    loss: float
    seconds_left: float


def train(
    model: LlamaForCausalLM,
    pools: Sequence[Pool],
    schedule: Schedule,
    rng: random.Random,
    report: Callable[[Progress], None] = lambda progress: None,
) -> torch.optim.AdamW:
    """Trains the model in place and returns the optimizer, whose state holds the second moments."""
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=schedule.learning_rate,
        betas=schedule.betas,
        weight_decay=schedule.weight_decay,
        foreach=True,
    )
    batches = draw_batches(pools, schedule.batch_size, rng)
    model.train()
    started = time.monotonic()
    with deterministic():
        for step in range(schedule.steps):
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate_at(step)
            loss = accumulate_gradients(model, next(batches))
            torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.gradient_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            elapsed = time.monotonic() - started
            left = elapsed / (step + 1) * (schedule.steps - step - 1)
            report(Progress(step + 1, schedule.steps, loss, left))
    model.eval()
    return optimizer


def accumulate_gradients(model: LlamaForCausalLM, batch: Sequence[Example], pieces: int = 2) -> float:
    """Adds the gradient of the batch's mean loss, in pieces of similar length so that little is padding.

    The loss of an example is the mean over its answer's tokens: long answers weigh no more than short ones.
    """
    ordered = sorted(batch, key=lambda example: len(example.input_ids))
    size = -(-len(ordered) // pieces)
    total = 0.0
    for start in range(0, len(ordered), size):
        input_ids, labels = padded(ordered[start : start + size])
        # Padding stands on the right and attention is causal, so no answer sees it and no mask is needed.
        logits = model(input_ids=input_ids, use_cache=False).logits
        loss = mean_loss_per_example(logits, labels).sum() / len(ordered)
        loss.backward()
        total += loss.item()
    return total


def mean_loss_per_example(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the next token, averaged over each answer; logits [b, t, v], labels [b, t] -> [b]."""
    targets = labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    return losses.sum(dim=1) / (targets != IGNORED).sum(dim=1)


def padded(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Token ids and labels, both [examples, longest], padded on the right with 0 and -100."""
    longest = max(len(example.input_ids) for example in examples)
    input_ids = torch.zeros(len(examples), longest, dtype=torch.long)
    labels = torch.full((len(examples), longest), IGNORED)
    for row, example in enumerate(examples):
        input_ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
        labels[row, : len(example.labels)] = torch.tensor(example.labels)
    return input_ids, labels


def draw_batches(pools: Sequence[Pool], batch_size: int, rng: random.Random) -> Iterator[list[Example]]:
    """Endless batches: for each example a pool by its share, then the pool's next in shuffled order."""
    sources = [_reshuffled(pool.examples, rng) for pool in pools]
    shares = [pool.share for pool in pools]
    while True:
        yield [next(source) for source in rng.choices(sources, weights=shares, k=batch_size)]


def example_tensors(example: Example) -> Mapping[str, Tensor]:
    """The example as the 1-D tensors that a Fisher estimate reads."""
    return {"input_ids": torch.tensor(example.input_ids), "labels": torch.tensor(example.labels)}


@contextmanager
def deterministic() -> Iterator[None]:
    """Fixed threads and deterministic kernels inside the block; what was set before is restored."""
    threads, algorithms = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms)
        torch.set_num_threads(threads)


def _reshuffled(examples: Sequence[Example], rng: random.Random) -> Iterator[Example]:
    if not examples:
        raise ValueError("a pool without examples cannot be drawn from")
    order = list(examples)
    while True:
        rng.shuffle(order)
        yield from order
