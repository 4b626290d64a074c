"""The board for machines: CSV with one line per model, and JSON with everything."""

import csv
import io
import json
from dataclasses import asdict
from typing import Any

from harness.files import canonical_json
from harness.leaderboard.board import Board, Row
from harness.leaderboard.statistics import CONFIDENCE, DRAWS, SEED, Estimate

DECIMALS = 4
"""Of everything written: enough for any reader, too few for the last bits in which processors differ."""


def to_csv(board: Board) -> str:
    """One line per row of the board; unknown values are empty. The same text for the same board."""
    lines = [_columns(board, row) for row in board.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def to_json(board: Board) -> str:
    """The whole board with the constants of its statistics. The same text for the same board."""
    content = {"confidence": CONFIDENCE, "bootstrap": {"draws": DRAWS, "seed": SEED}, **asdict(board)}
    return json.dumps(_rounded(content), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _columns(board: Board, row: Row) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "group": row.role,
        "rank": row.rank,
        "label": row.label,
        "expert_of": row.expert_of,
        **_estimate("average", row.average),
        **_estimate("difference_to_best", row.difference_to_best),
        "tied_with_best": row.tied_with_best,
        **_estimate("retention", row.retention),
    }
    for capability in board.capabilities:
        columns |= _estimate(capability, row.capabilities[capability])
        columns |= _estimate(f"{capability}_retention", row.capability_retention[capability])
    columns |= {
        "chosen": row.chosen,
        "merge_seconds": row.merge_seconds,
        "key": row.key,
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
