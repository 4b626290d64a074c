"""The board as a Markdown page that a forge shows."""

from collections.abc import Callable, Iterable, Sequence

from harness.files import canonical_json
from harness.leaderboard.board import GROUPS, Board, Row
from harness.leaderboard.render.cells import (
    BLANK,
    GROUP_TITLES,
    LEFT_ALIGNED,
    cells,
    cost_cells,
    p_value,
    plus_minus,
    with_bounds,
)
from harness.leaderboard.render.legend import how_to_read, power

Cells = dict[str, str]


def to_markdown(board: Board) -> str:
    """A page: what was evaluated, the tables, and how to read them. The same text for the same board."""
    parts = [
        f"# Leaderboard: zoo {_escape(board.zoo)}, suite {_escape(board.suite)}, {board.split} items",
        "",
    ]
    parts += [_summary(board), "", *_table(board, lambda row: cells(board, row)), ""]
    parts += ["## How to read it", "", *(f"- {line}" for line in [*how_to_read(board), *power(board)])]
    parts += _section("Seeds", _seeds(board))
    parts += _section("Retention, % of each expert's score above chance", _retention(board))
    parts += _section("Gain recovered, % of what each expert gained over the base", _recovered(board))
    parts += _section("Costs and tuning", _costs(board))
    parts += _section("Hyper-parameters", _hyperparameters(board))
    if board.notes:
        parts += ["", "## Notes", "", *(f"- {_escape(note)}" for note in board.notes)]
    parts += ["", _provenance(board)]
    return "\n".join(parts) + "\n"


def _summary(board: Board) -> str:
    ranked = [row for row in board.group("method") if row.rank is not None]
    items = sum(task["items"] for task in board.tasks.values())
    capabilities = _count(board.capabilities, "capability", "capabilities")
    scope = f"{items:,} items, {capabilities}; {_count(ranked, 'method', 'methods')} ranked"
    if len(board.training_seeds) > 1:
        scope += f", each the mean over {len(board.training_seeds)} training seeds"
    if board.best is None:
        return f"{scope}. There is no best: the board ranks methods, and it holds none."
    tied = [row.label for row in ranked if row.tied_with_best and row.label != board.best]
    text = f"{scope}. Highest average: **{_escape(board.best)}**"
    if tied:
        text += f", not distinguishable from {_escape(', '.join(tied))}"
    elif len(ranked) > 1:
        text += ", told apart from every other method"
    controls = [row.label for row in board.group("control") if row.tied_with_best]
    return f"{text}." + (f" Controls that cannot be told from it: {_escape(', '.join(controls))}." if controls else "")


def _seeds(board: Board) -> list[str]:
    """What repeats say; nothing where no row has any."""
    rows = [row for row in board.rows if row.seeds.count > 1]
    return _plain_table(
        {
            "Model": row.label,
            "Seeds": str(row.seeds.count),
            "Average": cells(board, row)["Average"],
            "Between seeds": BLANK if row.seeds.standard_deviation is None else f"{row.seeds.standard_deviation:.2f}",
            "To the best, by seed": with_bounds(row.seeds.difference_to_best, signed=True),
            "p by seed": p_value(row.seeds.p_value),
        }
        for row in rows
    )


def _retention(board: Board) -> list[str]:
    rows = [row for row in board.rows if any(each.value is not None for each in row.capability_retention.values())]
    return _plain_table(
        {
            "Model": row.label,
            **{c: plus_minus(row.capability_retention[c]) for c in board.capabilities},
            "Mean": plus_minus(row.retention),
            "Geometric mean": plus_minus(row.geometric_retention),
            "Worst": row.worst_capability or BLANK,
        }
        for row in rows
    )


def _recovered(board: Board) -> list[str]:
    rows = [
        row
        for row in board.rows
        if row.role not in ("base", "expert") and any(each.value is not None for each in row.recovered.values())
    ]
    return _plain_table(
        {
            "Model": row.label,
            **{c: with_bounds(row.recovered[c]) for c in board.capabilities},
            "Below the base": ", ".join(row.negative_transfer) or BLANK,
        }
        for row in rows
    )


def _costs(board: Board) -> list[str]:
    return _plain_table(cost_cells(row) for row in board.rows if row.role in ("method", "control"))


def _hyperparameters(board: Board) -> list[str]:
    return _plain_table({"Model": row.label, "Values": _assignments(row)} for row in board.rows if row.hyperparameters)


def _assignments(row: Row) -> str:
    return ", ".join(f"{name} = {canonical_json(value)}" for name, value in row.hyperparameters.items())


def _provenance(board: Board) -> str:
    tasks = ", ".join(f"{_escape(name)} ({task['items']:,})" for name, task in board.tasks.items())
    return (
        f"Tasks and items: {tasks}. Zoo `{board.digests['zoo'][:16]}`, "
        f"suite `{board.digests['suite'][:16]}`. "
        "All numbers and exact bounds are in `leaderboard.csv` and `leaderboard.json`, every pair of methods in "
        "`pairs.csv`; the outcome of every item, from which this page is computed, is in `records/`. Generated: do not "
        "edit it by hand."
    )


def _table(board: Board, content: Callable[[Row], Cells]) -> list[str]:
    """Rows by group, with a line over each."""
    names = list(content(board.rows[0]))
    lines = _head(names)
    for role in GROUPS:
        rows = board.group(role)
        if rows:
            lines.append(_line(["", f"**{GROUP_TITLES[role]}**", *[""] * (len(names) - 2)]))
        lines += [_line([_escape(cell) for cell in content(row).values()]) for row in rows]
    return lines


def _plain_table(rows: Iterable[Cells]) -> list[str]:
    content = list(rows)
    if not content:
        return []
    return _head(list(content[0])) + [_line([_escape(cell) for cell in row.values()]) for row in content]


def _section(title: str, table: Sequence[str]) -> list[str]:
    return ["", f"## {title}", "", *table] if table else []


def _head(names: Sequence[str]) -> list[str]:
    return [_line(names), _line([":--" if name in LEFT_ALIGNED else "--:" for name in names])]


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _escape(text: str) -> str:
    """Text that Markdown shows as it is, within one cell."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{character}" if character in "\\|*`" else character for character in text)


def _count(things: Sequence[object], one: str, many: str) -> str:
    return f"{len(things)} {one if len(things) == 1 else many}"
