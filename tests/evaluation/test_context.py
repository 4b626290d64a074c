"""A model's context and chat template, by its files and by the prompts; both before anything is answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import GraftbenchError
from harness.evaluation.context import context_length, has_chat_template
from harness.evaluation.engines.hf import HFEngine
from harness.evaluation.evaluate import evaluate
from harness.evaluation.preflight import preflight
from harness.evaluation.suite import Suite, suite_from_config
from tests.evaluation.conftest import ScriptedEngine, ScriptedModel


class ShortModel(ScriptedModel):
    """A scripted model whose tokens are words."""

    max_length = 60


def short() -> ScriptedEngine:
    engine = ScriptedEngine({})
    engine.model = ShortModel({})
    return engine


def checkpoint(folder: Path, config: dict[str, Any], tokenizer: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def problems(suite: Suite, model: Path, max_length: int | None = None) -> str:
    with pytest.raises(GraftbenchError) as caught:
        preflight(suite, model, max_length)
    return str(caught.value)


def test_the_files_of_a_checkpoint_tell_context_and_template(tmp_path: Path) -> None:
    plain = checkpoint(tmp_path / "plain", {"max_position_embeddings": 2048}, {})
    assert (context_length(plain), has_chat_template(plain)) == (2048, False)
    nested = checkpoint(tmp_path / "n", {"text_config": {"max_position_embeddings": 99}}, {"chat_template": "{{ x }}"})
    assert (context_length(nested), has_chat_template(nested)) == (99, True)
    (plain / "chat_template.jinja").write_text("{{ messages }}")
    assert has_chat_template(plain)
    assert context_length(checkpoint(tmp_path / "unknown", {}, {})) is None


def test_a_template_is_missed_before_the_model_is_loaded(tmp_path: Path, mirror: Path) -> None:
    model = checkpoint(tmp_path / "model", {}, {})
    tasks = {"mmlu_anatomy": {}}
    found = problems(suite_from_config({"tasks": tasks, "data_root": mirror, "apply_chat_template": True}), model)
    assert "its tokenizer has no chat template" in found and "tokenizer=NAME" in found
    tasks = {"mmlu_anatomy": {"apply_chat_template": False}}
    preflight(suite_from_config({"tasks": tasks, "data_root": mirror, "apply_chat_template": True}), model)


def test_answers_longer_than_the_context_are_refused(tmp_path: Path, mirror: Path) -> None:
    model = checkpoint(tmp_path / "model", {"max_position_embeddings": 512}, {})
    suite = suite_from_config({"tasks": {"gsm8k": {"gen_kwargs": {"max_gen_toks": 512}}}, "data_root": mirror})
    assert "task 'gsm8k' allows answers of 512 tokens, but the context of model is 512" in problems(suite, model)
    preflight(suite, model, max_length=2048)
    default = suite_from_config({"tasks": {"gsm8k": {}}, "data_root": mirror})
    preflight(default, model)
    assert "allows answers of 256 tokens" in problems(default, model, max_length=200)


def test_prompts_that_do_not_fit_are_counted_before_any_is_answered(mirror: Path) -> None:
    """Five words of choices and question fit into 60 tokens; five examples of gsm8k do not leave 50 for the answer."""
    tasks = {"mmlu_anatomy": {}, "gsm8k": {"gen_kwargs": {"max_gen_toks": 50}}}
    engine = short()
    with pytest.raises(GraftbenchError) as caught:
        evaluate("anything", suite_from_config({"tasks": tasks, "data_root": mirror}), engine)
    assert "task 'gsm8k': 4 of 4 prompts are longer than the 10 tokens" in str(caught.value)
    assert "suite.allow_truncation=true" in str(caught.value)
    assert "anatomy" not in str(caught.value)
    assert engine.model.prompts == []


def test_truncation_may_be_allowed(mirror: Path, caplog: pytest.LogCaptureFixture) -> None:
    tasks = {"gsm8k": {"gen_kwargs": {"max_gen_toks": 50}}}
    engine = short()
    evaluate("anything", suite_from_config({"tasks": tasks, "data_root": mirror, "allow_truncation": True}), engine)
    assert len(engine.model.prompts) == 4
    assert "prompts that do not fit lose their beginning" in caplog.text


def test_prompts_are_measured_by_the_models_tokenizer(tiny_model: Path, mirror: Path, own_tasks: Path) -> None:
    """Its tokens are characters: "Say Madrid:" is 11 long, so that 5 new tokens fit into 16 but not into 15."""
    config = {"tasks": {"echo": {}}, "data_root": mirror, "include_path": [str(own_tasks)]}
    suite = suite_from_config(config)
    with pytest.raises(GraftbenchError, match=r"2 of 4 prompts .* the longest has 11\."):
        evaluate(tiny_model, suite, HFEngine(device="cpu", max_length=15))
    assert len(evaluate(tiny_model, suite, HFEngine(device="cpu", max_length=16)).tasks[0].outcomes) == 4
