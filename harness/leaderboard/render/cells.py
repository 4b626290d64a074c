"""What stands in the cells of a table that people read, in Markdown or in the terminal."""

from harness.leaderboard.board import Board, Row
from harness.leaderboard.statistics import Estimate

GROUP_TITLES = {
    "method": "Methods",
    "control": "Controls",
    "reference": "Multi-task reference",
    "expert": "Experts",
    "base": "Base",
}
LEFT_ALIGNED = ("Model", "Chosen")
BLANK = "\N{EN DASH}"
TIED = "≈"


def cells(board: Board, row: Row, half_widths: bool = True) -> dict[str, str]:
    """One text a column, by heading; `half_widths` says whether capabilities come with ±."""
    return {
        "Rank": BLANK if row.rank is None else str(row.rank),
        "Model": row.label,
        **{
            c: plus_minus(row.capabilities[c]) if half_widths else value(row.capabilities[c])
            for c in board.capabilities
        },
        "Average": with_bounds(row.average),
        "To the best": difference(board, row),
        "Retention, %": plus_minus(row.retention),
        "Chosen": row.chosen or BLANK,
        "Merge, s": BLANK if row.merge_seconds is None else number(row.merge_seconds),
    }


def difference(board: Board, row: Row) -> str:
    """The row's difference to the best method, marked where it is not distinguishable from it."""
    if row.rank is not None and row.label == board.best:
        return "best"
    text = with_bounds(row.difference_to_best, signed=True)
    return f"{TIED} {text}" if row.tied_with_best else text


def value(estimate: Estimate) -> str:
    """The value alone."""
    return BLANK if estimate.value is None else number(estimate.value)


def plus_minus(estimate: Estimate) -> str:
    """Value ± half the width of its interval."""
    interval = estimate.interval
    return value(estimate) + ("" if interval is None else f" ± {number(interval.half_width)}")


def with_bounds(estimate: Estimate, signed: bool = False) -> str:
    """Value [low, high]."""
    if estimate.value is None:
        return BLANK
    interval = estimate.interval
    bounds = "" if interval is None else f" [{number(interval.low, signed)}, {number(interval.high, signed)}]"
    return number(estimate.value, signed) + bounds


def number(value: float, signed: bool = False) -> str:
    """One decimal, with a true minus sign, and no sign on zero."""
    text = f"{abs(value):.1f}"
    if float(text) == 0:
        return text
    return ("\N{MINUS SIGN}" if value < 0 else "+" if signed else "") + text
