"""Where a task's time goes, by a clock that the test moves."""

from __future__ import annotations

from typing import Any

import pytest

from harness.evaluation import phases as timing
from harness.evaluation.phases import PHASES, phases
from tests.evaluation.conftest import ScriptedModel


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class SlowModel(ScriptedModel):
    """Takes three seconds for each call."""

    def __init__(self, clock: Clock) -> None:
        super().__init__({})
        self.clock = clock

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self.clock.now += 3.0
        return ["" for _ in requests]


def test_prompts_answers_and_scores_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    model = SlowModel(clock)
    with phases(model) as seconds:
        clock.now += 1.0
        model.generate_until([])
        clock.now += 0.5  # between two kinds of requests
        model.generate_until([])
        clock.now += 0.25
    assert seconds == {"prepare": 1.0, "answer": 6.0, "score": 0.75}
    assert tuple(seconds) == PHASES
    assert not {"generate_until", "loglikelihood"} & set(vars(model)), "the model is as it was"


def test_a_model_that_is_never_asked_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    model = SlowModel(clock)
    with phases(model) as seconds:
        clock.now += 2.0
    assert seconds == {"prepare": 2.0, "answer": 0.0, "score": 0.0}
    with pytest.raises(NotImplementedError), phases(model) as seconds:
        model.loglikelihood_rolling([])
    assert seconds == {"prepare": 0.0, "answer": 0.0, "score": 0.0}
    assert not {"generate_until", "loglikelihood"} & set(vars(model))
