"""Writes docs/curvature.md: what the choice of curvature matters for OTA, from the records of `make curvature`.

    python -m benchmarks.curvature_study leaderboards/curvature/records docs/curvature.md

Rows are told apart by their recipes. Each is compared with the same method under `curvature=adam`, item by item and
training seed by training seed, at the same density and scale.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import GraftbenchError
from harness.files import file_written_atomically
from harness.leaderboard import SIGNIFICANCE, load_records
from harness.leaderboard.comparable import check_comparable, unique_records
from harness.leaderboard.differences import Difference
from harness.leaderboard.ranking import Ranking
from harness.leaderboard.render.cells import number, p_value, with_bounds
from harness.leaderboard.statistics import Estimate, holm, smallest_detectable_difference
from harness.results import Record

METHODS = {
    "ota": ("adam", "raw", "compressed", "rank", "blocks", "fisher", "delta"),
    "ota_ffg": ("adam", "raw", "compressed", "rank", "blocks", "fisher", "delta", "shuffled"),
}
"""The curvatures that each method is run under; `shuffled` is Adam's, permuted within each tensor."""

REFERENCE = "adam"

QUESTIONS = {
    "Does the proxy matter?": (("fisher", "delta"), "in place of Adam's second moments"),
    "Does the place of curvature matter?": (("shuffled",), "the control: the same values, at random places"),
    "Does the compression matter?": (
        ("compressed", "rank", "blocks"),
        "row and column sums, factors of rank 4 and 8-bit codes in place of full second moments",
    ),
    "Does the bias correction matter?": (
        ("raw",),
        "second moments as they are stored, uncorrected",
    ),
}
"""The curvatures that answer each question, and what they are."""

PAGE = """# What the choice of curvature matters

Written by `benchmarks/curvature_study.py` from the records of

```console
$ make curvature
```

{methods} are run under every kind of curvature that they take ([second-moments.md](second-moments.md) says what each
is), on zoo={zoo} and the {split} items of suite={suite}: {items} items, {seeds}. Within a method all else is equal, as
tuned for `adam`: {settings}.

## Answers

{answers}

Told apart means p ≤ {significance} after Holm's correction for all {count} comparisons, where p is the larger of two:
that of the same items (sign-flip permutation) and, with several training seeds, that of the seeds (t).

## Scores

Points, means over training seeds; in brackets 95 % over items, after ± the standard deviation over seeds.

{scores}

## Differences to `adam`

Points, paired; in brackets 95 %: over items, and over training seeds (t, {freedom}). The p-values are uncorrected
and corrected.

{differences}

By capability:

{by_capability}
"""


@dataclass(frozen=True)
class Compared:
    """One curvature minus the reference, under one method."""

    method: str
    variant: str
    difference: Difference
    corrected_p_value: float
    capabilities: dict[str, Estimate]


def render(records: Sequence[Record]) -> str:
    """The document.

    Raises:
        GraftbenchError: rows are missing or ambiguous, differ in their seeds, or must not be compared.
    """
    unique = unique_records(records)
    check_comparable(unique)
    ranking = Ranking(unique)
    rows = find_rows(ranking)
    compared = compare(ranking, rows)
    first = ranking.all_records[0]
    seeds = _seeds(ranking, rows[0][2])
    return PAGE.format(
        methods=" and ".join(f"`{method}`" for method in METHODS),
        zoo=first.zoo.get("name"),
        suite=first.suite.get("name"),
        split=first.suite["split"],
        items=f"{sum(len(task.outcomes) for task in ranking.tasks):,}",
        seeds=f"training seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else "one training seed",
        settings="; ".join(_settings(ranking.records[i], method) for method, v, i in rows if v == REFERENCE),
        answers="\n".join(f"- {line}" for line in answers(compared)),
        significance=SIGNIFICANCE,
        count=len(compared),
        scores=_scores(ranking, rows),
        freedom="1 degree of freedom" if len(seeds) == 2 else f"{len(seeds) - 1} degrees of freedom",
        differences=_differences(compared),
        by_capability=_by_capability(compared, ranking.capabilities),
    )


def find_rows(ranking: Ranking) -> list[tuple[str, str, int]]:
    """Method, curvature and row's index, for all that the study needs, in its order.

    Raises:
        GraftbenchError: one is not there, there are two of it, or one lacks a training seed.
    """
    found = []
    for method, variants in METHODS.items():
        reference = _only(ranking, method, REFERENCE, None)
        settings = _all_else(ranking.records[reference])
        for variant in variants:
            row = reference if variant == REFERENCE else _only(ranking, method, variant, settings)
            if _seeds(ranking, row) != _seeds(ranking, reference):
                raise GraftbenchError(
                    f"{method} under {variant} was run with training seeds {_seeds(ranking, row)}, under {REFERENCE} "
                    f"with {_seeds(ranking, reference)}; run both with the same, by make curvature"
                )
            found.append((method, variant, row))
    return found


def compare(ranking: Ranking, rows: Sequence[tuple[str, str, int]]) -> list[Compared]:
    """Every curvature against the method's reference."""
    references = {method: row for method, variant, row in rows if variant == REFERENCE}
    others = [each for each in rows if each[1] != REFERENCE]
    pairs = [(row, references[method]) for method, _, row in others]
    differences = ranking.differences.compare(pairs, ranking.weights)
    by_capability = {c: ranking.differences.compare(pairs, ranking.weights_of[c]) for c in ranking.capabilities}
    corrected = holm([difference.p_value for difference in differences])
    return [
        Compared(method, variant, difference, p, {c: found[n].over_items for c, found in by_capability.items()})
        for n, ((method, variant, _), difference, p) in enumerate(zip(others, differences, corrected, strict=True))
    ]


def answers(compared: Sequence[Compared]) -> list[str]:
    """A sentence for each question."""
    lines = []
    for question, (variants, meaning) in QUESTIONS.items():
        parts = [_verdict(each) for each in compared if each.variant in variants]
        lines.append(f"**{question}** ({', '.join(f'`{v}`' for v in variants)}: {meaning}) {'; '.join(parts)}.")
    return lines


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curvature_study", description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, help="folder of records, such as leaderboards/curvature/records")
    parser.add_argument("out", type=Path, help="the document to write, such as docs/curvature.md")
    options = parser.parse_args(arguments)
    try:
        text = render(load_records(options.records))
    except GraftbenchError as error:
        sys.exit(f"error: {error}")
    with file_written_atomically(options.out) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _variant(record: Record) -> str:
    settings = record.recipe.get("hyperparameters") or {}
    pairing = settings.get("pairing", "own")
    return str(settings.get("curvature")) if pairing == "own" else str(pairing)


def _all_else(record: Record) -> dict[str, Any]:
    settings: Mapping[str, Any] = record.recipe.get("hyperparameters") or {}
    return {name: value for name, value in settings.items() if name not in ("curvature", "pairing")}


def _only(ranking: Ranking, method: str, variant: str, settings: Mapping[str, Any] | None) -> int:
    """The one row of a method under a curvature, with the settings of the reference where those are given."""
    found = [
        i
        for i, record in enumerate(ranking.records)
        if record.recipe.get("method") == method
        and _variant(record) == variant
        and (settings is None or _all_else(record) == settings)
    ]
    if len(found) == 1:
        return found[0]
    where = "" if settings is None else f" with the hyper-parameters that it has under {REFERENCE}"
    if not found:
        raise GraftbenchError(f"no record of {method} under {variant}{where}; run it, by make curvature")
    names = ", ".join(ranking.labels[ranking.records[i].key] for i in found)
    raise GraftbenchError(f"several rows are {method} under {variant}: {names}; keep the records of one")


def _seeds(ranking: Ranking, row: int) -> list[int]:
    return sorted(ranking.rows[row].members)


def _settings(record: Record, method: str) -> str:
    known = {name: value for name, value in _all_else(record).items() if name in ("density", "scale", "power")}
    return f"`{method}` " + ", ".join(f"{name} {value:g}" for name, value in known.items())


def _verdict(compared: Compared) -> str:
    difference = compared.difference
    value = difference.over_items.value or 0.0
    amount = f"{number(value, signed=True)} points, p {_p_text(compared.corrected_p_value)}"
    who = f"under `{compared.method}`, `{compared.variant}`"
    if compared.corrected_p_value <= SIGNIFICANCE:
        return f"{who} is {'better' if value > 0 else 'worse'} ({amount})"
    noticed = (
        f"; on these items alone, {number(smallest_detectable_difference(difference.standard_error))} points would "
        "have been noticed in four of five cases"
        if difference.standard_error > 0
        else ""
    )
    return f"{who} cannot be told from `{REFERENCE}` ({amount}{noticed})"


def _p_text(value: float) -> str:
    text = p_value(value)
    return text if text.startswith("<") else f"= {text}"


def _scores(ranking: Ranking, rows: Sequence[tuple[str, str, int]]) -> str:
    board = {row.key: row for row in ranking.board().rows}
    lines = []
    for method, variant, i in rows:
        row = board[ranking.records[i].key]
        spread = row.seeds.standard_deviation
        average = with_bounds(row.average) + ("" if spread is None else f" ± {spread:.1f}")
        capabilities = [number(row.capabilities[c].value or 0.0) for c in ranking.capabilities]
        lines.append([f"`{method}`", f"`{variant}`", average, *capabilities])
    return _table(["method", "curvature", "average", *ranking.capabilities], lines)


def _differences(compared: Sequence[Compared]) -> str:
    lines = [
        [
            f"`{each.method}`",
            f"`{each.variant}`",
            with_bounds(each.difference.over_items, signed=True),
            with_bounds(each.difference.over_seeds, signed=True),
            p_value(each.difference.p_value),
            p_value(each.corrected_p_value),
        ]
        for each in compared
    ]
    return _table(["method", "curvature", "over items", "over seeds", "p", "p (Holm)"], lines)


def _by_capability(compared: Sequence[Compared], capabilities: Sequence[str]) -> str:
    lines = [
        [f"`{each.method}`", f"`{each.variant}`"]
        + [with_bounds(each.capabilities[c], signed=True) for c in capabilities]
        for each in compared
    ]
    return _table(["method", "curvature", *capabilities], lines)


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = [":--", ":--", *["--:"] * (len(heads) - 2)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, rule, *lines])


if __name__ == "__main__":
    main(sys.argv[1:])
