"""The page, the tables for machines and the terminal: complete, escaped, always the same bytes."""

import csv
import io
import json
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from harness.leaderboard import build_board, print_board
from harness.leaderboard.render import pairs_to_csv, to_csv, to_json, to_markdown
from harness.leaderboard.render.cells import number, p_value
from harness.results import Record

MakeRecord = Callable[..., Record]


def table_lines(page: str, section: str = "# Leaderboard") -> list[str]:
    """The lines of the table under a heading."""
    under = page.partition(f"{section}")[2].partition("\n#")[0]
    return [line for line in under.splitlines() if line.startswith("|")]


def test_the_page_lists_every_row_in_groups_with_the_best_first(board_records: list[Record]) -> None:
    lines = table_lines(to_markdown(build_board(board_records)))
    assert lines[0].startswith("| Rank | Model | math | code | Average |")
    columns = {line.count(" | ") for line in lines}
    assert len(columns) == 1
    names = [line.split(" | ")[1].strip() for line in lines[2:]]
    assert [name for name in names if name.startswith("**")] == [
        "**Methods**", "**Controls**", "**Multi-task reference**", "**Experts**", "**Base**",
    ]  # fmt: skip
    assert len(lines) == 2 + 5 + len(board_records)


def test_the_page_marks_what_cannot_be_told_from_the_best(board_records: list[Record]) -> None:
    board = build_board(board_records)
    page = to_markdown(board)
    lines = {line.split(" | ")[1]: line for line in table_lines(page)}
    other = next(label for label in ("ties", "ota_ffg") if label != board.best)
    assert " | best | " in lines[str(board.best)]
    assert "≈" in lines[other]
    assert "≈" not in lines["linear"]
    assert f"**{board.best}**, not distinguishable from {other}." in page
    assert "points of average" in page


def test_a_cell_shows_score_and_interval(make_record: MakeRecord) -> None:
    page = to_markdown(build_board([make_record("ties", {"math": [1.0, 0.0] * 50})]))
    # Wilson at 50 of 100: 40.38 to 59.62
    assert "| 1 | ties | 50.0 ± 9.6 | 50.0 [40.4, 59.6] | best | – | – | default |" in page


def test_names_cannot_break_the_table(make_record: MakeRecord) -> None:
    board = build_board([make_record("a|b\n<i>*", {"math": [1.0, 0.0]})])
    line = next(line for line in table_lines(to_markdown(board)) if "a\\|b" in line)
    assert "a\\|b &lt;i>\\*" in line
    assert [row["label"] for row in csv.DictReader(io.StringIO(to_csv(board)))] == ["a|b\n<i>*"]


def test_csv_has_one_line_per_model_with_bounds(board_records: list[Record]) -> None:
    board = build_board(board_records)
    rows = list(csv.DictReader(io.StringIO(to_csv(board))))
    assert [row["label"] for row in rows] == [row.label for row in board.rows]
    for line, row in zip(rows, board.rows, strict=True):
        assert float(line["average"]) == pytest.approx(row.average.value, abs=1e-4)
        assert float(line["average_low"]) < float(line["average"]) < float(line["average_high"])
        assert float(line["math_low"]) < float(line["math"]) < float(line["math_high"])
        assert json.loads(line["recipe"]) == row.recipe
        assert (line["p_value"] == "") == (row.label == board.best)
        assert line["keys"] == row.key
    assert [row["rank"] for row in rows] == ["1", "2", "3", "", "", "", "", ""]


def test_pairs_are_all_pairs_of_ranked_methods(board_records: list[Record]) -> None:
    board = build_board(board_records)
    pairs = list(csv.DictReader(io.StringIO(pairs_to_csv(board))))
    ranked = [row.label for row in board.group("method")]
    assert [(pair["first"], pair["second"]) for pair in pairs] == [
        (ranked[0], ranked[1]), (ranked[0], ranked[2]), (ranked[1], ranked[2]),
    ]  # fmt: skip
    assert all(float(pair["p_value"]) <= float(pair["corrected_p_value"]) for pair in pairs)
    assert pairs_to_csv(build_board(board_records[:1])) == ""


def test_json_holds_everything(board_records: list[Record]) -> None:
    board = build_board(board_records)
    content = json.loads(to_json(board))
    assert content["best"] == board.best
    assert content["bootstrap"]["draws"] == 10_000
    assert content["tasks"]["tiny_math"]["items"] == 300
    linear = next(row for row in content["rows"] if row["label"] == "linear")
    assert linear["difference_to_best"]["interval"]["high"] < 0
    assert linear["capability_retention"].keys() == {"math", "code"}


def test_the_same_records_give_the_same_bytes(board_records: list[Record]) -> None:
    shuffled = random.Random(1).sample(board_records, len(board_records))
    for render in (to_markdown, to_csv, to_json, pairs_to_csv):
        assert render(build_board(shuffled)) == render(build_board(board_records))


def test_blanks_are_shown_as_blanks(board_records: list[Record]) -> None:
    board = build_board([replace(record, timings={}) for record in board_records if record.role != "expert"])
    page = to_markdown(board)
    assert "None" not in page
    assert "nan" not in page
    assert "No retention of math, code" in page
    assert next(csv.DictReader(io.StringIO(to_csv(board))))["retention"] == ""


def test_a_board_without_methods_says_so(board_records: list[Record]) -> None:
    page = to_markdown(build_board([record for record in board_records if record.role == "base"]))
    assert "There is no best" in page


def test_costs_have_a_table_of_their_own(make_record: MakeRecord) -> None:
    costs = {"peak_memory_bytes": 12_345_678, "extra_bytes_per_expert": 0, "data_needed": "none"}
    selection = {"how": "tuned", "trials": 9, "split": "validation", "seconds": 1234.5}
    tuned = make_record("ties", {"math": [1.0, 0.0]}, costs=costs, selection=selection)
    older = make_record("dare", {"math": [1.0, 0.0]}, timings={})
    lines = table_lines(to_markdown(build_board([tuned, older])), "## Costs and tuning")
    assert lines[2:] == ["| dare | – | – | – | – | 0 | 0 |", "| ties | 1.2 | 12.3 MB | 0 | none | 9 | 1,234 |"]


def test_small_p_values_are_not_zero() -> None:
    assert [p_value(value) for value in (None, 1.0, 0.0494, 0.0005, 0.0004)] == [
        "–", "1.000", "0.049", "0.001", "<0.001",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [(1.25, False, "1.2"), (-0.04, True, "0.0"), (-1.26, True, "\N{MINUS SIGN}1.3"), (2.0, True, "+2.0")],
)
def test_numbers(value: float, signed: bool, text: str) -> None:
    assert number(value, signed) == text


def test_the_terminal_shows_every_row(board_records: list[Record]) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    print_board(build_board(board_records), console)
    text = console.export_text()
    for record in board_records:
        assert record.label in text
    assert "[" in text
    assert "≈" in text


@pytest.mark.parametrize("width", [80, 110, 140, 200])
def test_a_narrow_terminal_leaves_columns_out_and_says_which(board_records: list[Record], width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    board = build_board(board_records)
    print_board(board, console)
    lines = console.export_text().splitlines()
    table = lines[: next(number for number, line in enumerate(lines) if line.startswith("±"))]
    assert all(len(line) <= width for line in lines)
    assert sum("ota_ffg_shuffled" in line for line in table) == 1
    assert len(table) == 4 + len(board_records) + 2 * 5  # no cell is broken over two lines
    heading = next(line for line in table if "Rank" in line)
    left_out = next((line for line in lines if line.startswith("Left out")), "").partition(": ")[2].rstrip(".")
    for column in ("Chosen", "p", "Retention, %", "math"):
        assert (column.partition(",")[0] in heading.replace(",", " ").split()) != (column in left_out.split("; "))


def test_the_page_shows_the_hyper_parameters_that_are_set(make_record: MakeRecord) -> None:
    recipe = {"hyperparameters": {"density": 0.2, "scale": {"math": 1.0}, "seed": None}}
    page = to_markdown(build_board([make_record("ties", {"math": [1.0, 0.0]}, recipe=recipe)]))
    assert table_lines(page, "## Hyper-parameters")[2:] == ['| ties | density = 0.2, scale = {"math":1.0} |']


def test_the_page_names_controls_that_cannot_be_told_from_the_best(make_record: MakeRecord) -> None:
    outcomes = {"math": [1.0, 0.0] * 20}
    page = to_markdown(
        build_board([make_record("ota", outcomes), make_record("ota_shuffled", outcomes, role="control")])
    )
    assert "Controls that cannot be told from it: ota_shuffled." in page
