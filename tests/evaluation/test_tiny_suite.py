"""The embedded suite on generated items: a model that knows every answer scores 100, one that says nothing scores 0."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from harness.evaluation.evaluate import evaluate
from harness.evaluation.suite import Suite, suite_from_config
from harness.zoo.tiny.items import CAPABILITIES, Counts, generate_items, write_splits
from tests.evaluation.conftest import ChattingModel, ScriptedEngine

SUITE = Path(__file__).parents[2] / "conf" / "suite" / "tiny.yaml"


@pytest.fixture
def suite_and_answers(tmp_path: Path) -> tuple[Suite, dict[str, str]]:
    answers = {}
    for capability in CAPABILITIES:
        items = generate_items(capability, seed=1, counts=Counts(train=40, validation=8, test=12))
        folder = tmp_path / "graftbench/tiny" / capability
        folder.mkdir(parents=True)
        write_splits(folder, items)
        answers |= {f"<{item['prompt']}>": item["answer"] for item in items["test"]}
    config = yaml.safe_load(SUITE.read_text(encoding="utf-8"))
    return suite_from_config({**config, "data_root": tmp_path}), answers


def scores(suite: Suite, script: dict[str, str]) -> dict[str, float]:
    engine = ScriptedEngine({})
    engine.model = ChattingModel(script)
    return {task.capability: task.score for task in evaluate("anything", suite, engine).tasks}


def test_right_answers_score_in_full(suite_and_answers: tuple[Suite, dict[str, str]]) -> None:
    suite, answers = suite_and_answers
    assert scores(suite, answers) == dict.fromkeys(CAPABILITIES, 100.0)


def test_silence_scores_nothing_where_answers_are_free(suite_and_answers: tuple[Suite, dict[str, str]]) -> None:
    suite, _ = suite_and_answers
    silent = scores(suite, {})
    assert [silent[name] for name in ("math", "code", "instructions")] == [0.0, 0.0, 0.0]
