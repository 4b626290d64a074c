"""The board as Markdown, a page, LaTeX, CSV, JSON and a table in the terminal."""

from harness.leaderboard.render.data import pairs_to_csv, to_csv, to_json
from harness.leaderboard.render.latex import to_latex
from harness.leaderboard.render.markdown import to_markdown
from harness.leaderboard.render.page import to_html
from harness.leaderboard.render.terminal import print_board

__all__ = ["pairs_to_csv", "print_board", "to_csv", "to_html", "to_json", "to_latex", "to_markdown"]
