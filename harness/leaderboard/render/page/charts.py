"""The page's charts: SVG drawn by matplotlib, in colours that the page's style sheet decides."""

import io
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from harness.leaderboard.board import Board, Row
from harness.leaderboard.pareto import pareto_front
from harness.leaderboard.statistics import Estimate

if TYPE_CHECKING:  # matplotlib takes half a second, which other verbs need not wait
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "#010101": "ink",
    "#020202": "muted",
    "#030303": "line",
    "#040404": "paper",
    "#050505": "accent",
    "#060606": "series-1",
    "#070707": "series-2",
    "#080808": "series-3",
    "#090909": "series-4",
    "#0a0a0a": "series-5",
    "#0b0b0b": "bar",
    "#0c0c0c": "bar-control",
}
"""Stand-ins that the SVG is drawn in, and the style sheet's variables that take their place."""

INK, MUTED, LINE, PAPER, ACCENT, *SERIES, BAR, BAR_OF_CONTROL = COLOURS

RADAR_ROWS = 5
MARKERS = ("o", "s", "^", "D", "v")


def capability_bars(board: Board) -> list[str]:
    """A chart for each capability: methods and controls as bars with intervals, beside its expert and the base."""
    rows = [*board.group("method"), *board.group("control")]
    return [_bars(board, rows, capability, f"bars-{place}") for place, capability in enumerate(board.capabilities)]


def radar(board: Board) -> str:
    """Retention by capability of the first methods, as closed lines around a centre; blank with fewer than three."""
    import numpy as np

    rows = [row for row in board.group("method") if row.rank is not None][:RADAR_ROWS]
    names = board.capabilities
    if len(names) < 3 or not rows or any(row.capability_retention[c].value is None for row in rows for c in names):
        return ""
    figure, axes = _figure(5.0, 4.6, polar=True)
    angles = np.linspace(0.0, 2 * np.pi, len(names), endpoint=False)
    closed = np.append(angles, angles[0])
    polar: Any = axes
    polar.set_theta_offset(np.pi / 2)
    polar.set_theta_direction(-1)
    for row, colour, marker in zip(rows, SERIES, MARKERS, strict=False):
        values = [row.capability_retention[c].value or 0.0 for c in names]
        axes.plot(
            closed, [*values, values[0]], color=colour, marker=marker, markersize=4, linewidth=1.4, label=row.label
        )
        for angle, capability in zip(angles, names, strict=True):
            interval = row.capability_retention[capability].interval
            if interval is not None:
                axes.plot([angle, angle], [interval.low, interval.high], color=colour, linewidth=0.8, alpha=0.7)
    axes.set_xticks(angles, names)
    axes.set_ylim(0, max(100.0, *(row.capability_retention[c].value or 0.0 for row in rows for c in names)))
    axes.set_yticks([25, 50, 75, 100], ["25", "50", "75", "100"])
    axes.tick_params(axis="x", pad=10)
    figure.legend(loc="lower center", ncols=min(3, len(rows)), frameon=False, labelcolor=INK, fontsize=8)
    figure.subplots_adjust(bottom=0.2, top=0.9)
    said = "; ".join(
        f"{row.label}: " + ", ".join(f"{c} {_said(row.capability_retention[c])}" for c in names) for row in rows
    )
    return _svg(figure, "radar", f"Retention by capability of the first {len(rows)} methods, in percent", said)


def cost_plot(board: Board) -> str:
    """Average against merge seconds; a line joins the methods that no other beats in both. Blank without any times."""
    rows = [
        row
        for row in board.group("method")
        if row.costs.merge_seconds is not None and row.costs.merge_seconds > 0 and row.average.value is not None
    ]
    if not rows:
        return ""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    points = [(row.costs.merge_seconds or 0.0, row.average.value or 0.0) for row in rows]
    front = pareto_front(points)
    figure, axes = _figure(8.8, 4.2)
    labelled = list(front)
    axes.plot([points[i][0] for i in front], [points[i][1] for i in front], color=ACCENT, linewidth=1.2, zorder=1)
    for i, (row, (seconds, score)) in enumerate(zip(rows, points, strict=True)):
        on_front = i in front
        interval = row.average.interval
        if interval is not None:
            axes.plot([seconds, seconds], [interval.low, interval.high], color=LINE, linewidth=1.5, zorder=0)
        face = ACCENT if on_front else PAPER
        axes.plot([seconds], [score], marker="o", markersize=6, markerfacecolor=face, markeredgecolor=ACCENT, zorder=2)
        if on_front or not any(_near(points[i], points[j]) for j in labelled):
            labelled.append(i)
            axes.annotate(
                row.label,
                (seconds, score),
                xytext=(-5, 4) if on_front else (6, -3),  # the line rises to the right, and leaves the left free
                textcoords="offset points",
                ha="right" if on_front else "left",
                va="bottom" if on_front else "top",
                fontsize=7.5,
                color=INK if on_front else MUTED,
                zorder=3,
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", labelsize=8, colors=MUTED, length=0)
    axes.set_xlabel("merge, seconds (logarithmic)", color=MUTED, fontsize=9)
    axes.set_ylabel("average, points", color=MUTED, fontsize=9)
    axes.margins(x=0.18)
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.15, top=0.97)
    best = ", ".join(rows[i].label for i in front)
    said = "; ".join(
        f"{row.label}: {seconds:.1f} s, {score:.1f}" for row, (seconds, score) in zip(rows, points, strict=True)
    )
    return _svg(figure, "cost", f"Average against merge time; not beaten in both: {best}", said)


def _near(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether the labels of two points (seconds, score) would lie on one another."""
    return 0.6 < one[0] / other[0] < 1.7 and abs(one[1] - other[1]) < 0.6


def _bars(board: Board, rows: Sequence[Row], capability: str, name: str) -> str:
    figure, panel = _figure(4.6, 0.6 + 0.19 * len(rows), layout="constrained")
    for place, row in enumerate(reversed(rows)):
        estimate = row.capabilities[capability]
        if estimate.value is None:
            continue
        panel.barh(place, estimate.value, height=0.62, color=BAR if row.role == "method" else BAR_OF_CONTROL)
        if estimate.interval is not None:
            low, high = estimate.interval.low, estimate.interval.high
            panel.plot([low, high], [place, place], color=INK, linewidth=1.1, solid_capstyle="butt")
    for role, style in (("expert", "-"), ("base", ":")):
        for row in board.group(role):
            value = row.capabilities[capability].value
            if value is not None and (role == "base" or row.expert_of == capability):
                panel.axvline(value, color=MUTED, linewidth=1.0, linestyle=style)
                panel.annotate(
                    role, (value, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 2),
                    textcoords="offset points", ha="center", fontsize=7, color=MUTED,
                )  # fmt: skip
    panel.set_yticks(range(len(rows)), [row.label for row in reversed(rows)])
    panel.set_ylim(-0.6, len(rows) - 0.4)
    panel.set_xlim(0, 100)
    panel.set_title(capability, loc="left", fontsize=10, color=INK, pad=12, fontweight="bold")
    said = ", ".join(f"{row.label} {_said(row.capabilities[capability])}" for row in rows)
    return _svg(figure, name, f"Scores in {capability}, with 95 % intervals", said)


def _figure(
    width: float, height: float, polar: bool = False, layout: Literal["constrained"] | None = None
) -> tuple["Figure", "Axes"]:
    """A figure of so many inches, and its one panel."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="none", layout=layout)
    panel = figure.subplots(subplot_kw={"polar": polar})
    panel.set_facecolor("none")
    panel.tick_params(colors=MUTED, labelcolor=INK, labelsize=8, length=0)
    panel.grid(visible=True, axis="both" if polar else "x", color=LINE, linewidth=0.6)
    panel.set_axisbelow(True)
    for name, spine in panel.spines.items():
        spine.set_visible(name in ("left", "polar"))
        spine.set_color(LINE)
    return figure, panel


def _svg(figure: "Figure", name: str, title: str, description: str) -> str:
    """The figure as an element for a page: text as text, the page's colours, ids of its own, words for screen readers.

    The same bytes for the same figure: no date, and ids by a fixed salt.
    """
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "graftbench", "svg.fonttype": "none", "path.simplify": False}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"[ \t]+\n", "\n", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--font)", svg)
    for colour, variable in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    head, rest = svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    words = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    return f'{head} role="img" aria-labelledby="{name}-title {name}-desc">{words}{rest}'


def _said(estimate: Estimate) -> str:
    if estimate.value is None:
        return "unknown"
    interval = estimate.interval
    return f"{estimate.value:.1f}" + ("" if interval is None else f" ({interval.low:.1f} to {interval.high:.1f})")
