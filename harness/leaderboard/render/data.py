"""The board for machines: CSV with one line per model, and JSON with everything."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from harness.files import canonical_json
from harness.leaderboard.board import Board, Row
from harness.leaderboard.statistics import CONFIDENCE, DRAWS, FLIPS, POWER, SEED, SIGNIFICANCE, Estimate

DECIMALS = 4
"""Of everything written: enough for any reader, too few for the last bits in which processors differ."""


def to_csv(board: Board) -> str:
    """One line per row of the board; unknown values are empty. The same text for the same board."""
    return _csv([_columns(board, row) for row in board.rows])


def pairs_to_csv(board: Board) -> str:
    """One line per pair of ranked methods, the better one first; empty where there are no two of them."""
    lines = [
        {
            "first": pair.first,
            "second": pair.second,
            **_estimate("difference", pair.difference),
            **_estimate("difference_by_seed", pair.seed_difference),
            "p_value": pair.p_value,
            "corrected_p_value": pair.corrected_p_value,
        }
        for pair in board.comparisons
    ]
    return _csv([_rounded(line) for line in lines])


def to_json(board: Board) -> str:
    """The whole board with the constants of its statistics. The same text for the same board."""
    constants = {
        "confidence": CONFIDENCE,
        "significance": SIGNIFICANCE,
        "power": POWER,
        "bootstrap": {"draws": DRAWS, "seed": SEED},
        "permutation": {"draws": FLIPS, "seed": SEED},
    }
    content = {**constants, **asdict(board)}
    return json.dumps(_rounded(content), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _csv(lines: Sequence[dict[str, Any]]) -> str:
    if not lines:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _columns(board: Board, row: Row) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "group": row.role,
        "rank": row.rank,
        "rank_low": None if row.rank_interval is None else row.rank_interval[0],
        "rank_high": None if row.rank_interval is None else row.rank_interval[1],
        "unranked": row.unranked,
        "label": row.label,
        "expert_of": row.expert_of,
        **_estimate("average", row.average),
        **_estimate("difference_to_best", row.difference_to_best),
        "p_value": row.p_value,
        "corrected_p_value": row.corrected_p_value,
        "tied_with_best": row.tied_with_best,
        **_estimate("retention", row.retention),
        **_estimate("geometric_retention", row.geometric_retention),
        "worst_capability": row.worst_capability,
        "negative_transfer": " ".join(row.negative_transfer),
    }
    for capability in board.capabilities:
        columns |= _estimate(capability, row.capabilities[capability])
        columns |= _estimate(f"{capability}_retention", row.capability_retention[capability])
        columns |= _estimate(f"{capability}_recovered", row.recovered[capability])
    columns |= {
        "chosen": row.chosen,
        **asdict(row.costs),
        "seeds": row.seeds.count,
        "seeds_standard_deviation": row.seeds.standard_deviation,
        **_estimate("seeds_difference_to_best", row.seeds.difference_to_best),
        "seeds_p_value": row.seeds.p_value,
        "keys": " ".join(row.records),
        "recipe": canonical_json(row.recipe),
    }
    return {name: _rounded(value) for name, value in columns.items()}


def _estimate(name: str, estimate: Estimate) -> dict[str, float | None]:
    interval = estimate.interval
    return {
        name: estimate.value,
        f"{name}_low": None if interval is None else interval.low,
        f"{name}_high": None if interval is None else interval.high,
    }


def _rounded(value: Any) -> Any:
    """The value with every float in it rounded, and no negative zero."""
    if isinstance(value, float):
        return round(value, DECIMALS) + 0.0
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    return value
