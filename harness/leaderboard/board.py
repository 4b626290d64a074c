"""The board and its rows: what is known, and what is not told apart. `ranking.py` computes them."""

from dataclasses import dataclass
from typing import Any

from harness.leaderboard.costs import Costs
from harness.leaderboard.statistics import Estimate

GROUPS = ("method", "control", "reference", "expert", "base")
"""Roles in the order of the board."""


@dataclass(frozen=True)
class Seeds:
    """What the repeats of a row are, and how much they differ."""

    count: int
    """How many models the row is the mean of."""
    training: tuple[int, ...]
    """The seeds with which base and experts were trained, where records state them."""
    masks: tuple[int, ...]
    """The method's own seeds (DARE's masks), where there are several."""
    standard_deviation: float | None
    """Of the average, between seeds, in points; None where there is one."""
    difference_to_best: Estimate
    """Mean of the differences to the best method, paired by seed, with Student's interval."""
    p_value: float | None
    """Of that, two-sided, k - 1 degrees of freedom; None where there is one seed, and for the best itself."""


@dataclass(frozen=True)
class Row:
    """One method or model on the board. Scores are in points, 0..100; retention in percent of the expert's score."""

    key: str
    """Of its record; of several (one a seed), the first."""
    label: str
    role: str
    rank: int | None
    """Place among the methods by average; methods of equal average share one. None for every other role, and
    for a method that is set aside (`unranked`)."""
    rank_interval: tuple[int, int] | None
    """The places that it takes in 95 % of bootstrap draws of the items; None without a rank."""
    unranked: str | None
    """Why a method has no rank; None where it has one, and for every other role."""
    expert_of: str | None
    """An expert's own capability."""
    capabilities: dict[str, Estimate]
    average: Estimate
    """Mean over capabilities."""
    difference_to_best: Estimate
    """This average minus the best method's on the same items, with its 95 % interval; negative if worse."""
    p_value: float | None
    """Of that difference: sign flips over items and, with several seeds, the larger of that and the seeds' own. None
    for the best itself, and where there is no best."""
    corrected_p_value: float | None
    """Corrected by Holm for all ranked methods; None where the row is none of them."""
    tied_with_best: bool | None
    """Whether the row cannot be told from the best method: its corrected p-value (for rows without a rank: its
    p-value) is above 0.05. True for the best itself; None where there is no best."""
    retention: Estimate
    """Mean over capabilities of `capability_retention`."""
    geometric_retention: Estimate
    """Geometric mean over capabilities of `capability_retention`, each clipped at 0."""
    capability_retention: dict[str, Estimate]
    worst_capability: str | None
    """That of the lowest retention; None where one is unknown."""
    recovered: dict[str, Estimate]
    """Gain recovered of each capability, in percent: (model - base) / (expert - base); blank, with the reason, where
    the expert is not clearly above the base."""
    negative_transfer: tuple[str, ...]
    """Capabilities in which the row is significantly below the base (corrected by Holm for the capabilities)."""
    chosen: str
    """How the hyper-parameters were chosen."""
    merge_seconds: float | None
    """Wall time of the merge; the median where there are several."""
    costs: Costs
    seeds: Seeds
    hyperparameters: dict[str, Any]
    """Those that the recipe names (under `hyperparameters`) and that are set."""
    recipe: dict[str, Any]
    """Of the first record."""
    versions: dict[str, str]
    """Of the libraries that evaluated it (the first record's)."""
    records: tuple[str, ...]
    """Keys of all its records."""


@dataclass(frozen=True)
class Comparison:
    """Two ranked methods on the same items."""

    first: str
    """Label of the one with the better rank."""
    second: str
    difference: Estimate
    """The first one's average minus the second one's, in points, with its 95 % interval over items."""
    seed_difference: Estimate
    """The same paired by seed, with Student's interval; blank with one seed."""
    p_value: float
    """Two-sided: sign flips over items and, with several seeds, the larger of that and the seeds' own."""
    corrected_p_value: float
    """Corrected by Holm for all pairs of ranked methods."""


@dataclass(frozen=True)
class Board:
    """Rows by group (`GROUPS`), in each by average, best first, then by label."""

    zoo: str
    suite: str
    split: str
    engine: dict[str, Any]
    digests: dict[str, str]
    """Of the zoo (with several training seeds: of the first) and the suite."""
    training_seeds: tuple[int, ...]
    """Those that ranked rows are means over; empty where records state none."""
    capabilities: tuple[str, ...]
    tasks: dict[str, dict[str, Any]]
    """Per task: its capability, metric, chance, number of items, and of the clusters that they form."""
    rows: tuple[Row, ...]
    best: str | None
    """Label of the method with the highest average."""
    comparisons: tuple[Comparison, ...]
    """Every pair of ranked methods, by rank."""
    smallest_detectable_difference: float | None
    """Points of average by which a method must differ from the best to be told apart with 80 % power."""
    notes: tuple[str, ...]
    """What a reader must know about these records."""

    def group(self, role: str) -> list[Row]:
        return [row for row in self.rows if row.role == role]

    def comparison(self, one: str, other: str) -> Comparison | None:
        """The comparison of two ranked methods by their labels, whichever comes first; None where there is none."""
        return next((each for each in self.comparisons if {each.first, each.second} == {one, other}), None)
