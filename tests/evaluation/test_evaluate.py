"""Evaluations end to end: stock tasks answered by a script, whose scores are known, and a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.errors import GraftbenchError
from harness.evaluation.engines.hf import HFEngine
from harness.evaluation.evaluate import Evaluation, evaluate
from harness.evaluation.suite import Suite, TaskSpec, suite_from_config
from tests.evaluation.conftest import ScriptedEngine


def outcomes(evaluation: Evaluation) -> dict[str, tuple[float, ...]]:
    return {task.task: task.outcomes for task in evaluation.tasks}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def test_stock_tasks_from_a_mirror(mirror: Path, punkt_tab: None, offline: None) -> None:
    """Three of four sums are right (one only for the lenient filter), one of two instructions is followed,
    one of three questions is answered."""
    engine = ScriptedEngine(
        {
            "What is 10 plus 10?": " It is 20.\n#### 20",
            "What is 11 plus 11?": " So the answer is 22",
            "What is 12 plus 12?": "#### 25",
            "What is 13 plus 13?": "#### 26",
            "Greet me": '"Hello, world"',
            "Write no commas": "Hello world",
            "Bone number 0?": "B",
            "Bone number 1?": "B",
            "Bone number 2?": "A",
        }
    )
    tasks = {
        "gsm8k": {"metric": "exact_match,flexible-extract", "capability": "math"},
        "ifeval": {"capability": "instructions"},
        "mmlu_anatomy": {"capability": "knowledge", "chance": 0.25},
    }
    evaluation = evaluate("anything", suite_from_config({"tasks": tasks, "data_root": mirror}), engine)
    gsm8k, ifeval, anatomy = evaluation.tasks
    assert gsm8k.outcomes == (1.0, 1.0, 0.0, 1.0)
    assert gsm8k.other_metrics == {"exact_match,strict-match": (1.0, 0.0, 0.0, 1.0)}
    assert gsm8k.score == 75.0
    assert ifeval.outcomes == (0.0, 1.0)
    assert ifeval.other_metrics["inst_level_strict_acc,none"] == (0.5, 1.0)  # quotation marks yes, a comma too
    assert (anatomy.outcomes, anatomy.capability, anatomy.chance) == ((0.0, 1.0, 0.0), "knowledge", 0.25)
    assert evaluation.counts == {name: {"empty": 0, "truncated": 0} for name in tasks}
    rows = evaluation.answers.to_pylist()
    assert len(rows) == 9
    assert rows[0]["item"] == gsm8k.item_ids[0]
    assert rows[0]["answer"] == " It is 20.\n#### 20"
    assert rows[0]["prompt"].count("Question:") == 6  # five examples, as the task declares
    assert [row["answer"] for row in rows[6:]] == ["B", "B", "A"]
    assert set(evaluation.timings) == {"load", *tasks}


def test_settings_of_a_task_reach_it_and_leave_with_the_evaluation(mirror: Path) -> None:
    """lm-eval keeps few-shot counts and generation settings on its task objects; no later evaluation may see them."""

    def prompts(**settings: Any) -> list[str]:
        engine = ScriptedEngine({})
        suite = suite_from_config({"tasks": {"gsm8k": settings}, "data_root": mirror})
        assert outcomes(evaluate("anything", suite, engine)) == {"gsm8k": (0.0,) * settings.get("limit", 4)}
        return engine.model.prompts

    before = prompts()
    assert len(before) == 4 and before[0].count("Question:") == 6
    changed = prompts(num_fewshot=1, limit=2, gen_kwargs={"max_gen_toks": 3})
    assert len(changed) == 2 and changed[0].count("Question:") == 2
    assert prompts() == before


def test_few_shot_examples_come_from_the_seed(mirror: Path) -> None:
    def prompts(seed: int) -> list[str]:
        engine = ScriptedEngine({})
        tasks = {"gsm8k": {"num_fewshot": 3}}
        evaluate("anything", suite_from_config({"tasks": tasks, "data_root": mirror, "seed": seed}), engine)
        return engine.model.prompts

    assert prompts(1) == prompts(1)
    assert prompts(1) != prompts(2)


def test_item_ids_are_stable_and_unique(mirror: Path, own_tasks: Path) -> None:
    """The fourth item of `capitals` repeats the third; an id depends on the item alone, not on the limit."""
    config = {"tasks": {"capitals": {}}, "data_root": mirror, "include_path": [str(own_tasks)]}
    engine = ScriptedEngine({"France": "Paris", "Italy": "Madrid", "Spain": "Madrid"})
    (task,) = evaluate("anything", suite_from_config(config), engine).tasks
    assert task.outcomes == (1.0, 0.0, 1.0, 1.0)
    assert len(set(task.item_ids)) == 4
    assert task.item_ids[3] == task.item_ids[2] + ":2"
    (limited,) = evaluate("anything", suite_from_config({**config, "limit": 2}), engine).tasks
    assert limited.item_ids == task.item_ids[:2]


def test_scoring_does_not_depend_on_the_clock(mirror: Path, punkt_tab: None) -> None:
    """langdetect, which ifeval asks for the language of short answers, draws at random unless it is seeded."""
    import langdetect

    langdetect.DetectorFactory.seed = None
    evaluate("anything", suite_from_config({"tasks": {"ifeval": {}}, "data_root": mirror}), ScriptedEngine({}))
    assert langdetect.DetectorFactory.seed == 1234


def test_validation_items_are_other_items(mirror: Path, own_tasks: Path) -> None:
    config = {"tasks": {"capitals": {}}, "data_root": mirror, "include_path": [str(own_tasks)]}
    suite = suite_from_config({**config, "split": "validation"})
    (task,) = evaluate("anything", suite, ScriptedEngine({"France": "Rome", "Italy": "Rome"})).tasks
    assert task.outcomes == (0.0, 1.0)


def test_scoring_code_of_ones_own(mirror: Path, own_tasks: Path) -> None:
    """Lower is better for `length`, so that it cannot be the headline; it is recorded with it."""
    config = {"tasks": {"echo": {}}, "data_root": mirror, "include_path": [str(own_tasks)]}
    engine = ScriptedEngine({"Say Paris": " Paris", "Say Rome": "a b c d e f g"})
    evaluation = evaluate("anything", suite_from_config(config), engine)
    (task,) = evaluation.tasks
    assert task.metric == "same,none"
    assert task.outcomes == (1.0, 0.0, 0.0, 0.0)
    assert task.other_metrics["length,none"] == (0.06, 0.13, 0.0, 0.0)
    assert evaluation.counts == {"echo": {"empty": 2, "truncated": 1}}  # at most 5 tokens


def test_model_written_code_runs_only_when_allowed(mirror: Path, own_tasks: Path) -> None:
    config = {"tasks": {"program": {}}, "data_root": mirror, "include_path": [str(own_tasks)]}
    engine = ScriptedEngine({"Paris": "assert 1 + 1 == 2", "Rome": "assert False", "Madrid": "while True: pass"})
    with pytest.raises(GraftbenchError, match=r"suite\.allow_code_execution=true"):
        evaluate("anything", suite_from_config(config), engine)
    assert engine.model.prompts == []
    suite = suite_from_config({**config, "allow_code_execution": True, "limit": 3})
    assert outcomes(evaluate("anything", suite, engine)) == {"program": (1.0, 0.0, 0.0)}


def test_a_task_that_cannot_be_loaded_is_named_before_the_model_is(mirror: Path, own_tasks: Path) -> None:
    (own_tasks / "scoring.py").write_text("raise ValueError('no such table')\n")
    config = {"tasks": {"echo": {}}, "data_root": mirror, "include_path": [str(own_tasks)]}

    class Unloadable(ScriptedEngine):
        def load(self, model: Any) -> Any:
            raise AssertionError("the model was loaded")

    with pytest.raises(GraftbenchError, match=r"task 'echo' cannot be loaded .*no such table"):
        evaluate("anything", suite_from_config(config), Unloadable({}))


def test_outcomes_outside_of_zero_to_one_are_refused(mirror: Path, own_tasks: Path) -> None:
    scoring = own_tasks / "scoring.py"
    scoring.write_text("def process_results(doc, results):\n    return {'same': 7.0}\n\ndef run(doc, results): ...\n")
    config = {"tasks": {"echo": {}}, "data_root": mirror, "include_path": [str(own_tasks)]}
    with pytest.raises(GraftbenchError, match=r"'same,none' is 7\.0 for an item"):
        evaluate("anything", suite_from_config(config), ScriptedEngine({}))


def test_a_real_model_is_asked_what_it_should_be(tiny_model: Path, mirror: Path, own_tasks: Path) -> None:
    """The choice that the harness calls likeliest is the one that transformers, asked directly, gives the highest
    log-likelihood behind the chat template's prompt."""
    suite = Suite(
        tasks={"capitals": TaskSpec(), "echo": TaskSpec()},
        data_root=mirror,
        include_path=[str(own_tasks)],
        apply_chat_template=True,
    )
    evaluation = evaluate(tiny_model, suite, HFEngine(device="cpu", batch_size=4))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)

    def log_likelihood(prompt: str, choice: str) -> float:
        text = tokenizer(prompt + choice, return_tensors="pt", add_special_tokens=False).input_ids
        length = len(tokenizer(choice, add_special_tokens=False).input_ids)
        with torch.no_grad():
            scores = model(text).logits.log_softmax(-1)[0, :-1]
        return float(scores.gather(1, text[0, 1:, None])[-length:].sum())

    rows = [row for row in evaluation.answers.to_pylist() if row["task"] == "capitals"]
    assert rows[0]["prompt"] == "<|user|>The capital of France is<|assistant|>"
    for row, outcome in zip(rows, evaluation.tasks[0].outcomes, strict=True):
        likeliest = max(["Paris", "Rome", "Madrid"], key=lambda choice: log_likelihood(row["prompt"], choice))
        assert row["answer"] == likeliest
        assert outcome == float(likeliest == ["Paris", "Rome", "Madrid"][int(row["target"])])
    again = evaluate(tiny_model, suite, HFEngine(device="cpu", batch_size=4))
    assert again.tasks == evaluation.tasks
    assert again.answers.equals(evaluation.answers)


def test_a_tokenizer_without_chat_template(tiny_model: Path, tmp_path: Path, mirror: Path, own_tasks: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    suite = Suite(
        tasks={"capitals": TaskSpec()}, data_root=mirror, include_path=[str(own_tasks)], apply_chat_template=True
    )
    with pytest.raises(GraftbenchError, match="no chat template"):
        evaluate(tmp_path / "plain", suite, HFEngine(device="cpu"))
