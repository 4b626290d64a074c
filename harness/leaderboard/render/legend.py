"""The sentences that make the tables readable without another page. docs/leaderboard.md says more."""

from harness.leaderboard.board import Board
from harness.leaderboard.render.cells import TIED, number
from harness.leaderboard.statistics import DRAWS


def how_to_read(board: Board) -> list[str]:
    """What each column of the page means, a paragraph each, in Markdown."""
    return [*_GENERAL, *(_SEVERAL_SEEDS if any(row.seeds.count > 1 for row in board.rows) else _ONE_SEED)]


def power(board: Board) -> list[str]:
    """What this suite can tell apart; nothing where that is unknown."""
    if board.smallest_detectable_difference is None:
        return []
    return [
        "**What this suite can tell apart**: a method must truly differ from the best by about "
        f"{number(board.smallest_detectable_difference)} points of average to be found out in 80 of 100 "
        "such evaluations (paired, two-sided 5 %, typical of the methods here, before correction)."
    ]


_GENERAL = (
    "**Scores** are points, 0 to 100. A capability's score is the mean of its tasks; ± is half the width of its 95 % "
    "interval. **Average** is the mean over capabilities, with its 95 % interval in brackets. The intervals say how "
    "much other items of the same kind could have changed the score.",
    "**To the best** is the row's average minus that of the best method, with its 95 % interval, on the same items for "
    "both rows. It is narrower than the intervals of two averages suggest, since both models met the same easy and the "
    "same hard items.",
    "**p** is of a paired permutation test of that difference, corrected by Holm for the number of ranked methods (for "
    f"rows without a rank: not corrected). **{TIED}** marks rows that are *not distinguishable from the best*: p is "
    "above 0.05. Their order is not to be relied upon.",
    "**Rank** is among methods only, in brackets the places that a method takes in 95 % of "
    f"{DRAWS:,} bootstrap draws of the items. Controls are methods with one ingredient spoilt on purpose: a "
    "control that cannot be told from its method shows no benefit of that ingredient here.",
    "**Retention** is the share of each capability's own expert's score, above chance, that the model keeps, (model - "
    "chance) / (expert - chance), averaged over capabilities. 100 is as good as every expert on its own.",
    "**Chosen** says how the hyper-parameters were chosen: `default`, `published`, `given` by hand, or `tuned` (number "
    "of trials, and the items that decided). All ranked methods that were tuned had the same number of trials.",
)
_ONE_SEED = ("All models come from one training: nothing here speaks of other training seeds.",)
_SEVERAL_SEEDS = (
    "**Seeds**: a row's scores are means over its seeds, never the best of them; its differences are paired by seed "
    "too, with Student's interval, and p is the larger of the items' and the seeds' own.",
)
