"""Which records are the same row with other seeds."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.files import canonical_json
from harness.results import Record

_DIGEST = re.compile(r"[0-9a-f]{32,}")
_SEED = re.compile(r" seed=\S+")


@dataclass(frozen=True)
class Replicates:
    """The records of one row: one model, or the same recipe with several training seeds or seeds of the method."""

    record: Record
    """The first, under the name of all of them, and of them the one whose hyper-parameters took the most choosing."""
    members: dict[int, tuple[int, ...]]
    """Indices of records by training seed (0 where records state none)."""
    masks: tuple[int, ...]
    """The method's seeds, where there are several; else empty."""


def replicates_of(records: Sequence[Record]) -> list[Replicates]:
    """Records grouped into rows, whatever their order.

    Records are one row where their recipes differ in nothing but the method's `seed` and, with several training seeds,
    the digests of models and curvature; base, experts and reference where they have the same name. Two records of one
    training seed and one seed of the method are not repeats of each other: then each of the group has its own row.
    """
    several = len({training_seed(record) for record in records}) > 1
    groups: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        groups[_identity(record, several)].append(index)
    found = []
    for indices in groups.values():
        seeds = [(training_seed(records[i]), mask_seed(records[i])) for i in indices]
        parts = [indices] if len(set(seeds)) == len(seeds) else [[i] for i in indices]
        found += [_replicates(records, part) for part in parts]
    return found


def training_seed(record: Record) -> int:
    """The seed with which the record's models were trained; 0 where it states none."""
    return int(record.zoo.get("training_seed") or 0)


def mask_seed(record: Record) -> int:
    """The method's own seed; 0 where it has none."""
    seed = (record.recipe.get("hyperparameters") or {}).get("seed")
    return seed if isinstance(seed, int) else 0


def _replicates(records: Sequence[Record], indices: Sequence[int]) -> Replicates:
    members: dict[int, list[int]] = defaultdict(list)
    for i in sorted(indices, key=lambda i: (training_seed(records[i]), mask_seed(records[i]), records[i].key)):
        members[training_seed(records[i])].append(i)
    masks = sorted({mask_seed(records[i]) for i in indices})
    first = records[next(iter(members.values()))[0]]
    if len(indices) > 1:
        choosing = max((records[i].selection for i in indices), key=_effort)
        label = sorted(_SEED.sub("", records[i].label) for i in indices)[0]
        first = replace(first, label=label, selection=choosing)
    return Replicates(
        first,
        {seed: tuple(found) for seed, found in sorted(members.items())},
        tuple(masks) if len(masks) > 1 else (),
    )


def _effort(selection: dict[str, Any]) -> tuple[bool, int, str]:
    """What makes a choice more of one: test items above all, then trials."""
    return selection.get("split") == "test", int(selection.get("trials") or 0), canonical_json(selection)


def _identity(record: Record, several: bool) -> str:
    if record.role not in ("method", "control") or "hyperparameters" not in record.recipe:
        own = record.label if several else record.key
        return canonical_json([record.role, own, record.capability])
    recipe = dict(record.recipe)
    recipe["hyperparameters"] = {k: v for k, v in (recipe["hyperparameters"] or {}).items() if k != "seed"}
    source = recipe.pop("source", None)
    return canonical_json([record.role, source, _without_digests(recipe) if several else recipe])


def _without_digests(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_digests(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_digests(entry) for entry in value]
    return "digest" if isinstance(value, str) and _DIGEST.fullmatch(value) else value
