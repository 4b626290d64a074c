"""The study of curvatures says what its records say, on records whose differences can be counted by hand."""

from pathlib import Path

import pytest

from benchmarks.curvature_study import METHODS, main, render
from harness.errors import GraftbenchError
from harness.results import Record, TaskOutcome

ITEMS = 200
RIGHT = {
    "adam": 120,
    "raw": 120,
    "compressed": 119,
    "rank": 119,
    "blocks": 120,
    "fisher": 60,
    "delta": 180,
    "shuffled": 60,
}
"""Of 200 items; the first so many."""


def record(method: str, variant: str, seed: int, right: int, scale: float = 1.5) -> Record:
    shuffled = variant == "shuffled"
    hyperparameters = {
        "curvature": "adam" if shuffled else variant,
        "scale": scale,
        **({"pairing": "shuffled" if shuffled else "own", "density": 0.6} if method == "ota_ffg" else {}),
    }
    task = TaskOutcome(
        task="tiny_math",
        capability="math",
        metric="acc,none",
        chance=0.0,
        item_ids=tuple(f"math-{position:05d}" for position in range(ITEMS)),
        outcomes=tuple(float(position < right) for position in range(ITEMS)),
    )
    return Record(
        key=f"{method}-{variant}-{seed}-{scale}",
        label=method,
        role="control" if shuffled else "method",
        capability=None,
        recipe={"method": method, "hyperparameters": hyperparameters, "base": f"{seed}" * 32},
        selection={"how": "default"},
        zoo={"name": "tiny", "digest": f"zoo-{seed}", "training_seed": seed},
        suite={"name": "tiny", "split": "test", "digest": "suite-digest"},
        engine={"name": "hf", "dtype": "float32", "batch_size": 64},
        versions={"torch": "2.13.0"},
        weights_digest=None,
        timings={"merge": 1.0},
        tasks=(task,),
    )


def study() -> list[Record]:
    return [
        record(method, variant, seed, RIGHT[variant] + shift)
        for method, variants in METHODS.items()
        for variant in variants
        for seed, shift in ((0, 0), (1, 2), (2, 4))
    ]


def line(text: str, *cells: str) -> str:
    """The first line of a table, below the heading of differences, that begins with these cells."""
    below = text.partition("## Differences")[2]
    return next(each for each in below.splitlines() if each.startswith(f"| {' | '.join(cells)} |"))


def test_differences_are_those_to_adam_under_the_same_method() -> None:
    text = render(study())
    # 60 of 200 items fewer at every seed: −30 points, of which seeds leave no doubt; a third of an item is noise.
    assert "−30.0 [−30.0, −30.0]" in line(text, "`ota`", "`fisher`")
    assert "+30.0 [+30.0, +30.0]" in line(text, "`ota_ffg`", "`delta`")
    assert line(text, "`ota_ffg`", "`raw`").count(" 0.0 [0.0, 0.0]") == 2
    assert "600 items" not in text and "200 items, training seeds 0, 1, 2" in text
    assert "t, 2 degrees of freedom" in text and "all 13 comparisons" in text
    assert "| `ota` | `adam` | 61.0 [" in text  # (120 + 122 + 124) / 600
    assert "] ± 1.0 | 61.0 |" in text  # 60, 61, 62 points


def test_questions_are_answered_from_the_differences() -> None:
    answers = {line.split("**")[1]: line for line in render(study()).splitlines() if line.startswith("- **")}
    assert "under `ota`, `fisher` is worse (−30.0 points, p <0.001)" in answers["Does the proxy matter?"]
    assert "under `ota_ffg`, `delta` is better (+30.0 points, p <0.001)" in answers["Does the proxy matter?"]
    assert "`ota_ffg`, `shuffled` is worse" in answers["Does the place of curvature matter?"]
    compression = answers["Does the compression matter?"]
    assert compression.count("cannot be told from `adam` (−0.5 points") == 4
    assert "under `ota_ffg`, `blocks` cannot be told from `adam` (0.0 points" in compression
    assert (
        "`ota`, `raw` cannot be told from `adam` (0.0 points, p = 1.000)" in answers["Does the bias correction matter?"]
    )


def test_rows_at_other_settings_are_not_taken() -> None:
    others = [record("ota", "compressed", seed, 10, scale=0.7) for seed in (0, 1, 2)]
    assert line(render(study() + others), "`ota`", "`compressed`") == line(render(study()), "`ota`", "`compressed`")


def test_what_is_missing_or_there_twice_is_named() -> None:
    with pytest.raises(GraftbenchError, match="no record of ota_ffg under delta"):
        render([each for each in study() if not each.key.startswith("ota_ffg-delta")])
    with pytest.raises(GraftbenchError, match=r"raw was run with training seeds \[0, 1\], under adam with \[0, 1, 2\]"):
        render([each for each in study() if not each.key.startswith("ota-raw-2")])
    with pytest.raises(GraftbenchError, match=r"several rows are ota under adam: ota \(.*scale=0.7\), ota \(.*; keep"):
        render(study() + [record("ota", "adam", seed, 10, scale=0.7) for seed in (0, 1, 2)])


def test_a_folder_without_records_ends_the_command(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no records"):
        main([str(tmp_path), str(tmp_path / "curvature.md")])
    assert not (tmp_path / "curvature.md").exists()
