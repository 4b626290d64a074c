"""The items of the embedded zoo: what its models are trained, selected and tested on, generated from a seed.

Each capability is one module with a function ``generate(seed, counts) -> dict[split, list[item]]``. An item
is a flat dictionary that becomes one line of JSON. Every item has ``id``, ``prompt`` (the user's message),
``answer`` (a right answer), ``family`` (the kind of question) and ``level``: the base model is pre-trained
mostly on ``basic`` items and sees few ``advanced`` ones, so that it half knows what the experts are taught.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

CAPABILITIES: tuple[str, ...] = ("math", "code", "instructions", "knowledge")
SPLITS: tuple[str, ...] = ("train", "validation", "test")
LEVELS: tuple[str, ...] = ("basic", "advanced")

Item = dict[str, Any]


@dataclass(frozen=True)
class Counts:
    """How many items each split of one capability has."""

    train: int
    validation: int
    test: int


def generate_items(capability: str, seed: int, counts: Counts) -> dict[str, list[Item]]:
    """The three splits of one capability; the same seed and counts always give the same items."""
    module = import_module(f"harness.zoo.tiny.items.{capability}")
    splits: dict[str, list[Item]] = module.generate(seed, counts)
    return splits


def write_splits(folder: Path, splits: Mapping[str, Sequence[Item]]) -> None:
    """Writes ``<split>.jsonl`` for each split into an existing folder."""
    for split, items in splits.items():
        lines = (json.dumps(item, ensure_ascii=False) for item in items)
        (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_split(folder: Path, split: str) -> list[Item]:
    """The items of ``<folder>/<split>.jsonl``."""
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def generator(seed: int, *labels: str) -> random.Random:
    """A random generator of its own for each purpose, so that adding one does not move the others."""
    return random.Random("/".join((str(seed), *labels)))


def deal(
    candidates: Mapping[str, Iterable[Item]], shares: Mapping[str, float], counts: Counts, rng: random.Random
) -> dict[str, list[Item]]:
    """Deals the distinct candidates of each family to the splits, so that no item is in two of them.

    ``shares`` says which share of a split each family takes. Validation and test are filled first and
    exactly; train takes its share of what is left, or all of it where the family has fewer.
    """
    dealt: dict[str, list[Item]] = {split: [] for split in SPLITS}
    pools = {family: list(candidates[family]) for family in shares}
    for pool in pools.values():
        rng.shuffle(pool)
    for split, total in (("validation", counts.validation), ("test", counts.test), ("train", counts.train)):
        for family, wanted in _apportioned(total, shares).items():
            pool = pools[family]
            if split != "train" and len(pool) <= wanted:
                raise ValueError(f"family {family} has {len(pool)} items left, too few for {wanted} in {split}")
            dealt[split].extend(pool[:wanted])
            del pool[:wanted]
    for split, items in dealt.items():
        rng.shuffle(items)
        dealt[split] = [{"id": f"{split}-{index}", **item} for index, item in enumerate(items)]
    return dealt


def _apportioned(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers near ``total * share`` that add up to the total: steps of the rounded running sum."""
    counts: dict[str, int] = {}
    running, taken = 0.0, 0
    scale = sum(shares.values())
    for family, share in shares.items():
        running += share / scale
        counts[family] = round(total * running) - taken
        taken += counts[family]
    return counts
