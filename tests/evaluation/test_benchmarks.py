"""The suites core, smoke and tulu3 on hand-made items with the fields of the real data: a model that knows every answer
scores 100, one that says the wrong thing scores 0."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from harness.errors import GraftbenchError
from harness.evaluation.evaluate import Evaluation, evaluate
from harness.evaluation.plan import plan_suite
from harness.evaluation.suite import Suite, suite_from_config
from harness.method_choice import config_folder
from tests.evaluation.benchmark_items import write_benchmarks
from tests.evaluation.conftest import ChattingModel, ScriptedEngine, ScriptedModel


def declared(name: str) -> dict[str, Any]:
    """A suite as its file declares it."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        found = OmegaConf.to_container(compose("leaderboard", [f"suite={name}"]).suite)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def suite_of(name: str, root: Path, **changes: Any) -> tuple[Suite, dict[str, str]]:
    """A suite on hand-made items, and the right answers."""
    root.mkdir(exist_ok=True)
    config = {**declared(name), "allow_code_execution": True, **changes}
    plans, problems = plan_suite(suite_from_config(config))
    assert not problems
    answers = write_benchmarks(root, plans)
    return suite_from_config({**config, "data_root": root}), answers


def asked(suite: Suite, model: ScriptedModel) -> Evaluation:
    engine = ScriptedEngine({})
    engine.model = model
    return evaluate("anything", suite, engine)


def scores(evaluation: Evaluation) -> dict[str, float]:
    return {task.task: task.score for task in evaluation.tasks}


@pytest.mark.usefixtures("punkt_tab")
def test_core_scores_right_answers_in_full(tmp_path: Path) -> None:
    suite, answers = suite_of("core", tmp_path / "mirror")
    # Every item of these tasks, whichever part it falls into: three items are few for a fifth.
    suite = replace(suite, tasks={name: replace(spec, validation={}) for name, spec in suite.tasks.items()})
    evaluation = asked(suite, ScriptedModel(answers))
    assert scores(evaluation) == dict.fromkeys(suite.tasks, 100.0)
    mmlu = next(task for task in evaluation.tasks if task.task == "mmlu")
    assert len(mmlu.outcomes) == 57 * 3
    assert {item.partition(":")[0] for item in mmlu.item_ids} >= {"mmlu_anatomy", "mmlu_world_religions"}
    assert [task.capability for task in evaluation.tasks].count("general") == 2


@pytest.mark.usefixtures("punkt_tab")
def test_core_scores_wrong_answers_with_nothing(tmp_path: Path) -> None:
    suite, answers = suite_of("core", tmp_path / "mirror")
    generated = {name: spec for name, spec in suite.tasks.items() if name not in ("mmlu", "arc_challenge")}
    suite = replace(suite, tasks={name: replace(spec, validation={}) for name, spec in generated.items()})
    wrong = dict.fromkeys(answers, " I think, the answer is 987654.\n")
    assert scores(asked(suite, ScriptedModel(wrong))) == dict.fromkeys(generated, 0.0)


@pytest.mark.usefixtures("punkt_tab")
def test_tulu3_scores_right_answers_in_full(tmp_path: Path) -> None:
    suite, answers = suite_of("tulu3", tmp_path / "mirror")
    suite = replace(suite, tasks={name: spec for name, spec in suite.tasks.items() if name != "mmlu"})  # as in core
    found = scores(asked(suite, ChattingModel(answers)))
    # TruthfulQA's mc2 is the share of the probability that falls on true answers: e⁻¹ / (e⁻¹ + e⁻¹⁰).
    assert found.pop("truthfulqa_mc2") == pytest.approx(99.98766)
    assert found == dict.fromkeys(set(suite.tasks) - {"truthfulqa_mc2"}, 100.0)


def test_smoke_asks_a_few_items_of_each_task_of_core() -> None:
    core, smoke = (plan_suite(suite_from_config(declared(name)))[0] for name in ("core", "smoke"))
    limits = [1 if plan.entry == "mmlu" else 2 for plan in core]
    assert smoke == [replace(plan, limit=limit) for plan, limit in zip(core, limits, strict=True)]


def test_held_out_tasks_choose_nothing(tmp_path: Path) -> None:
    core = suite_from_config({**declared("core"), "split": "validation"})
    plans, problems = plan_suite(core)
    assert not problems
    assert list(dict.fromkeys(plan.entry for plan in plans)) == ["gsm8k_cot", "mbpp", "ifeval", "triviaqa", "mmlu"]
    assert {plan.entry: plan.split for plan in plans} == {
        "gsm8k_cot": "test",
        "mbpp": "validation",
        "ifeval": "train",
        "triviaqa": "validation",
        "mmlu": "validation",
    }
    held_out = suite_from_config({**declared("tulu3"), "split": "validation"})
    assert plan_suite(held_out) == (
        [],
        ["all tasks of suite 'tulu3' are held out; choose hyper-parameters on another suite"],
    )


@pytest.mark.parametrize("name", ["core", "smoke", "tulu3"])
def test_lengths_are_set_for_every_generated_task(name: str) -> None:
    """lm-eval gives 256 new tokens to a task that sets no length: too few for chains of thought."""
    plans, _ = plan_suite(suite_from_config(declared(name)))
    assert all(plan.max_gen_toks for plan in plans if plan.declaration.output_type == "generate_until")


@pytest.mark.parametrize("name", ["core", "tulu3"])
def test_capabilities_and_general_tasks(name: str) -> None:
    suite = suite_from_config(declared(name))
    assert {"math", "code", "instructions", "knowledge"} <= {spec.capability for spec in suite.tasks.values()}
    assert any(spec.general for spec in suite.tasks.values())
    assert any(spec.held_out for spec in suite.tasks.values())
    assert all(spec.metric for spec in suite.tasks.values())


def test_model_written_code_stays_off(tmp_path: Path) -> None:
    suite, _ = suite_of("core", tmp_path / "mirror", allow_code_execution=False)
    with pytest.raises(GraftbenchError, match="task 'humaneval' runs code that the model writes"):
        asked(suite, ScriptedModel({}))
