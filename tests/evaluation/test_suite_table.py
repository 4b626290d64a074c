"""The table of docs/suites.md is what conf/suite declares.

After a change there: `python -m tests.evaluation.test_suite_table` writes the table anew.
"""

from __future__ import annotations

from pathlib import Path

from harness.evaluation.plan import TaskPlan, plan_suite
from harness.evaluation.suite import TaskSpec, suite_from_config
from tests.evaluation.test_benchmarks import declared

PAGE = Path(__file__).parents[2] / "docs" / "suites.md"
SUITES = ("core", "tulu3", "stock", "tiny")
COLUMNS = ("suite", "task", "capability", "general", "metric", "shots", "new tokens", "validation", "verified")
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"


def rows() -> str:
    """One row for each task of each suite."""
    lines = []
    for name in SUITES:
        suite = suite_from_config(declared(name))
        plans, problems = plan_suite(suite)
        assert not problems
        for task, spec in suite.tasks.items():
            lines.append(_row(name, task, spec, next(plan for plan in plans if plan.entry == task)))
    return "".join(lines)


def _row(suite: str, task: str, spec: TaskSpec, plan: TaskPlan) -> str:
    generated = plan.declaration.output_type == "generate_until"
    cells = [
        f"`{suite}`",
        f"`{task}`",
        plan.capability,
        "yes" if spec.general else "",
        f"`{plan.metric}`",
        str(plan.num_fewshot),
        str(plan.max_gen_toks or 256) if generated else "–",
        _validation(spec, plan),
        "yes" if spec.verified else "**not yet**",
    ]
    return f"| {' | '.join(cells)} |\n"


def _validation(spec: TaskSpec, plan: TaskPlan) -> str:
    if spec.held_out:
        return "held out"
    if spec.validation:
        return " ".join(f"{key} {value}" for key, value in spec.validation.items())
    fields = plan.declaration.fields
    return (
        f"split {fields['validation_split']}" if fields.get("validation_split") and fields.get("test_split") else "none"
    )


def test_the_table_is_what_is_declared() -> None:
    shown = PAGE.read_text(encoding="utf-8").partition(HEAD)[2].partition("\n\n")[0] + "\n"
    assert shown == rows()


def test_every_suite_is_described() -> None:
    text = PAGE.read_text(encoding="utf-8")
    folder = Path(__file__).parents[2] / "conf" / "suite"
    assert all(f"| `{path.stem}` |" in text for path in folder.glob("*.yaml"))


if __name__ == "__main__":
    before, head, after = PAGE.read_text(encoding="utf-8").partition(HEAD)
    PAGE.write_text(before + head + rows() + "\n" + after[after.index("\n`mmlu`") + 1 :], encoding="utf-8")
