"""How much of each expert's score and gain the models keep, and where that cannot be said."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.leaderboard.statistics import (
    Estimate,
    FloatArray,
    fieller_interval,
    geometric_mean,
    percentile_interval,
    retention,
)
from harness.results import Record

CLEAR_GAIN = 2.0
"""Standard errors that an expert must be above the base, for the gain to be divided by."""


@dataclass(frozen=True)
class Retentions:
    """Retention of every row, in percent, with intervals from the draws that model and expert share.

    Per capability it is (m - c) / (e - c), with m the model's score of the capability, e that of the
    capability's own expert (of the same training seeds) and c the mean chance of its tasks; so it follows from the
    scores on the board. Over capabilities it is blank when one is blank, since a mean over fewer capabilities is
    another quantity.
    """

    records: Sequence[Record]
    """One of each row."""
    seeds: Sequence[tuple[int, ...]]
    """Each row's training seeds."""
    scores: Mapping[str, FloatArray]
    """Per capability, shape (rows,), in 0..1."""
    draws: Mapping[str, FloatArray]
    """Per capability, shape (draws, rows): bootstrap means of the same resampled items for all rows."""
    chances: Mapping[str, float]

    def of(self, i: int, capability: str) -> Estimate:
        """Row i's retention of one capability."""
        expert, reason = self._divisor(i, capability)
        if expert is None:
            return Estimate(reason=reason)
        value = retention(self.scores[capability][i], self.scores[capability][expert], self.chances[capability])
        return Estimate(100 * float(value), percentile_interval(self._drawn(i, capability, expert)).times(100))

    def mean(self, i: int) -> Estimate:
        """Row i's mean retention over all capabilities."""
        return self._over_capabilities(i, lambda retentions: retentions.mean(axis=0))

    def geometric_mean(self, i: int) -> Estimate:
        """Row i's geometric mean of retention over capabilities, each clipped at 0: one lost capability makes it 0."""
        return self._over_capabilities(i, geometric_mean)

    def recovered(self, i: int, capability: str, clear: float = CLEAR_GAIN) -> Estimate:
        """Row i's part of what the expert gained over the base, (m - b) / (e - b), with Fieller's interval; blank where
        e - b is not above `clear` standard errors (of the paired bootstrap)."""
        expert, reason = self._expert(i, capability)
        base, base_reason = self._base(i)
        if expert is None or base is None:
            return Estimate(reason=reason or base_reason)
        scores, draws = self.scores[capability], self.draws[capability]
        drawn = np.stack([draws[:, i] - draws[:, base], draws[:, expert] - draws[:, base]])
        covariance = np.cov(drawn)
        gain, error = float(scores[expert] - scores[base]), float(np.sqrt(covariance[1, 1]))
        if gain <= clear * error:
            return Estimate(
                reason=f"the expert of {capability} is not clearly above the base "
                f"({100 * gain:.1f} points, standard error {100 * error:.1f})"
            )
        kept = float(scores[i] - scores[base])
        interval = fieller_interval(kept, gain, covariance)
        return Estimate(100 * kept / gain, None if interval is None else interval.times(100))

    def _over_capabilities(self, i: int, mean: Callable[[FloatArray], FloatArray]) -> Estimate:
        experts = {capability: self._divisor(i, capability) for capability in self.scores}
        if reasons := [reason for expert, reason in experts.values() if expert is None]:
            return Estimate(reason="; ".join(reasons))
        drawn = [self._drawn(i, c, expert) for c, (expert, _) in experts.items() if expert is not None]
        values = np.array([(self.of(i, capability).value or 0.0) / 100 for capability in self.scores])
        return Estimate(100 * float(mean(values)), percentile_interval(mean(np.stack(drawn))).times(100))

    def _drawn(self, i: int, capability: str, expert: int) -> FloatArray:
        draws = self.draws[capability]
        return retention(draws[:, i], draws[:, expert], self.chances[capability])

    def _divisor(self, i: int, capability: str) -> tuple[int | None, str]:
        """The index of the capability's expert, or why its score cannot be divided by."""
        expert, reason = self._expert(i, capability)
        if expert is not None and self.draws[capability][:, expert].min() <= self.chances[capability]:
            return None, f"the expert of {capability} is not clearly above chance (some bootstrap draws are not)"
        return expert, reason

    def _expert(self, i: int, capability: str) -> tuple[int | None, str]:
        experts = expert_rows(self.records).get(capability, [])
        if len(experts) != 1:
            return None, f"{len(experts)} experts of {capability} instead of one"
        if self.seeds[experts[0]] != self.seeds[i]:
            return None, f"the expert of {capability} has other training seeds"
        return experts[0], ""

    def _base(self, i: int) -> tuple[int | None, str]:
        base = base_row(self.records)
        if base is None:
            return None, "no row of the base"
        return (base, "") if self.seeds[base] == self.seeds[i] else (None, "the base has other training seeds")


def base_row(records: Sequence[Record]) -> int | None:
    """Index of the base; None unless there is exactly one."""
    rows = [index for index, record in enumerate(records) if record.role == "base"]
    return rows[0] if len(rows) == 1 else None


def expert_rows(records: Sequence[Record]) -> dict[str, list[int]]:
    """Indices of the experts of each capability."""
    rows: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        if record.role == "expert" and record.capability is not None:
            rows.setdefault(record.capability, []).append(index)
    return rows
