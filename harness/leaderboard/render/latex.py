"""The board as a LaTeX table for a paper; it needs the package booktabs."""

from harness.leaderboard.board import GROUPS, Board, Row
from harness.leaderboard.render.cells import BLANK, GROUP_TITLES, p_value, plus_minus, rank

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def to_latex(board: Board) -> str:
    """One `table` with a line per row, the best method and what cannot be told from it in bold."""
    headings = ["Rank", "Model", *board.capabilities, "Average", "$p$", "Retention"]
    alignment = "rl" + "r" * (len(headings) - 2)
    lines = [
        "% \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\begin{{tabular}}{{{alignment}}}",
        "\\toprule",
        " & ".join(heading if heading.startswith("$") else escape(heading) for heading in headings) + r" \\",
    ]
    for role in GROUPS:
        if rows := board.group(role):
            lines += ["\\midrule", rf"\multicolumn{{{len(headings)}}}{{l}}{{\emph{{{escape(GROUP_TITLES[role])}}}}} \\"]
            lines += [_line(board, row) for row in rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", _caption(board), "\\end{table}"]) + "\n"


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_ESCAPES.get(character, character) for character in text)


def _line(board: Board, row: Row) -> str:
    label = escape(row.label)
    p = row.p_value if row.corrected_p_value is None else row.corrected_p_value
    texts = [
        _number(rank(row)),
        f"\\textbf{{{label}}}" if row.rank is not None and row.tied_with_best else label,
        *(_number(plus_minus(row.capabilities[c])) for c in board.capabilities),
        _number(plus_minus(row.average)),
        _number(p_value(p)),
        _number(plus_minus(row.retention)),
    ]
    return " & ".join(texts) + r" \\"


def _number(text: str) -> str:
    """A cell's number in mathematical signs."""
    if text == BLANK:
        return "--"
    text = text.replace(BLANK, "--").replace("±", r"$\pm$").replace("\N{MINUS SIGN}", "$-$")
    return text.replace("<", "$<$")


def _caption(board: Board) -> str:
    items = sum(task["items"] for task in board.tasks.values())
    text = (
        f"Scores in points on {board.suite} ({items:,} {board.split} items), models of {board.zoo}; after the sign "
        "half the width of a 95 % interval over items. Bold: not distinguishable from the best method (paired "
        "sign-flip permutation test, corrected by Holm). Retention: percent of each capability's own expert, above "
        "chance."
    )
    return f"\\caption{{{escape(text)}}}"
