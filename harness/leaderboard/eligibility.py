"""Which methods are ranked, and why others are set aside."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from harness.leaderboard.replicates import Replicates


def board_seeds(rows: Sequence[Replicates]) -> tuple[int, ...]:
    """The training seeds that rows are compared on: those that most methods have; of equally common sets the largest,
    then the first. Every other seed of a row is left out, so that all rows are means over the same models."""
    sets = Counter(tuple(row.members) for row in rows if row.record.role == "method")
    sets = sets or Counter(tuple(row.members) for row in rows)
    return min(sets, key=lambda seeds: (-sets[seeds], -len(seeds), seeds))


def set_aside(rows: Sequence[Replicates], seeds: Sequence[int]) -> dict[int, str]:
    """Of methods that must not be ranked, the reason, by their index.

    A method is set aside where its hyper-parameters were chosen on test items, where it lacks a training seed of the
    board, and where it was tuned with another number of trials than most tuned methods: more trials find better values,
    so that the comparison would be one of tuning. Of equally common numbers of trials the largest counts. A number that
    is not known is another number.
    """
    found = {}
    for i, row in enumerate(rows):
        missing = [seed for seed in seeds if seed not in row.members]
        if row.record.role != "method":
            continue
        if chosen_on_test(row.record.selection):
            found[i] = "the hyper-parameters were chosen on test items"
        elif missing:
            found[i] = f"there is no record of training seed {', '.join(map(str, missing))}"
    tuned = {
        i: row.record.selection.get("trials")
        for i, row in enumerate(rows)
        if row.record.role == "method" and i not in found and row.record.selection.get("how") == "tuned"
    }
    known = Counter(trials for trials in tuned.values() if trials is not None)
    if known:
        usual = max(known, key=lambda trials: (known[trials], trials))
        for i, trials in tuned.items():
            if trials != usual:
                found[i] = (
                    f"tuned with {'an unknown number of' if trials is None else trials} trials, others with {usual}"
                )
    return found


def how_chosen(selection: Mapping[str, Any]) -> str:
    """How a row's hyper-parameters were chosen, in a few words; empty where there are none to choose."""
    how = str(selection.get("how") or "")
    if how != "tuned":
        return how
    details = [f"{selection['trials']} trials"] if selection.get("trials") is not None else []
    details += [str(selection["split"])] if selection.get("split") is not None else []
    return f"tuned ({', '.join(details)})" if details else how


def chosen_on_test(selection: Mapping[str, Any]) -> bool:
    """Whether the hyper-parameters were tuned on test items, which makes the scores on them too high."""
    return selection.get("how") == "tuned" and selection.get("split") == "test"
