"""Tasks of one cluster an item, and tasks of clusters."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from harness.leaderboard.statistics import Design, FloatArray, TaskItems, design_of

MakeTasks = Callable[..., tuple[list[TaskItems], Design]]


@pytest.fixture
def make_tasks() -> MakeTasks:
    """Makes tasks from outcomes (items, models) by task; items stand alone unless clusters are given."""

    def make(
        outcomes: Mapping[str, FloatArray],
        clusters: Mapping[str, Sequence[str]] | None = None,
        subjects: Mapping[str, Sequence[str]] | None = None,
    ) -> tuple[list[TaskItems], Design]:
        items = {}
        for task, values in outcomes.items():
            own = (clusters or {}).get(task) or [f"{task}:{number:05d}" for number in range(len(values))]
            subject = (subjects or {}).get(task) or [task] * len(values)
            items[task] = list(zip(own, subject, strict=True))
        design, numbers = design_of(items)
        tasks = [
            TaskItems(task, task, 0.0, np.asarray(values, dtype=np.float64), numbers[task])
            for task, values in outcomes.items()
        ]
        return tasks, design

    return make
