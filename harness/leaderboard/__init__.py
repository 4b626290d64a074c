"""Records to a ranked board: statistics, the board itself, its folder and its renderings."""

from harness.leaderboard.board import Board, Row, build_board
from harness.leaderboard.folder import export_records, load_records, write_board
from harness.leaderboard.render import print_board

__all__ = ["Board", "Row", "build_board", "export_records", "load_records", "print_board", "write_board"]
