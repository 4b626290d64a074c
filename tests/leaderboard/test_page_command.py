"""The command that a page shows for a row asks for that row, every hyper-parameter included."""

import shlex
from dataclasses import asdict
from pathlib import Path

import pytest

from harness.cli import VERBS, find_verb
from harness.leaderboard import Board, Row, build_board, load_records
from harness.leaderboard.render.page.command import command
from harness.method_choice import Unmerged
from harness.overrides import check, read_command_line

BOARD: Board = build_board(load_records(Path(__file__).parents[2] / "leaderboards" / "tiny" / "records"))


@pytest.mark.parametrize("row", BOARD.rows, ids=lambda row: row.label)
def test_every_row_of_the_committed_board_can_be_asked_for(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, arguments = find_verb(shlex.split(command(BOARD, row))[1:])
    (settings,) = check(name, read_command_line(arguments), VERBS[name].read)
    assert (settings.zoo["name"], settings.suite.name, settings.suite.split) == (BOARD.zoo, BOARD.suite, BOARD.split)
    assert settings.backend["name"] == BOARD.engine["name"]
    asked = settings.method
    if isinstance(asked.method, Unmerged):
        assert asked.method.model == row.label
    else:
        assert (asked.label, asked.role) == (row.label, row.role)
        assert {k: v for k, v in asdict(asked.method).items() if v is not None} == row.hyperparameters
