"""The board as one self-contained HTML page."""

from harness.leaderboard.render.page.page import to_html

__all__ = ["to_html"]
