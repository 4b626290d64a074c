"""Records to a ranked board: statistics, the board itself, its folder and its renderings."""

from harness.leaderboard.board import Board, Comparison, Row, Seeds
from harness.leaderboard.costs import Costs
from harness.leaderboard.folder import export_records, load_records, write_board
from harness.leaderboard.ranking import build_board
from harness.leaderboard.render import print_board
from harness.leaderboard.statistics import SIGNIFICANCE

__all__ = [
    "SIGNIFICANCE",
    "Board",
    "Comparison",
    "Costs",
    "Row",
    "Seeds",
    "build_board",
    "export_records",
    "load_records",
    "print_board",
    "write_board",
]
