"""Measures merges, ours against mergekit's, each as a whole process on the same files.

    python -m benchmarks.merge_speed FOLDER --mergekit-python VENV/bin/python --report

makes Llama-shaped checkpoints under FOLDER (20 GB for both sizes), runs `graftbench merge` and `mergekit-yaml` in
turn, checks that their results agree, prints tables and, with `--report`, writes `merge_speed.md` and
`merge_speed.json` beside this file.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import report
from benchmarks.llama_shaped import EXPERTS, MOMENTS, SIZES, make_set
from benchmarks.machine import REPOSITORY, commit, describe_machine, versions
from benchmarks.options import read_options
from benchmarks.process import CommandFailed, measure, warm_page_cache
from benchmarks.rows import SERIES, Row


def main() -> None:
    """Measure what the command line asks for."""
    options = read_options()
    results: dict[str, Any] = {
        "commit": commit(),
        "command": shlex.join(options.graftbench),
        "overrides": options.override,
        "device": options.device,
        "repetitions": options.repeat,
        "machine": describe_machine(options.folder),
        "versions": _versions(options),
        "sizes": {},
    }
    for size in options.sizes:
        models = options.folder / f"llama-{size}{'-sharded' if options.sharded_moments else ''}"
        written = make_set(models, SIZES[size], options.sharded_moments)
        print(f"{models}: {len(written)} files made, the others were there", flush=True)
        with TemporaryDirectory(prefix="merge-speed-", dir=options.folder) as work:
            bench = Bench(models, Path(work), options)
            _check_room(models, Path(work), SIZES[size].parameters())
            results["sizes"][size] = {
                "parameters": SIZES[size].parameters(),
                "experts": len(EXPERTS),
                "bandwidth": bench.bandwidth(),
                "rows": {},
            }
            for series in options.rows:
                results["sizes"][size]["rows"] |= bench.series(SERIES[series])
                (options.folder / "merge_speed.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n" + report.render(results))
    if options.report:
        options.report.write_text(report.render(results), encoding="utf-8")
        options.report.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {options.report} and {options.report.with_suffix('.json')}")
    checked = [row["agreement"] for size in results["sizes"].values() for row in size["rows"].values()]
    if any(found["wrong"] or not found["notes"].get("kept_exactly", True) for found in checked if found):
        raise SystemExit("a merge that was timed is wrong: see the tables of compared results")


@dataclass(frozen=True)
class Bench:
    """The runs on one set of models."""

    models: Path
    work: Path
    """A folder for outputs, homes and logs, on the same disk."""
    options: argparse.Namespace

    def series(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Measure rows that belong together: in every repetition all of them, ours and mergekit's in turn."""
        accepted = {row.name: self._accepted(row) for row in rows}
        found: dict[str, Any] = {
            row.name: {"accepted": list(accepted[row.name]), "ours": [], "mergekit": [], "agreement": None}
            for row in rows
        }
        for repetition in range(self.options.repeat):
            for row in rows:
                if row.fresh_home:
                    shutil.rmtree(self._home, ignore_errors=True)
                warm_page_cache(self._files(row.moments))
                ours = self._ours(accepted[row.name])
                warm_page_cache(self._files(row.moments))
                theirs = self._mergekit(row)
                found[row.name]["ours"].append(ours)
                found[row.name]["mergekit"] += theirs
                if repetition == 0 and not self.options.no_check:
                    found[row.name]["agreement"] = self._agreement(row)
                for out in (self._out, self._mergekit_out):
                    shutil.rmtree(out, ignore_errors=True)
                self._tell(row, repetition, ours, theirs)
        return found

    def bandwidth(self) -> dict[str, float]:
        """GB/s of disk, memory and device, by the probe."""
        file = self._files(moments=False)[0]
        return dict(self._script("bandwidth", str(file), str(self.work), self.options.device))

    @property
    def _home(self) -> Path:
        return self.work / "home"

    @property
    def _out(self) -> Path:
        return self.work / "ours"

    @property
    def _mergekit_out(self) -> Path:
        return self.work / "mergekit"

    def _accepted(self, row: Row) -> tuple[str, ...]:
        """The first alternative that this version accepts; the dry run also brings its code into the page cache."""
        for overrides in row.ours:
            try:
                measure(self._command(overrides, "dry_run=true"), _environment(), self.work / "ours.log")
            except CommandFailed:
                if overrides == row.ours[-1]:
                    raise
            else:
                break
        return overrides

    def _ours(self, overrides: Sequence[str]) -> dict[str, Any]:
        run = measure(self._command(overrides), _environment(), self.work / "ours.log")
        recipe = json.loads((self._out / "merge.json").read_text(encoding="utf-8"))
        return asdict(run) | {"stages": recipe["seconds"]}

    def _command(self, overrides: Sequence[str], *more: str) -> list[str]:
        return [
            *self.options.graftbench,
            "merge",
            *overrides,
            f"zoo.base={self.models / 'base'}",
            *(f"zoo.experts.{expert}={self.models / expert}" for expert in EXPERTS),
            f"out={self._out}",
            f"home={self._home}",
            f"device={self.options.device}",
            *self.options.override,
            *more,
        ]

    def _mergekit(self, row: Row) -> list[dict[str, Any]]:
        """mergekit's run of the row; none if it has no such method or is not here."""
        if row.mergekit is None or self.options.mergekit_python is None:
            return []
        recipe = dict(row.mergekit)
        each = recipe.pop("of_each")
        recipe["models"] = [{"model": str(self.models / expert), "parameters": each} for expert in EXPERTS]
        if "base_model" in recipe:
            recipe["base_model"] = str(self.models / recipe["base_model"])
        recipe["dtype"] = "bfloat16"
        configuration = self.work / "mergekit.yaml"
        configuration.write_text(json.dumps(recipe), encoding="utf-8")
        command = [str(self._mergekit_command), str(configuration), str(self._mergekit_out), "--no-copy-tokenizer"]
        if self.options.device != "cpu":
            command += ["--device", self.options.device]
        log = self.work / "mergekit.log"
        if not log.exists():
            measure([command[0], "--help"], _environment(), log)
        return [asdict(measure(command, _environment(), log))]

    @property
    def _mergekit_command(self) -> Path:
        return Path(self.options.mergekit_python).parent / "mergekit-yaml"

    def _agreement(self, row: Row) -> dict[str, Any] | None:
        against_mergekit = row.check in ("linear", "ties")
        if row.check is None or (against_mergekit and not self._mergekit_out.is_dir()):
            return None
        outputs = [str(self._out)] + ([str(self._mergekit_out)] if against_mergekit else [])
        return dict(self._script("agreement", row.check, str(self.models), str(row.density), *outputs))

    def _script(self, name: str, *arguments: str) -> Mapping[str, Any]:
        """What another module of this folder prints as JSON, run in a process of its own, to keep this one small."""
        command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise SystemExit(f"{shlex.join(command)}\n{ended.stderr.strip()}")
        return dict(json.loads(ended.stdout))

    def _files(self, moments: bool) -> list[Path]:
        files = sorted(self.models.glob("*/*.safetensors"))
        return [file for file in files if moments or not file.name.startswith(MOMENTS)]

    def _tell(self, row: Row, repetition: int, ours: Mapping[str, Any], theirs: Sequence[Mapping[str, Any]]) -> None:
        shown = f"ours {_line(ours)}" + (f"; mergekit {_line(theirs[0])}" if theirs else "")
        print(f"{row.name} {repetition + 1}/{self.options.repeat}: {shown}", flush=True)
        if self.options.profile:
            stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in ours["stages"].items())
            print(f"  {stages}, the rest {ours['wall'] - sum(ours['stages'].values()):.2f} s", flush=True)


def _line(run: Mapping[str, Any]) -> str:
    return (
        f"{run['wall']:.1f} s, CPU {run['cpu']:.1f} s, peak {run['peak_bytes'] / 1e9:.2f} GB "
        f"({run['private_bytes'] / 1e9:.2f} private), others {100 * run['others_cpu']:.0f} %"
    )


def _environment() -> dict[str, str]:
    """The same for both: this one, without the network."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def _versions(options: argparse.Namespace) -> dict[str, dict[str, str]]:
    found = {"ours": versions(sys.executable, ("graftbench", "torch", "safetensors", "transformers"))}
    if options.mergekit_python:
        packages = ("mergekit", "torch", "safetensors", "transformers")
        found["mergekit"] = versions(options.mergekit_python, packages)
    return found


def _check_room(models: Path, work: Path, parameters: int) -> None:
    """Two outputs must fit on the disk; the set ought to fit in the page cache."""
    outputs = 2 * 2 * parameters
    free = shutil.disk_usage(work).free
    if free < 1.1 * outputs:
        raise SystemExit(
            f"{work} needs {1.1 * outputs / 1e9:.1f} GB for outputs, the disk has {free / 1e9:.1f} GB free"
        )
    needed = sum(file.stat().st_size for file in models.glob("*/*.safetensors")) + outputs
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > 0.85 * memory:
        print(
            f"warning: the set and its outputs are {needed / 1e9:.1f} GB and memory is {memory / 1e9:.1f} GB: "
            "part of what is measured will be the disk",
            flush=True,
        )


if __name__ == "__main__":
    try:
        main()
    except CommandFailed as failure:
        raise SystemExit(str(failure)) from None
