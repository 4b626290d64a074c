"""The board as a Markdown page that a forge shows."""

from collections.abc import Sequence

from harness.files import canonical_json
from harness.leaderboard.board import GROUPS, Board, Row
from harness.leaderboard.render.cells import GROUP_TITLES, LEFT_ALIGNED, TIED, cells, number


def to_markdown(board: Board) -> str:
    """A page: what was evaluated, the table, and how to read it. The same text for the same board."""
    parts = [
        f"# Leaderboard: zoo {_escape(board.zoo)}, suite {_escape(board.suite)}, {board.split} items",
        "",
    ]
    parts += [_summary(board), "", *_table(board), "", *_legend(board)]
    parts += _hyperparameters(board)
    if board.notes:
        parts += ["", "## Notes", "", *(f"- {_escape(note)}" for note in board.notes)]
    parts += ["", *_provenance(board)]
    return "\n".join(parts) + "\n"


def _summary(board: Board) -> str:
    ranked = [row for row in board.group("method") if row.rank is not None]
    items = sum(task["items"] for task in board.tasks.values())
    capabilities = _count(board.capabilities, "capability", "capabilities")
    scope = f"{items:,} items, {capabilities}; {_count(ranked, 'method', 'methods')} ranked."
    if board.best is None:
        return f"{scope} There is no best: the board ranks methods, and it holds none."
    tied = [row.label for row in ranked if row.tied_with_best and row.label != board.best]
    text = f"{scope} Highest average: **{_escape(board.best)}**"
    if tied:
        text += f", not distinguishable from {_escape(', '.join(tied))}"
    elif len(ranked) > 1:
        text += ", told apart from every other method"
    controls = [row.label for row in board.group("control") if row.tied_with_best]
    return f"{text}." + (f" Controls that cannot be told from it: {_escape(', '.join(controls))}." if controls else "")


def _table(board: Board) -> list[str]:
    names = list(cells(board, board.rows[0]))
    lines = [_line(names), _line([":--" if name in LEFT_ALIGNED else "--:" for name in names])]
    for role in GROUPS:
        rows = board.group(role)
        if rows:
            lines.append(_line(["", f"**{GROUP_TITLES[role]}**", *[""] * (len(names) - 2)]))
        for row in rows:
            lines.append(_line([_escape(cell) for cell in cells(board, row).values()]))
    return lines


def _hyperparameters(board: Board) -> list[str]:
    """A table of what each merge was given; nothing where no row has any."""
    rows = [row for row in board.rows if row.hyperparameters]
    if not rows:
        return []
    lines = [_line([_escape(row.label), _escape(_assignments(row))]) for row in rows]
    return ["", "## Hyper-parameters", "", _line(["Model", "Values"]), _line([":--", ":--"]), *lines]


def _assignments(row: Row) -> str:
    return ", ".join(f"{name} = {canonical_json(value)}" for name, value in row.hyperparameters.items())


def _legend(board: Board) -> list[str]:
    """The footnotes that make the table readable without another page."""
    lines = ["## How to read it", "", *_LEGEND]
    if board.smallest_detectable_difference is not None:
        lines.append(
            "- **What this suite can tell apart**: a method must truly differ from the best by about "
            f"{number(board.smallest_detectable_difference)} points of average to be found out in 80 of 100 "
            "such evaluations (paired, two-sided 5 %, typical of the methods here)."
        )
    return lines


_LEGEND = (
    "- **Scores** are points, 0 to 100. A capability's score is the mean of its tasks; ± is half the "
    "width of its 95 % interval. **Average** is the mean over capabilities, with its 95 % interval in "
    "brackets. The intervals say how much other items of the same kind could have changed the score.",
    "- **To the best** is the row's average minus that of the best method, with its 95 % interval, on the same items "
    "for both rows. It is narrower than the intervals of two averages suggest, since both models met the same easy and "
    "the same hard items.",
    f"- **{TIED}** marks rows that are *not distinguishable from the best*: the p-value of a paired permutation test, "
    "corrected by Holm for the number of ranked methods, is above 0.05. Their order is not to be relied upon. With one "
    "training seed the marks know nothing of others.",
    "- **Rank** is among methods only. Controls are methods with one ingredient spoilt on purpose: a "
    "control that cannot be told from its method shows no benefit of that ingredient here.",
    "- **Retention** is the share of each capability's own expert's score, above chance, that the model "
    "keeps, (model - chance) / (expert - chance), averaged over capabilities. 100 is as good as every "
    "expert on its own.",
    "- **Chosen** says how the hyper-parameters were chosen: `default`, `given` by hand, or `tuned` (number "
    "of trials, and the items that decided). **Merge** is the wall-clock time of the merge alone.",
)


def _provenance(board: Board) -> list[str]:
    tasks = ", ".join(f"{_escape(name)} ({task['items']:,})" for name, task in board.tasks.items())
    return [
        f"Tasks and items: {tasks}. Zoo `{board.digests['zoo'][:16]}`, "
        f"suite `{board.digests['suite'][:16]}`. "
        "All numbers and exact bounds are in `leaderboard.csv` and `leaderboard.json`; the outcome of every "
        "item, from which this page is computed, is in `records/`. Generated: do not edit it by hand.",
    ]


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _escape(text: str) -> str:
    """Text that Markdown shows as it is, within one cell."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{character}" if character in "\\|*`" else character for character in text)


def _count(things: Sequence[object], one: str, many: str) -> str:
    return f"{len(things)} {one if len(things) == 1 else many}"
