"""How much of each expert's score the models keep, and where that cannot be said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.leaderboard.statistics import Estimate, FloatArray, percentile_interval, retention
from harness.results import Record


@dataclass(frozen=True)
class Retentions:
    """Retention of every record, in percent, with intervals from the draws that model and expert share.

    Per capability it is (m - c) / (e - c), with m the model's score of the capability, e that of the
    capability's own expert and c the mean chance of its tasks; so it follows from the scores on the board.
    Over capabilities it is the plain mean, and blank when one is blank, since a mean over fewer capabilities
    is another quantity.
    """

    records: Sequence[Record]
    scores: Mapping[str, FloatArray]
    """Per capability, shape (records,), in 0..1."""
    draws: Mapping[str, FloatArray]
    """Per capability, shape (draws, records): bootstrap means of the same resampled items for all records."""
    chances: Mapping[str, float]

    def of(self, i: int, capability: str) -> Estimate:
        """Record i's retention of one capability."""
        expert, reason = self._expert(capability)
        if expert is None:
            return Estimate(reason=reason)
        chance = self.chances[capability]
        value = retention(self.scores[capability][i], self.scores[capability][expert], chance)
        return Estimate(100 * float(value), percentile_interval(self._drawn(i, capability, expert)).times(100))

    def mean(self, i: int) -> Estimate:
        """Record i's mean retention over all capabilities."""
        parts = [self.of(i, capability) for capability in self.scores]
        values = [part.value for part in parts if part.value is not None]
        if len(values) < len(parts):
            return Estimate(reason="; ".join(part.reason for part in parts if part.reason))
        experts = {capability: self._expert(capability)[0] for capability in self.scores}
        drawn = [self._drawn(i, capability, expert) for capability, expert in experts.items() if expert is not None]
        return Estimate(float(np.mean(values)), percentile_interval(np.mean(drawn, axis=0)).times(100))

    def _drawn(self, i: int, capability: str, expert: int) -> FloatArray:
        draws = self.draws[capability]
        return retention(draws[:, i], draws[:, expert], self.chances[capability])

    def _expert(self, capability: str) -> tuple[int | None, str]:
        """The index of the capability's expert, or why there is none to divide by."""
        experts = expert_rows(self.records).get(capability, [])
        if len(experts) != 1:
            return None, f"{len(experts)} experts of {capability} instead of one"
        if self.draws[capability][:, experts[0]].min() <= self.chances[capability]:
            return (
                None,
                f"the expert of {capability} is not clearly above chance (some bootstrap draws are not)",
            )
        return experts[0], ""


def expert_rows(records: Sequence[Record]) -> dict[str, list[int]]:
    """Indices of the experts of each capability."""
    rows: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        if record.role == "expert" and record.capability is not None:
            rows.setdefault(record.capability, []).append(index)
    return rows
