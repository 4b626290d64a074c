"""The items of the embedded zoo: disjoint, the same from the same seed, and right by another reckoning."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import pytest

from harness.zoo.tiny.items import (
    CAPABILITIES,
    Counts,
    Item,
    deal,
    generate_items,
    generator,
    read_split,
    write_splits,
)

COUNTS = Counts(train=900, validation=60, test=120)


@pytest.fixture(scope="module", params=CAPABILITIES)
def splits(request: pytest.FixtureRequest) -> dict[str, list[Item]]:
    return generate_items(request.param, 3, COUNTS)


def test_no_prompt_is_in_two_splits_or_twice_in_one(splits: dict[str, list[Item]]) -> None:
    prompts = [item["prompt"] for items in splits.values() for item in items]
    assert len(prompts) == len(set(prompts))


def test_validation_and_test_have_exactly_the_wanted_items(splits: dict[str, list[Item]]) -> None:
    assert (len(splits["validation"]), len(splits["test"])) == (60, 120)
    assert 0 < len(splits["train"]) <= 900


def test_ids_are_distinct_and_both_levels_are_everywhere(splits: dict[str, list[Item]]) -> None:
    for items in splits.values():
        assert len({item["id"] for item in items}) == len(items)
        assert {item["level"] for item in items} == {"basic", "advanced"}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_same_seed_gives_the_same_items_and_another_seed_others(capability: str) -> None:
    first = generate_items(capability, 3, COUNTS)
    assert generate_items(capability, 3, COUNTS) == first
    assert generate_items(capability, 4, COUNTS)["test"] != first["test"]


def test_items_survive_the_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    splits = generate_items("instructions", 1, COUNTS)
    write_splits(tmp_path, splits)
    assert read_split(tmp_path, "test") == splits["test"]


def test_arithmetic_answers_are_right_and_levels_are_those_of_the_carries() -> None:
    for items in generate_items("math", 0, COUNTS).values():
        for item in items:
            a, b = map(int, re.findall(r"\d+", item["prompt"]))
            if "+" in item["prompt"]:
                right, hard = a + b, a % 10 + b % 10 > 9
            elif "-" in item["prompt"]:
                right, hard = a - b, a % 10 < b % 10
            else:
                right, hard = max(a, b), False
            assert int(item["answer"]) == right
            assert item["level"] == ("advanced" if hard else "basic")


def test_reference_answers_of_code_pass_their_unit_tests_and_those_of_other_items_do_not() -> None:
    items = generate_items("code", 0, COUNTS)["test"]
    for item, other in zip(items, [*items[1:], items[0]], strict=True):
        assert _passes(item, item["answer"]), item
        assert other["answer"] == item["answer"] or not _passes(item, other["answer"]), (
            item,
            other["answer"],
        )


def test_a_fact_is_trained_but_never_in_the_wording_that_asks_for_it() -> None:
    splits = generate_items("knowledge", 0, Counts(train=10_000, validation=60, test=120))
    trained = defaultdict(set)
    for item in splits["train"]:
        trained[item["entity"], item["attribute"]].add(item["wording"])
    for item in splits["validation"] + splits["test"]:
        wordings = trained[item["entity"], item["attribute"]]
        assert wordings and item["wording"] not in wordings
    asked = [{(item["entity"], item["attribute"]) for item in splits[name]} for name in ("validation", "test")]
    assert not asked[0] & asked[1]
    assert [len(facts) for facts in asked] == [60, 120], "each fact is asked once, so that items are independent"


def test_every_fact_has_one_value_and_every_label_points_to_it() -> None:
    splits = generate_items("knowledge", 0, COUNTS)
    values = defaultdict(set)
    for items in splits.values():
        for item in items:
            assert item["choices"][item["label"]] == item["answer"]
            assert len(set(item["choices"])) == 4
            values[item["entity"], item["attribute"]].add(item["answer"])
    assert all(len(found) == 1 for found in values.values())


def test_right_choices_stand_in_every_position() -> None:
    labels = Counter(item["label"] for item in generate_items("knowledge", 0, Counts(900, 60, 400))["test"])
    assert set(labels) == {0, 1, 2, 3}
    assert max(labels.values()) < 2 * min(labels.values())


def test_dealing_refuses_a_family_with_too_few_items() -> None:
    candidates = {"many": [{"prompt": str(n)} for n in range(100)], "few": [{"prompt": "x"}]}
    with pytest.raises(ValueError, match="few"):
        deal(candidates, {"many": 0.5, "few": 0.5}, Counts(10, 4, 4), generator(0))


def _passes(item: Item, answer: str) -> bool:
    source = "\n".join((item["signature"], f"    {answer}", *item["tests"]))
    try:
        exec(source, {})
    except Exception:
        return False
    return True
