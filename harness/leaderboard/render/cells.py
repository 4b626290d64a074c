"""What stands in the cells of a table that people read, in Markdown or in the terminal."""

from harness.files import readable_size
from harness.leaderboard.board import Board, Row
from harness.leaderboard.statistics import Estimate

GROUP_TITLES = {
    "method": "Methods",
    "control": "Controls",
    "reference": "Multi-task reference",
    "expert": "Experts",
    "base": "Base",
}
LEFT_ALIGNED = ("Model", "Chosen", "Data needed", "Worst", "Below the base", "Values")
BLANK = "\N{EN DASH}"
TIED = "≈"


def cells(board: Board, row: Row, half_widths: bool = True) -> dict[str, str]:
    """One text a column, by heading; `half_widths` says whether capabilities come with ±."""
    return {
        "Rank": rank(row),
        "Model": row.label,
        **{
            c: plus_minus(row.capabilities[c]) if half_widths else value(row.capabilities[c])
            for c in board.capabilities
        },
        "Average": with_bounds(row.average),
        "To the best": difference(board, row),
        "p": p_value(row.p_value if row.corrected_p_value is None else row.corrected_p_value),
        "Retention, %": plus_minus(row.retention),
        "Chosen": row.chosen or BLANK,
    }


def cost_cells(row: Row) -> dict[str, str]:
    """The costs of a row, one text a column."""
    costs = row.costs
    return {
        "Model": row.label,
        "Merge, s": optional(costs.merge_seconds),
        "Peak memory": size(costs.peak_memory_bytes),
        "Extra per expert": size(costs.extra_bytes_per_expert),
        "Data needed": costs.data_needed or BLANK,
        "Trials": BLANK if costs.tuning_trials is None else str(costs.tuning_trials),
        "Tuning, s": optional(costs.tuning_seconds, decimals=0),
    }


def rank(row: Row) -> str:
    """The rank, and the places that it takes where other items are drawn."""
    if row.rank is None:
        return BLANK
    if row.rank_interval is None or row.rank_interval == (row.rank, row.rank):
        return str(row.rank)
    low, high = row.rank_interval
    return f"{row.rank} ({low}{BLANK}{high})"


def difference(board: Board, row: Row) -> str:
    """The row's difference to the best method, marked where it is not distinguishable from it."""
    if row.rank is not None and row.label == board.best:
        return "best"
    text = with_bounds(row.difference_to_best, signed=True)
    return f"{TIED} {text}" if row.tied_with_best else text


def p_value(value: float | None) -> str:
    """Three decimals; what rounds to none of them is small, not zero."""
    if value is None:
        return BLANK
    return "<0.001" if value < 0.0005 else f"{value:.3f}"


def size(count: int | None) -> str:
    """Bytes in the unit that suits them."""
    if count is None:
        return BLANK
    return "0" if count == 0 else readable_size(count)


def optional(value: float | None, decimals: int = 1) -> str:
    return BLANK if value is None else f"{value:,.{decimals}f}"


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
