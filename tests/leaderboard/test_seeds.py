"""Several seeds of one row: their mean, differences paired by seed, and what happens where some are missing."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from harness.errors import GraftbenchError
from harness.leaderboard import Board, Row, build_board
from harness.leaderboard.render import to_json, to_markdown
from harness.results import Record

MakeRecord = Callable[..., Record]
SEEDS = (0, 1, 2)
ITEMS = 240


def row(board: Board, label: str, role: str = "method") -> Row:
    return next(row for row in board.group(role) if row.label == label)


def recipe(method: str, digest: str, **values: Any) -> dict[str, Any]:
    """A merge's recipe: what the training seed changes is in digests."""
    models = {"base": digest * 4, "experts": {"math": digest * 4}, "curvature": None}
    return {"method": method, "source": "5" * 64, "hyperparameters": {"weights": {}, **values}, **models}


@pytest.fixture
def seeded(make_record: MakeRecord) -> list[Record]:
    """Base, an expert, and three methods of three training seeds each; facts and items are the same in all."""
    generator = np.random.default_rng(3)
    difficulty = {capability: generator.random(ITEMS) for capability in ("math", "code")}
    abilities = {
        ("base", "base", None): 0.3,
        ("math", "expert", "math"): 0.9,
        ("code", "expert", "code"): 0.85,
        ("ota", "method", None): 0.7,
        ("ties", "method", None): 0.66,
        ("linear", "method", None): 0.5,
    }
    records = []
    for seed in SEEDS:
        digest = f"{seed}" * 16
        for (label, role, own), ability in abilities.items():
            level = ability + generator.normal(0, 0.01)
            outcomes = {
                capability: (0.7 * values + 0.3 * generator.random(ITEMS) < level).astype(float)
                for capability, values in difficulty.items()
            }
            made = recipe(label, digest, seed=0) if role == "method" else {"method": "none", "weights": digest * 4}
            zoo = {"name": "tiny", "digest": digest, "training_seed": seed}
            key = f"{label}-{seed}"
            records.append(make_record(label, outcomes, role, capability=own, zoo=zoo, recipe=made, key=key))
    return records


def objectives(records: list[Record], label: str) -> list[float]:
    return [record.objective() for record in records if record.label == label]


def test_a_row_is_the_mean_over_its_seeds_never_the_best(seeded: list[Record]) -> None:
    board = build_board(seeded)
    assert [row.label for row in board.rows] == ["ota", "ties", "linear", "math", "code", "base"]
    assert board.training_seeds == SEEDS
    for label in ("ota", "ties", "linear"):
        found, scores = row(board, label), objectives(seeded, label)
        assert found.average.value == pytest.approx(np.mean(scores))
        assert found.average.value < max(scores)
        assert found.seeds.standard_deviation == pytest.approx(np.std(scores, ddof=1))
        assert (found.seeds.count, found.seeds.training, found.seeds.masks) == (3, SEEDS, ())
        assert found.records == tuple(f"{label}-{seed}" for seed in SEEDS)


def test_differences_are_paired_by_seed(seeded: list[Record]) -> None:
    board = build_board(seeded)
    expected = ttest_rel(objectives(seeded, "ties"), objectives(seeded, "ota"))
    low, high = expected.confidence_interval(0.95)
    seeds = row(board, "ties").seeds
    assert seeds.p_value == pytest.approx(expected.pvalue)
    assert seeds.difference_to_best.interval is not None
    assert seeds.difference_to_best.interval.low == pytest.approx(low)
    assert seeds.difference_to_best.interval.high == pytest.approx(high)
    pair = board.comparison("ties", "ota")
    assert pair is not None
    assert (pair.first, pair.second) == ("ota", "ties")
    assert pair.seed_difference.value == pytest.approx(-(seeds.difference_to_best.value or 0))


def test_rows_are_told_apart_only_where_items_and_seeds_both_do(make_record: MakeRecord) -> None:
    """`b` is far below `a` on the items, but by very different amounts: three seeds are too few to be sure."""
    records = []
    for seed, right in zip(SEEDS, (200, 20, 80), strict=True):
        zoo = {"name": "tiny", "digest": f"{seed}" * 16, "training_seed": seed}
        for label, count in (("a", 205), ("b", right)):
            outcomes = {"math": [float(position < count) for position in range(ITEMS)]}
            made = recipe(label, f"{seed}" * 16)
            records.append(make_record(label, outcomes, zoo=zoo, recipe=made, key=f"{label}-{seed}"))
    worse = row(build_board(records), "b")
    gaps = np.array([5, 185, 125]) / 2.4
    assert worse.p_value == worse.seeds.p_value == pytest.approx(ttest_1samp(gaps, 0).pvalue)
    assert worse.p_value is not None
    assert worse.p_value > 0.05
    assert worse.tied_with_best
    assert worse.difference_to_best.interval is not None
    assert worse.difference_to_best.interval.high < -30


def test_retention_is_against_the_experts_of_the_same_seeds(seeded: list[Record]) -> None:
    board = build_board(seeded)
    own = {
        label: np.mean([r.capability_scores()["math"] for r in seeded if r.label == label])
        for label in ("ota", "math", "base")
    }
    ota = row(board, "ota")
    assert ota.capability_retention["math"].value == pytest.approx(100 * own["ota"] / own["math"])
    gained = 100 * (own["ota"] - own["base"]) / (own["math"] - own["base"])
    assert ota.recovered["math"].value == pytest.approx(gained)
    fewer = build_board([record for record in seeded if record.key != "math-1"])
    reason = row(fewer, "ota").capability_retention["math"].reason
    assert reason == "the expert of math has other training seeds"
    assert row(fewer, "ota").capability_retention["code"].value is not None


def test_a_method_that_lacks_a_seed_is_set_aside_and_changes_no_rank(seeded: list[Record]) -> None:
    board = build_board([record for record in seeded if record.key != "ota-2"])
    assert row(board, "ota").rank is None
    assert row(board, "ota").unranked == "there is no record of training seed 2"
    assert "Not ranked, since there is no record of training seed 2: ota." in board.notes
    assert [(row.label, row.rank) for row in board.rows if row.rank] == [("ties", 1), ("linear", 2)]
    assert {each.first for each in board.comparisons} == {"ties"}


def test_a_seed_that_few_methods_have_is_left_out(seeded: list[Record]) -> None:
    """A fourth seed of one method, however good, changes nothing."""
    perfect = [replace(task, outcomes=(1.0,) * ITEMS) for task in seeded[0].tasks]
    zoo = {"name": "tiny", "digest": "3" * 16, "training_seed": 3}
    made = recipe("linear", "3" * 16, seed=0)
    linear = next(record for record in seeded if record.label == "linear")
    fourth = replace(linear, key="linear-3", zoo=zoo, recipe=made, tasks=tuple(perfect))
    board = build_board([*seeded, fourth])
    assert board.training_seeds == SEEDS
    assert row(board, "linear").average == row(build_board(seeded), "linear").average
    assert any(note.endswith("most methods have no record of them: linear (3).") for note in board.notes)


def test_masks_of_one_method_are_one_row_beside_methods_without(make_record: MakeRecord) -> None:
    generator = np.random.default_rng(5)
    difficulty = generator.random(ITEMS)
    linear = make_record("linear", {"math": difficulty < 0.7}, recipe=recipe("linear", "0" * 16))
    masks = [
        make_record(
            "dare" + (f" seed={seed}" if seed else ""),
            {"math": 0.8 * difficulty + 0.2 * generator.random(ITEMS) < 0.6},
            recipe=recipe("dare", "0" * 16, drop_rate=0.5, seed=seed),
            key=f"dare-{seed}",
        )
        for seed in SEEDS
    ]
    other = make_record(
        "dare", {"math": difficulty < 0.1}, recipe=recipe("dare", "0" * 16, drop_rate=0.9, seed=0), key="x"
    )
    board = build_board([linear, *masks, other])
    assert [found.label for found in board.rows] == ["linear", "dare (drop_rate=0.5)", "dare (drop_rate=0.9)"]
    dare = board.rows[1]
    scores = [record.objective() for record in masks]
    assert (dare.seeds.count, dare.seeds.training, dare.seeds.masks) == (3, (), SEEDS)
    assert dare.average.value == pytest.approx(np.mean(scores))
    assert dare.seeds.p_value == pytest.approx(ttest_1samp(scores, linear.objective()).pvalue)
    assert board.rows[2].seeds.count == 1
    assert board.rows[2].seeds.difference_to_best.reason == "fewer than two seeds in common"
    page = to_markdown(board)
    assert "## Seeds" in page
    assert "never the best of them" in page


def test_the_order_of_records_never_matters(seeded: list[Record]) -> None:
    expected = to_json(build_board(seeded))
    shuffler = random.Random(4)
    for _ in range(3):
        assert to_json(build_board(shuffler.sample(seeded, len(seeded)))) == expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "tiny", "digest": "9" * 16}, "record 'linear' .* states no training seed; choose one zoo"),
        ({"name": "mine", "digest": "9" * 16, "training_seed": 7}, "'linear' .* is of zoo mine, not tiny"),
        ({"name": "tiny", "digest": "9" * 16, "training_seed": 2}, "one training seed 2 have different zoo digests"),
        ({"name": "tiny", "digest": "1" * 16, "training_seed": 7}, "one zoo digest 1111111111111111 .* training seeds"),
    ],
)
def test_other_mixes_of_models_are_refused(seeded: list[Record], change: dict[str, Any], reason: str) -> None:
    mixed = [replace(record, zoo=change) if record.key == "linear-2" else record for record in seeded]
    for records in (mixed, mixed[::-1]):
        with pytest.raises(GraftbenchError, match=reason):
            build_board(records)


def test_two_records_of_one_seed_are_no_repeats(seeded: list[Record]) -> None:
    """The same recipe and seeds, but other curvature files: each has a row, and neither can stand for all seeds."""
    again = replace(next(record for record in seeded if record.key == "ties-1"), key="ties-again")
    board = build_board([*seeded, again])
    aside = [found for found in board.rows if found.unranked]
    assert len(aside) == 4
    assert all(found.label.startswith("ties (") for found in aside)
    assert [found.label for found in board.rows if found.rank] == ["ota", "linear"]
