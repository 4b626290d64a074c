"""From a board to its page: one file with style, script and charts in it, which needs nothing from elsewhere."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from harness.leaderboard.board import GROUPS, Board, Comparison, Row
from harness.leaderboard.render import cells
from harness.leaderboard.render.page import charts
from harness.leaderboard.render.page.command import command
from harness.leaderboard.statistics import SIGNIFICANCE, Estimate


def to_html(board: Board) -> str:
    """The page, the same bytes for the same board (and version of matplotlib, which draws the charts)."""
    return str(
        _template().render(
            board=board,
            style=_text("style.css"),
            script=_text("page.js"),
            groups=[(role, cells.GROUP_TITLES[role], board.group(role)) for role in GROUPS if board.group(role)],
            columns=_columns(board),
            bars=charts.capability_bars(board),
            radar=charts.radar(board),
            cost=charts.cost_plot(board),
            matrix=_matrix(board),
            cells=cells,
            command=command,
            facts=_facts,
            items=sum(task["items"] for task in board.tasks.values()),
            alpha=SIGNIFICANCE,
            place=_scale(board),
        )
    )


def _scale(board: Board) -> Callable[[float], str]:
    """Where a score lies between the lowest and the highest end of an average's interval, in percent."""
    ends = [end for row in board.rows if (found := row.average.interval) for end in (found.low, found.high)]
    low, high = min(ends, default=0.0), max(ends, default=100.0)
    return lambda score: f"{100 * (score - low) / ((high - low) or 1.0):.1f}"


@dataclass(frozen=True)
class Column:
    """A column of the table: how a row's cell reads, and what it is sorted by."""

    heading: str
    text: Callable[[Row], str]
    value: Callable[[Row], str | float | None]
    numeric: bool = True


@dataclass(frozen=True)
class Cell:
    """One method against another, in the matrix of pairs."""

    text: str
    kind: str
    """wins, loses, open (not told apart) or self."""
    said: str


def _columns(board: Board) -> list[Column]:
    def score(capability: str) -> Column:
        return Column(
            capability,
            lambda row: cells.plus_minus(row.capabilities[capability]),
            lambda row: row.capabilities[capability].value,
        )

    return [
        Column("Rank", cells.rank, lambda row: row.rank),
        Column("Model", lambda row: row.label, lambda row: row.label, numeric=False),
        Column("Average", lambda row: cells.with_bounds(row.average), lambda row: row.average.value),
        Column("To the best", lambda row: cells.difference(board, row), lambda row: row.difference_to_best.value),
        Column("p", lambda row: cells.p_value(_p(row)), _p),
        *(score(capability) for capability in board.capabilities),
        Column("Retention, %", lambda row: cells.plus_minus(row.retention), lambda row: row.retention.value),
        Column("Merge, s", lambda row: cells.optional(row.costs.merge_seconds), lambda row: row.costs.merge_seconds),
        Column("Chosen", lambda row: row.chosen or cells.BLANK, lambda row: row.chosen, numeric=False),
    ]


def _p(row: Row) -> float | None:
    return row.p_value if row.corrected_p_value is None else row.corrected_p_value


def _matrix(board: Board) -> list[tuple[str, list[Cell]]]:
    """For each ranked method its comparison with every other; empty with fewer than two."""
    ranked = [row.label for row in board.group("method") if row.rank is not None]
    if len(ranked) < 2:
        return []
    return [(one, [_cell(one, other, board.comparison(one, other)) for other in ranked]) for one in ranked]


def _cell(one: str, other: str, pair: Comparison | None) -> Cell:
    if one == other or pair is None or pair.difference.value is None:
        return Cell("", "self", one)
    difference = pair.difference.value if pair.first == one else -pair.difference.value
    told_apart = pair.corrected_p_value <= SIGNIFICANCE
    kind = "open" if not told_apart else "wins" if difference > 0 else "loses"
    verb = {"open": "cannot be told from", "wins": "beats", "loses": "loses to"}[kind]
    points, p = cells.number(difference, signed=True), cells.p_value(pair.corrected_p_value)
    return Cell(points, kind, f"{one} {verb} {other}: {points} points, p {p}")


def _facts(board: Board, row: Row) -> list[tuple[str, str]]:
    """What the details of a row list, besides its command."""
    found = [
        ("Hyper-parameters", json.dumps(row.hyperparameters, sort_keys=True) if row.hyperparameters else ""),
        ("Chosen", row.chosen),
        ("Not ranked", row.unranked or ""),
        ("Data needed", row.costs.data_needed or ""),
        ("Peak memory of the merge", cells.size(row.costs.peak_memory_bytes)),
        ("Extra files per expert", cells.size(row.costs.extra_bytes_per_expert)),
        ("Tuning", _tuning(row)),
        ("Gain recovered, %", _by_capability(row.recovered)),
        ("Geometric mean of retention, %", cells.plus_minus(row.geometric_retention)),
        ("Worst capability", row.worst_capability or ""),
        ("Significantly below the base", ", ".join(row.negative_transfer)),
        ("Seeds", _seeds(row)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in sorted(row.versions.items()))),
        ("Records", ", ".join(row.records)),
    ]
    return [(name, text) for name, text in found if text and text != cells.BLANK]


def _tuning(row: Row) -> str:
    if not row.costs.tuning_trials:
        return ""
    seconds = row.costs.tuning_seconds
    return f"{row.costs.tuning_trials} trials" + ("" if seconds is None else f", {seconds:,.0f} s")


def _seeds(row: Row) -> str:
    if row.seeds.count < 2:
        return ""
    spread = row.seeds.standard_deviation
    return f"{row.seeds.count}" + ("" if spread is None else f", standard deviation {cells.number(spread)} points")


def _by_capability(estimates: dict[str, Estimate]) -> str:
    return "; ".join(
        f"{name}: {cells.plus_minus(each)}" if each.value is not None else f"{name}: blank ({each.reason})"
        for name, each in estimates.items()
    )


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_text("page.html.jinja"))


def _text(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
