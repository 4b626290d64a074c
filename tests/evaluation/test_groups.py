"""One name for many tasks: lm-eval's groups and tags."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import GraftbenchError
from harness.evaluation.evaluate import evaluate
from harness.evaluation.groups import leaf_tasks
from harness.evaluation.plan import plan_suite
from harness.evaluation.suite import suite_from_config
from tests.evaluation.conftest import ScriptedEngine


@pytest.fixture
def cities(own_tasks: Path) -> Path:
    """`capitals` and a second task with its data, in a group; both bear a tag, one through what it includes."""
    (own_tasks / "more_capitals.yaml").write_text("include: capitals.yaml\ntask: more_capitals\n")
    (own_tasks / "capitals.yaml").open("a").write("tag: [towns, geography]\n")
    (own_tasks / "cities.yaml").write_text("group: cities\ntask:\n  - more_capitals\n  - capitals\n")
    return own_tasks


def test_mmlu_is_its_57_subjects() -> None:
    subjects = leaf_tasks("mmlu")
    assert len(subjects) == len(set(subjects)) == 57
    assert {"mmlu_anatomy", "mmlu_world_religions", "mmlu_abstract_algebra"} <= set(subjects)


def test_bbh_and_math_are_their_parts() -> None:
    assert len(leaf_tasks("bbh")) == 27
    assert len(leaf_tasks("math_verify")) == 7


def test_a_task_stands_for_itself_and_so_does_what_is_unknown() -> None:
    assert leaf_tasks("gsm8k") == ["gsm8k"]
    assert leaf_tasks("gsm8kk") == ["gsm8kk"]


def test_groups_keep_their_order_and_tags_are_sorted(cities: Path) -> None:
    assert leaf_tasks("cities", [str(cities)]) == ["more_capitals", "capitals"]
    assert leaf_tasks("geography", [str(cities)]) == ["capitals", "more_capitals"]


def test_a_task_wins_over_a_group_of_the_same_name(cities: Path) -> None:
    (cities / "group.yaml").write_text("group: echo\ntask: [capitals]\n")
    assert leaf_tasks("echo", [str(cities)]) == ["echo"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("group: bad\ntask: [bad]\n", "the group 'bad' of lm-eval tasks contains itself"),
        ("group: bad\ntask:\n  - {task: capitals, num_fewshot: 3}\n", "changes the settings of 'capitals'"),
    ],
)
def test_groups_that_cannot_be_run(own_tasks: Path, text: str, message: str) -> None:
    (own_tasks / "bad.yaml").write_text(text)
    with pytest.raises(GraftbenchError, match=message):
        leaf_tasks("bad", [str(own_tasks)])


def test_a_group_is_one_task_in_which_every_item_counts_the_same(cities: Path, mirror: Path) -> None:
    """Of four and four items, one is wrong in each: 6 of 8."""
    config = {"tasks": {"cities": {"capability": "knowledge", "limit": 4}}, "data_root": mirror}
    suite = suite_from_config({**config, "include_path": [str(cities)]})
    engine = ScriptedEngine({"France": "Paris", "Italy": "Madrid", "Spain": "Madrid"})
    evaluation = evaluate("anything", suite, engine)
    (task,) = evaluation.tasks
    assert (task.task, task.capability, task.score) == ("cities", "knowledge", 75.0)
    assert task.outcomes == (1.0, 0.0, 1.0, 1.0) * 2
    assert [item.partition(":")[0] for item in task.item_ids] == ["more_capitals"] * 4 + ["capitals"] * 4
    assert set(evaluation.timings) == {"load", "cities"}
    assert {row["task"] for row in evaluation.answers.to_pylist()} == {"capitals", "more_capitals"}


def test_items_with_the_same_value_of_a_field_are_one_cluster(cities: Path, mirror: Path) -> None:
    """Of the four items two ask for Spain; those of the second task are the same countries."""
    task = {"cluster": {"family": "countries", "field": "country"}}
    config = {"tasks": {"cities": task, "echo": task}, "data_root": mirror, "include_path": [str(cities)]}
    first, second = evaluate("anything", suite_from_config(config), ScriptedEngine({"": "Paris"})).tasks
    france, italy, spain, again = first.clusters[:4]
    assert spain == again
    assert len({france, italy, spain}) == 3
    assert all(cluster.startswith("countries:") for cluster in first.clusters)
    assert first.clusters == first.clusters[:4] * 2
    assert second.clusters == first.clusters[:4]


def test_a_field_that_items_lack_is_named(cities: Path, mirror: Path) -> None:
    task = {"cluster": {"family": "countries", "field": "continent"}}
    config = {"tasks": {"capitals": task}, "data_root": mirror, "include_path": [str(cities)]}
    with pytest.raises(GraftbenchError, match=r"no field 'continent'.*have choices, city, country"):
        evaluate("anything", suite_from_config(config), ScriptedEngine({"": "Paris"}))


def test_a_task_is_asked_once(cities: Path, mirror: Path) -> None:
    tasks = {"cities": {}, "capitals": {}}
    config = {"tasks": tasks, "data_root": mirror, "include_path": [str(cities)]}
    _, problems = plan_suite(suite_from_config(config))
    assert problems == ["suite.tasks names the task 'capitals' twice: by 'cities' and 'capitals'"]


def test_the_tasks_of_a_group_count_by_one_metric(own_tasks: Path, mirror: Path) -> None:
    (own_tasks / "mixed.yaml").write_text("group: mixed\ntask: [capitals, echo]\n")
    config = {"tasks": {"mixed": {}}, "data_root": mirror, "include_path": [str(own_tasks)]}
    _, (problem,) = plan_suite(suite_from_config(config))
    assert "the tasks of 'mixed' count by different metrics (acc,none, same,none)" in problem
