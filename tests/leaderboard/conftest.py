"""Synthetic records: items of known difficulty, models of known ability."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from harness.results import Record, TaskOutcome

MakeRecord = Callable[..., Record]


@pytest.fixture
def make_record() -> MakeRecord:
    """Makes a record from outcomes per capability, one task each, items named by their position."""

    def make(
        label: str,
        outcomes: Mapping[str, Sequence[float]],
        role: str = "method",
        chance: float = 0.0,
        **fields: Any,
    ) -> Record:
        tasks = tuple(
            TaskOutcome(
                task=f"tiny_{capability}",
                capability=capability,
                metric="acc,none",
                chance=chance,
                item_ids=tuple(f"{capability}-{position:05d}" for position in range(len(values))),
                outcomes=tuple(float(value) for value in values),
            )
            for capability, values in outcomes.items()
        )
        defaults: dict[str, Any] = {
            "key": f"key-{role}-{label}",
            "capability": None,
            "recipe": {"method": label},
            "selection": {"how": "default"} if role in ("method", "control") else {},
            "zoo": {"name": "tiny", "digest": "zoo-digest"},
            "suite": {"name": "tiny", "split": "test", "digest": "suite-digest"},
            "engine": {"name": "hf", "dtype": "float32", "batch_size": 64},
            "versions": {"torch": "2.13.0"},
            "weights_digest": None,
            "timings": {"merge": 1.25} if role in ("method", "control") else {},
        }
        return Record(label=label, role=role, tasks=tasks, **{**defaults, **fields})  # type: ignore[arg-type]

    return make


@pytest.fixture
def board_records(make_record: MakeRecord) -> list[Record]:
    """A base, two experts, a reference, three methods and a control on 2 capabilities with 300 items each."""
    abilities = {
        ("base", "base", None): (0.40, 0.45),
        ("math", "expert", "math"): (0.95, 0.40),
        ("code", "expert", "code"): (0.35, 0.90),
        ("multitask", "reference", None): (0.93, 0.88),
        ("linear", "method", None): (0.60, 0.62),
        ("ties", "method", None): (0.80, 0.81),
        ("ota_ffg", "method", None): (0.82, 0.80),
        ("ota_ffg_shuffled", "control", None): (0.62, 0.60),
    }
    generator = np.random.default_rng(7)
    difficulty = {capability: generator.random(300) for capability in ("math", "code")}
    records = []
    for (label, role, own), levels in abilities.items():
        outcomes = {
            capability: (0.8 * difficulty[capability] + 0.2 * generator.random(300) < level).astype(float)
            for capability, level in zip(("math", "code"), levels, strict=True)
        }
        records.append(make_record(label, outcomes, role=role, capability=own))
    return records
