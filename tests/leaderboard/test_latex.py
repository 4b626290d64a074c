"""The table for papers is LaTeX that compiles, whatever the rows are called."""

import re
from dataclasses import replace

import pytest

from harness.leaderboard import build_board
from harness.leaderboard.render import to_latex
from harness.leaderboard.render.latex import escape
from harness.results import Record

UNESCAPED = re.compile(r"(?<!\\)[%#_~^<>|\"]")


def rows(latex: str) -> list[str]:
    """The lines of the table that have cells."""
    return [line for line in latex.splitlines() if line.endswith(r" \\") and "multicolumn" not in line]


def test_every_row_has_as_many_cells_as_the_table_has_columns(board_records: list[Record]) -> None:
    latex = to_latex(build_board(board_records))
    (columns,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", latex)
    lines = rows(latex)
    assert len(lines) == 1 + len(board_records), "the headings and the rows"
    assert {len(re.split(r"(?<!\\)&", line)) for line in lines} == {len(columns)}
    assert f"\\multicolumn{{{len(columns)}}}" in latex


def test_what_is_opened_is_closed_and_nothing_stands_unescaped(board_records: list[Record]) -> None:
    named = [replace(r, label=r"50% of a_b & {c} ~ ^ # $ \d < e") if r.label == "linear" else r for r in board_records]
    latex = to_latex(build_board(named))
    body = "\n".join(line for line in latex.splitlines() if not line.startswith("%"))
    assert re.findall(r"\\begin\{(\w+)\}", body) == ["table", "tabular"]
    assert re.findall(r"\\end\{(\w+)\}", body) == ["tabular", "table"]
    bare = re.sub(r"\\[{}]", "", body)
    assert bare.count("{") == bare.count("}")
    assert not UNESCAPED.search(re.sub(r"\$[^$]*\$", "", body.replace(r"\$", "")))
    assert body.isascii(), "no character that needs a package"


def test_the_best_and_what_cannot_be_told_from_it_are_bold(board_records: list[Record]) -> None:
    board = build_board(board_records)
    wanted = [escape(row.label) for row in board.rows if row.rank is not None and row.tied_with_best]
    assert board.best is not None and escape(board.best) in wanted
    assert re.findall(r"\\textbf\{([^}]*)\}", to_latex(board)) == wanted


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("ota_ffg", r"ota\_ffg"),
        ("a & b", r"a \& b"),
        ("50%", r"50\%"),
        ("\\{", r"\textbackslash{}\{"),
        ("p<1", r"p\textless{}1"),
    ],
)
def test_escapes(text: str, written: str) -> None:
    assert escape(text) == written
