"""What is measured: the rows of the table, what both tools are told to do, and the targets."""

from dataclasses import dataclass, field
from typing import Any

from benchmarks.llama_shaped import EXPERTS

TIES_DENSITY = 0.2
FFG_DENSITY = 0.4
DROP_RATE = 0.9


@dataclass(frozen=True)
class Row:
    """One merge of five experts, by ours and, where it can, by mergekit."""

    name: str
    title: str
    ours: tuple[tuple[str, ...], ...]
    """Overrides of `graftbench merge`; the first of the alternatives that this version accepts."""
    bytes_per_parameter: int
    """Inputs that the merge needs and the output, each moved once."""
    mergekit: dict[str, Any] | None = None
    """mergekit's configuration without the models, and `weights` of each model; None where it has no such method."""
    moments: bool = False
    """Whether it reads second moments."""
    fresh_home: bool = True
    """Whether it starts with an empty home, or with what the row before left there: thresholds and digests."""
    check: str | None = None
    """How `agreement` checks the result."""
    density: float = 1.0


SERIES: dict[str, tuple[Row, ...]] = {
    "linear": (
        Row(
            "linear",
            "linear",
            (("method=linear",),),
            bytes_per_parameter=2 * len(EXPERTS) + 2,
            mergekit={"merge_method": "linear", "of_each": {"weight": 1.0}},
            check="linear",
        ),
    ),
    "ties": (
        Row(
            "ties",
            f"TIES per tensor, density {TIES_DENSITY}",
            (
                ("method=ties_mergekit", f"method.density={TIES_DENSITY}"),
                # Keeps ⌈d·n⌉ entries where mergekit keeps ⌊d·n⌋, which the check finds in small tensors.
                ("method=ties", "method.scope=tensor", f"method.density={TIES_DENSITY}"),
            ),
            bytes_per_parameter=2 * len(EXPERTS) + 4,
            mergekit={
                "merge_method": "ties",
                "base_model": "base",
                "parameters": {"normalize": True},
                "of_each": {"weight": 1.0, "density": TIES_DENSITY},
            },
            check="ties",
            density=TIES_DENSITY,
        ),
    ),
    "ties_model": (
        Row(
            "ties_model",
            f"TIES, whole model, density {TIES_DENSITY}",
            (("method=ties", "method.scope=model", f"method.density={TIES_DENSITY}"),),
            bytes_per_parameter=2 * len(EXPERTS) + 4,
        ),
    ),
    "curvature": (
        Row(
            "ota_ffg",
            f"OTA+FFG, density {FFG_DENSITY}, thresholds found",
            (("method=ota_ffg", f"method.density={FFG_DENSITY}"),),
            bytes_per_parameter=6 * len(EXPERTS) + 4,
            moments=True,
            check="ota_ffg",
            density=FFG_DENSITY,
        ),
        Row(
            "ota_ffg_cached",
            f"OTA+FFG, density {FFG_DENSITY}, thresholds cached",
            (("method=ota_ffg", f"method.density={FFG_DENSITY}"),),
            bytes_per_parameter=6 * len(EXPERTS) + 4,
            moments=True,
            fresh_home=False,
            check="ota_ffg",
            density=FFG_DENSITY,
        ),
        Row(
            "ota_ffg_again",
            f"OTA+FFG, density {FFG_DENSITY / 2}, after {FFG_DENSITY}",
            (("method=ota_ffg", f"method.density={FFG_DENSITY / 2}"),),
            bytes_per_parameter=6 * len(EXPERTS) + 4,
            moments=True,
            fresh_home=False,
            check="ota_ffg",
            density=FFG_DENSITY / 2,
        ),
        Row(
            "ota",
            "OTA",
            (("method=ota",),),
            bytes_per_parameter=6 * len(EXPERTS) + 4,
            moments=True,
            # As the cached row that it is compared with: digests that a version may keep count for neither.
            fresh_home=False,
            check="ota",
        ),
    ),
    "dare": (
        Row(
            "dare",
            f"DARE, drop rate {DROP_RATE}",
            (("method=dare", f"method.drop_rate={DROP_RATE}"),),
            bytes_per_parameter=2 * len(EXPERTS) + 4,
            mergekit={
                "merge_method": "dare_linear",
                "base_model": "base",
                "parameters": {"normalize": False, "rescale": True},
                "of_each": {"weight": 0.3, "density": round(1 - DROP_RATE, 6)},
            },
        ),
    ),
}
"""Rows that are measured together, in this order in every repetition: a cached row follows the one that fills it."""

GIGABYTE = 10**9


@dataclass(frozen=True)
class Target:
    """A bound on one number of the table."""

    row: str
    quantity: str
    """`speedup` over mergekit, `peak_bytes`, `peak_ratio` to mergekit's, `wall`; `wall/NAME` is relative to a row."""
    at_least: bool
    bound: float
    text: str
    sizes: tuple[str, ...] = field(default=("0.2b", "0.43b"))


PUBLIC_OTA_SECONDS = 99.0
"""The public OTA code on the 0.43 B set with a threshold given by hand (13.2 GB with mapped files): measured once
elsewhere, on two cores; that code cannot be run here."""

TARGETS = (
    Target("linear", "speedup", True, 6.0, "linear ≥ 6× mergekit's speed"),
    Target("ties", "speedup", True, 10.0, "TIES per tensor ≥ 10× mergekit's speed"),
    Target("linear", "peak_ratio", False, 1.0, "linear: less memory than mergekit"),
    Target("ties", "peak_ratio", False, 1.0, "TIES per tensor: less memory than mergekit"),
    Target("linear", "peak_bytes", False, 1.5 * GIGABYTE, "linear: peak below 1.5 GB"),
    Target("ties", "peak_bytes", False, 1.5 * GIGABYTE, "TIES per tensor: peak below 1.5 GB"),
    Target("ota_ffg", "peak_bytes", False, 1.5 * GIGABYTE, "OTA+FFG: peak below 1.5 GB"),
    Target(
        "ota_ffg",
        "wall",
        False,
        PUBLIC_OTA_SECONDS / 4,
        f"OTA+FFG with its thresholds: at most a quarter of the public OTA code's {PUBLIC_OTA_SECONDS:.0f} s",
        ("0.43b",),
    ),
    Target("ota_ffg_cached", "wall/ota", False, 3.0, "OTA+FFG with cached thresholds ≤ 3× OTA"),
)
