"""The fingerprint moves when, and only when, a score could."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import GraftbenchError
from harness.evaluation.fingerprint import fingerprint
from harness.evaluation.suite import suite_from_config
from harness.files import canonical_json


@pytest.fixture
def print_of(mirror: Path, own_tasks: Path) -> Callable[..., str]:
    def compute(**changes: Any) -> str:
        tasks = {"gsm8k": {}, "capitals": {}, "echo": {}}
        config = {"tasks": tasks, "data_root": mirror, "include_path": [str(own_tasks)], **changes}
        return canonical_json(fingerprint(suite_from_config(config)))

    return compute


@pytest.mark.parametrize(
    "changes",
    [
        {"limit": 3},
        {"seed": 1},
        {"apply_chat_template": True},
        {"fewshot_as_multiturn": False},
        {"system_instruction": "Be brief."},
        {"tasks": {"gsm8k": {"num_fewshot": 3}, "capitals": {}, "echo": {}}},
        {"tasks": {"gsm8k": {"limit": 3}, "capitals": {}, "echo": {}}},
        {"tasks": {"gsm8k": {"metric": "exact_match,flexible-extract"}, "capitals": {}, "echo": {}}},
        {"tasks": {"gsm8k": {"gen_kwargs": {"max_gen_toks": 9}}, "capitals": {}, "echo": {}}},
        {"tasks": {"gsm8k": {}, "capitals": {}}},
        {"tasks": {"gsm8k": {"apply_chat_template": True}, "capitals": {}, "echo": {}}},
        {"tasks": {"gsm8k": {"general": True}, "capitals": {}, "echo": {}}},
        {"allow_truncation": True},
    ],
)
def test_settings_count(print_of: Callable[..., str], changes: dict[str, Any]) -> None:
    assert print_of(**changes) != print_of()


@pytest.mark.parametrize(
    ("file", "addition"),
    [
        ("tasks/capitals.yaml", "description: Answer.\n"),
        ("tasks/scoring.py", "\n# changed\n"),
        ("mirror/own/data/default/test.jsonl", "\n"),
        ("mirror/openai/gsm8k/main/train.jsonl", "\n"),
    ],
)
def test_files_count(print_of: Callable[..., str], tmp_path: Path, file: str, addition: str) -> None:
    before = print_of()
    with (tmp_path / file).open("a") as opened:
        opened.write(addition)
    assert print_of() != before


def test_validation_reads_other_data(print_of: Callable[..., str], tmp_path: Path) -> None:
    only = {"tasks": {"capitals": {}}}
    assert print_of(**only, split="validation") != print_of(**only)
    before = print_of(**only)
    with (tmp_path / "mirror/own/data/default/validation.jsonl").open("a") as opened:
        opened.write("\n")
    assert print_of(**only) == before


def test_places_and_names_do_not_count(
    print_of: Callable[..., str], mirror: Path, own_tasks: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(mirror, elsewhere / "mirror")
    shutil.copytree(own_tasks, elsewhere / "tasks")
    moved = {"data_root": elsewhere / "mirror", "include_path": [str(elsewhere / "tasks")], "name": "another"}
    assert print_of(**moved) == print_of()


def test_what_says_nothing_of_the_scores_does_not_count(print_of: Callable[..., str]) -> None:
    tasks = {"gsm8k": {"verified": False, "apply_chat_template": False}, "capitals": {"validation": {}}, "echo": {}}
    assert print_of(tasks=tasks) == print_of()


def test_unknown_tasks_are_refused(print_of: Callable[..., str]) -> None:
    with pytest.raises(GraftbenchError, match="gsm8kk"):
        print_of(tasks={"gsm8kk": {}})


def test_loads_neither_torch_nor_lm_eval(mirror: Path) -> None:
    """Keys are computed before merging, also for runs that are in the store already: that must cost next to nothing."""
    program = (
        "import sys\n"
        "from harness.evaluation.fingerprint import fingerprint\n"
        "from harness.evaluation.suite import suite_from_config\n"
        f"config = {{'tasks': {{'gsm8k': {{}}, 'ifeval': {{}}}}, 'data_root': {str(mirror)!r}}}\n"
        "fingerprint(suite_from_config(config))\n"
        "assert not {'torch', 'lm_eval', 'transformers', 'nltk'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
