"""The board as a table in the terminal, as wide as the terminal allows."""

from collections.abc import Collection

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.leaderboard.board import GROUPS, Board
from harness.leaderboard.render.cells import GROUP_TITLES, LEFT_ALIGNED, TIED, cells, number


def print_board(board: Board, console: Console) -> None:
    """Print the table, one section a group, with the lines that one needs to read it.

    Where the terminal is narrow, the least important columns are left out, and it says so.
    """
    layouts: list[tuple[bool, Collection[str]]] = [
        (True, ()),
        (True, ("Chosen",)),
        (False, ("Chosen",)),
        (False, ("Chosen", "Retention, %")),
        (False, ("Chosen", "Retention, %", *board.capabilities)),
        (False, ("Chosen", "Retention, %", *board.capabilities, "p")),
    ]
    for half_widths, left_out in layouts:
        table = _table(board, half_widths, left_out)
        if console.measure(table, options=console.options.update(max_width=10_000)).maximum <= console.width:
            break
    console.print(Text(f"Zoo {board.zoo}, suite {board.suite}, {board.split} items", style="bold"))
    console.print(table)
    for line in [*_legend(board, left_out), *board.notes]:
        console.print(Text(line))


def _table(board: Board, half_widths: bool, left_out: Collection[str]) -> Table:
    headings = [heading for heading in cells(board, board.rows[0]) if heading not in left_out]
    table = Table(box=box.SIMPLE_HEAD)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in LEFT_ALIGNED else "right")
    for role in GROUPS:
        rows = board.group(role)
        if rows:
            table.add_section()
            table.add_row("", Text(GROUP_TITLES[role], style="bold"), *[""] * (len(headings) - 2))
        for row in rows:
            texts = cells(board, row, half_widths)
            style = "bold" if row.rank is not None and row.tied_with_best else None
            table.add_row(*(Text(texts[heading]) for heading in headings), style=style)
    return table


def _legend(board: Board, left_out: Collection[str]) -> list[str]:
    lines = [
        f"± and [ ]: 95 % intervals. p: paired permutation test, Holm's correction. {TIED}: not told from the best."
    ]
    if board.smallest_detectable_difference is not None:
        difference = number(board.smallest_detectable_difference)
        lines.append(f"Differences to the best below about {difference} points are likely to go unnoticed here.")
    lines.append("Costs, gains recovered, seeds and pairs of methods: in the board's folder.")
    if left_out:
        lines.append(f"Left out for want of width: {'; '.join(left_out)}.")
    return lines
