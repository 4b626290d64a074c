"""What a record says of the place where a model was evaluated."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from harness.evaluation.circumstances import circumstances, numeric_environment
from harness.evaluation.engines.hf import HFEngine
from harness.evaluation.evaluate import evaluate
from harness.evaluation.suite import suite_from_config
from tests.evaluation.conftest import CHAT_TEMPLATE, ScriptedEngine, ScriptedModel


def test_facts_about_a_real_model(tiny_model: Path) -> None:
    """It was asked for `auto`, and is what its checkpoint says; a character model prepends nothing."""
    found = circumstances(HFEngine(device="cpu").load(tiny_model), sandbox=None)
    assert found["model"] == {
        "dtype": "float32",
        "max_length": 512,
        "max_new_tokens": 256,
        "first_token_is_bos": None,
        "world_size": 1,
    }
    template = hashlib.sha256(CHAT_TEMPLATE.encode()).hexdigest()
    assert found["tokenizer"] == {"chat_template": template, "bos": None, "eos": 1, "pad": 0}
    assert found["sandbox"] is None
    json.dumps(found, allow_nan=False)


def test_what_an_engine_does_not_tell_is_null() -> None:
    found = circumstances(ScriptedModel({}), sandbox="shut in")
    assert found["model"]["dtype"] is None and found["model"]["max_length"] is None
    assert found["tokenizer"] == {"chat_template": None, "bos": None, "eos": None, "pad": None}
    assert found["sandbox"] == "shut in"


def test_switches_are_kept_and_secrets_are_not() -> None:
    environment = {
        "VLLM_BATCH_INVARIANT": "1",
        "VLLM_API_KEY": "secret",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "OMP_NUM_THREADS": "2",
        "TORCH_HUB_TOKEN": "secret",
        "HF_TOKEN": "secret",
        "HOME": "/root",
    }
    assert numeric_environment(environment) == {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "OMP_NUM_THREADS": "2",
        "VLLM_BATCH_INVARIANT": "1",
    }


def test_how_far_code_was_shut_in_is_said_where_code_ran(mirror: Path, own_tasks: Path) -> None:
    config = {"data_root": mirror, "include_path": [str(own_tasks)], "allow_code_execution": True}
    ran = evaluate("anything", suite_from_config({**config, "tasks": {"program": {}, "echo": {}}}), ScriptedEngine({}))
    assert ran.circumstances["sandbox"].endswith("limits on time, memory, files and processes")
    none = evaluate("anything", suite_from_config({**config, "tasks": {"echo": {}}}), ScriptedEngine({}))
    assert none.circumstances["sandbox"] is None


@pytest.mark.parametrize("change", ["system_instruction", "seed"])
def test_the_digest_of_what_was_asked(mirror: Path, change: str) -> None:
    """It moves with the prompts (an instruction, other examples), and with nothing else; lm-eval's formula."""

    def digest(**settings: object) -> str | None:
        config = {"tasks": {"gsm8k": {"num_fewshot": 2}}, "data_root": mirror, **settings}
        evaluation = evaluate("anything", suite_from_config(config), ScriptedEngine({"What": "#### 1"}))
        (task,) = evaluation.tasks
        return task.prompts

    usual = digest()
    assert usual is not None and len(usual) == 64
    assert digest(name="another") == usual
    assert digest(**{change: {"system_instruction": "Be brief.", "seed": 2}[change]}) != usual
