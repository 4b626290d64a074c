"""The report of a benchmark as Markdown, from its results alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.rows import GIGABYTE, SERIES, TARGETS, Row, Target

ROWS: dict[str, Row] = {row.name: row for series in SERIES.values() for row in series}


def render(results: Mapping[str, Any]) -> str:
    """The whole report; `results` is what `merge_speed` writes as JSON."""
    parts = ["# Speed and memory of merges", _introduction(results)]
    for name, size in results["sizes"].items():
        parts.append(f"## {_billions(size)} parameters ({name}), {size['experts']} experts")
        parts += [measurements(size), agreements(size), targets(name, size)]
        parts += [bandwidth(size), stages(size)]
    if len(results["sizes"]) > 1:
        parts += ["## Scaling", scaling(results["sizes"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def measurements(size: Mapping[str, Any]) -> str:
    """Wall time, CPU time and peak memory of every row, ours and mergekit's, with ratios."""
    header = (
        "merge",
        "ours, s",
        "mergekit, s",
        "speedup",
        "ours, CPU s",
        "mergekit, CPU s",
        "CPU ratio",
        "ours, peak GB (private)",
        "mergekit, peak GB (private)",
        "ours, GB/s",
    )
    lines = []
    for name, row in _measured(size):
        ours, theirs = row["ours"], row["mergekit"]
        moved = ROWS[name].bytes_per_parameter * size["parameters"]
        lines.append(
            (
                ROWS[name].title + ("" if row["accepted"] == list(ROWS[name].ours[0]) else f" ({row['accepted'][0]})"),
                _range(ours, "wall"),
                _range(theirs, "wall"),
                _paired(theirs, ours, "wall"),
                _range(ours, "cpu"),
                _range(theirs, "cpu"),
                _paired(theirs, ours, "cpu"),
                _memory(ours),
                _memory(theirs),
                f"{moved / _median(ours, 'wall') / GIGABYTE:.2f}",
            )
        )
    return _table(header, lines)


def agreements(size: Mapping[str, Any]) -> str:
    """What was checked of the results that were timed."""
    lines = []
    for name, row in _measured(size):
        found = row.get("agreement")
        if not found:
            continue
        exact = {True: ", the threshold keeps exactly the wanted number", False: ", **the threshold is wrong**"}
        lines.append(
            (
                ROWS[name].title,
                "mergekit's" if ROWS[name].check in ("linear", "ties") else "the formula in plain torch",
                f"{_share(found['differing'], found['entries'])}",
                f"{found['largest_ulps']:g}",
                f"{found['largest_difference']:.2g}",
                f"{_share(found['agreeing'], found['entries'])}",
                f"{_share(found['comparable'], found['entries'])}",
                f"{found['wrong']:,}" + exact.get(found["notes"].get("kept_exactly"), ""),
            )
        )
    if not lines:
        return ""
    header = (
        "result of",
        "against",
        "bits differ",
        "largest, ulp",
        "largest, absolute",
        "agree",
        "must agree",
        "of these wrong",
    )
    return (
        "Results, compared in the same run, every entry. They agree within one ulp of bf16 plus what rounding before "
        "it can do. Entries at a threshold need not agree, nor, with TIES, those whose vote rounding can turn: bf16 "
        "edits tie at the threshold by the thousand, and mergekit keeps any of those that tie, computing in bf16.\n\n"
        + _table(header, lines)
    )


def targets(name: str, size: Mapping[str, Any]) -> str:
    """Every target that this size has a number for."""
    lines = []
    for target in TARGETS:
        value = measured_value(target, size) if name in target.sizes else None
        if value is not None:
            met = value >= target.bound if target.at_least else value <= target.bound
            lines.append((target.text, _shown(target, value), "yes" if met else "**no**"))
    return _table(("target", "measured", "met"), lines) if lines else ""


def measured_value(target: Target, size: Mapping[str, Any]) -> float | None:
    """The number that a target bounds, from medians; None if it was not measured."""
    row = size["rows"].get(target.row)
    if not row or not row["ours"]:
        return None
    ours, theirs = row["ours"], row["mergekit"]
    if target.quantity in ("wall", "peak_bytes"):
        return _median(ours, target.quantity)
    if target.quantity.startswith("wall/"):
        other = size["rows"].get(target.quantity.removeprefix("wall/"))
        return _median(ours, "wall") / _median(other["ours"], "wall") if other and other["ours"] else None
    if not theirs:
        return None
    if target.quantity == "speedup":
        return _median(theirs, "wall") / _median(ours, "wall")
    return _median(ours, "peak_bytes") / _median(theirs, "peak_bytes")


def stages(size: Mapping[str, Any]) -> str:
    """Where our time goes: the seconds that `merge.json` records, and the rest of the process's life."""
    names = list(dict.fromkeys(stage for _, row in _measured(size) for run in row["ours"] for stage in run["stages"]))
    lines = []
    for name, row in _measured(size):
        runs = row["ours"]
        shown = [median(run["stages"].get(stage, 0.0) for run in runs) for stage in names]
        outside = median(run["wall"] - sum(run["stages"].values()) for run in runs)
        lines.append((ROWS[name].title, *(f"{seconds:.2f}" for seconds in shown), f"{outside:.2f}"))
    header = ("ours, s", *names, "start, checks, end")
    return "Where our time goes:\n\n" + _table(header, lines)


def bandwidth(size: Mapping[str, Any]) -> str:
    """The least time that disk, copies or memory need for each row, whichever is slowest, and its share of ours."""
    probe = size["bandwidth"]
    lines = []
    for name, row in _measured(size):
        written = 2 * size["parameters"]
        read = ROWS[name].bytes_per_parameter * size["parameters"] - written
        moved = {"read": read, "to_device": read, "write": written, "from_device": written}
        floors = {what: moved.get(what, read + written) / GIGABYTE / rate for what, rate in probe.items()}
        slowest = max(floors, key=floors.__getitem__)
        share = floors[slowest] / _median(row["ours"], "wall")
        rate = (read + written) / GIGABYTE / _median(row["ours"], "wall")
        lines.append(
            (
                ROWS[name].title,
                f"{rate:.2f}",
                slowest.replace("_", " "),
                f"{floors[slowest]:.2f}",
                f"{100 * share:.0f} %",
            )
        )
    probed = ", ".join(f"{name.replace('_', ' ')} {rate:.1f}" for name, rate in probe.items())
    return (
        f"A probe with one thread found, in GB/s: {probed}. Each input and the output count once, so a merge that must "
        "read twice, or starting the process, cannot reach 100 %:\n\n"
        + _table(("merge", "GB/s", "slowest part", "it alone, s", "its share of our time"), lines)
    )


def scaling(sizes: Mapping[str, Any]) -> str:
    """Cost and memory from the smallest size to the largest, for the rows that both have."""
    ordered = sorted(sizes.values(), key=lambda size: size["parameters"])
    small, large = ordered[0], ordered[-1]
    growth = large["parameters"] / small["parameters"]
    lines = []
    for name, row in _measured(large):
        other = small["rows"].get(name)
        if other and other["ours"]:
            time = _median(row["ours"], "wall") / _median(other["ours"], "wall")
            memory = _median(row["ours"], "peak_bytes") / _median(other["ours"], "peak_bytes")
            lines.append((ROWS[name].title, f"{time:.2f}×", f"{memory:.2f}×"))
    return (
        f"From {_billions(small)} to {_billions(large)} parameters, {growth:.2f}× as many. Linear cost is at most "
        f"{growth:.2f}× (less, since starting costs the same); memory that does not grow is 1.00×.\n\n"
        + _table(("ours", "wall time", "peak memory"), lines)
    )


def _introduction(results: Mapping[str, Any]) -> str:
    machine, versions = results["machine"], results["versions"]
    listed = {tool: ", ".join(f"{k} {v}" for k, v in found.items()) for tool, found in versions.items()}
    others = [run["others_cpu"] for run in _all_runs(results)]
    from_disk = max((run["disk_read_bytes"] for run in _all_runs(results)), default=0)
    return "\n".join(
        (
            "Written by `benchmarks/merge_speed.py`; `benchmarks/README.md` says how to repeat it.",
            "",
            f"- Ours: commit {results['commit']}; {listed['ours']}. Command: `{results['command']}`"
            + (f", with `{' '.join(results['overrides'])}`." if results["overrides"] else "."),
            f"- mergekit: {listed['mergekit']}; default options but `--no-copy-tokenizer`, since the models have none."
            if "mergekit" in listed
            else "- mergekit was not measured: no interpreter was given.",
            f"- Machine: {machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB memory "
            f"({machine['memory_available_gb']} available), disk {machine['disk']} "
            f"({machine['disk_free_gb']} GB free); {machine['system']}; device {results['device']}. "
            f"Threads: {machine['threads']}, for both.",
            f"- {machine['date']}. While a merge ran, others used {100 * median(others):.0f} % of the processors in "
            f"the median and {100 * max(others):.0f} % at most, the kernel's own work included: "
            + ("quiet." if median(others) < 0.05 else "**not quiet, so times are too long**."),
            f"- Whole processes, imports included, {results['repetitions']} of each, ours and mergekit's in turn on "
            f"the same files, which lie in the page cache: at most {from_disk / 1e6:.0f} MB of a run came from the "
            "disk. Median, and range in brackets; a ratio's range is that of the pairs.",
            "- Peak: the kernel's largest resident set, mapped files included; private: the part that no file backs, "
            "sampled. GB/s: what a merge must read and write, each byte once, over wall time.",
            "- The public OTA code's 99 s and 13.2 GB (0.43 B, a threshold given by hand) were measured once, on two "
            "cores elsewhere; it cannot be run here. mergekit took 31 s for linear and 198 s for TIES there, so what "
            "it takes here tells how the two machines compare.",
        )
    )


def _measured(size: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, row) for name, row in size["rows"].items() if row["ours"]]


def _all_runs(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = [row for size in results["sizes"].values() for row in size["rows"].values()]
    return [run for row in rows for run in (*row["ours"], *row["mergekit"])]


def _median(runs: Sequence[Mapping[str, Any]], quantity: str) -> float:
    return float(median(run[quantity] for run in runs))


def _range(runs: Sequence[Mapping[str, Any]], quantity: str) -> str:
    return _with_range([run[quantity] for run in runs], lambda value: f"{value:.1f}") if runs else "–"


def _paired(theirs: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]], quantity: str) -> str:
    """The ratio of the medians, and the range of the repetitions' own ratios."""
    if not theirs:
        return "–"
    ratios = [one[quantity] / other[quantity] for one, other in zip(theirs, ours, strict=True)]
    ratio = _median(theirs, quantity) / _median(ours, quantity)
    return f"{ratio:.1f}×" + (f" [{min(ratios):.1f}–{max(ratios):.1f}]" if len(ratios) > 1 else "")


def _memory(runs: Sequence[Mapping[str, Any]]) -> str:
    if not runs:
        return "–"
    return f"{_median(runs, 'peak_bytes') / GIGABYTE:.2f} ({_median(runs, 'private_bytes') / GIGABYTE:.2f})"


def _with_range(values: Sequence[float], shown: Callable[[float], str]) -> str:
    middle = shown(median(values))
    return f"{middle} [{shown(min(values))}–{shown(max(values))}]" if len(values) > 1 else middle


def _shown(target: Target, value: float) -> str:
    if target.quantity == "peak_bytes":
        return f"{value / GIGABYTE:.2f} GB"
    return f"{value:.1f} s" if target.quantity == "wall" else f"{value:.2f}×"


def _share(part: int, whole: int) -> str:
    """A percentage that says 0 and 100 only where it is so."""
    if part in (0, whole):
        return "none" if part == 0 else "all"
    percent = 100 * part / whole
    return f"{percent:.3g} %" if percent < 90 else f"100 − {100 - percent:.3g} %"


def _billions(size: Mapping[str, Any]) -> str:
    return f"{size['parameters'] / GIGABYTE:.2f} billion"


def _table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    rows = [list(header), *map(list, lines)]
    rule = ["---", *(["--:"] * (len(rows[0]) - 1))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))
