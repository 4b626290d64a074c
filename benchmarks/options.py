"""The command line of `benchmarks.merge_speed`, checked before anything is made or measured."""

import argparse
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.llama_shaped import SIZES
from benchmarks.rows import SERIES

HERE = Path(__file__).resolve().parent

_OURS = ("llama-", "merge-speed-", "merge_speed.json")
"""How the names begin of what the benchmark leaves in its folder."""


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of `python -m benchmarks.merge_speed`; the folder is made.

    Exits with 2 and a sentence about what is wrong: before checkpoints are made, and not after hours of measuring.
    """
    parser = argparse.ArgumentParser(description="Measure merges, ours against mergekit's, on the same files.")
    parser.add_argument("folder", type=Path, help="where the checkpoints lie or are made: FOLDER/llama-SIZE")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["0.2b", "0.43b"], help="which models")
    parser.add_argument("--rows", nargs="+", choices=SERIES, default=list(SERIES), help="which series of merges")
    parser.add_argument("--repeat", type=_positive, default=3, help="runs of each (default 3)")
    parser.add_argument(
        "--mergekit-python",
        default=os.environ.get("GRAFTBENCH_MERGEKIT_PYTHON"),
        help="python of an environment with mergekit 0.1.5 (default $GRAFTBENCH_MERGEKIT_PYTHON; none: only ours)",
    )
    parser.add_argument(
        "--graftbench",
        type=shlex.split,
        default=[str(Path(sys.executable).parent / "graftbench")],
        help="our command (default: the one installed beside this python)",
    )
    parser.add_argument(
        "--override", action="append", default=[], metavar="OPTION=VALUE", help="an option for our merges; repeatable"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N, for both (default cpu)")
    parser.add_argument("--sharded-moments", action="store_true", help="make second moments in shards with an index")
    parser.add_argument("--profile", action="store_true", help="print where the time of each of our runs goes")
    parser.add_argument("--no-check", action="store_true", help="do not compare the results (saves minutes)")
    parser.add_argument(
        "--report",
        nargs="?",
        type=Path,
        const=HERE / "merge_speed.md",
        help="write the tables there as Markdown and the numbers beside it as JSON",
    )
    options = parser.parse_args(arguments)
    options.folder = options.folder.expanduser().resolve()
    if options.mergekit_python and Path(options.mergekit_python).is_dir():
        options.mergekit_python = str(Path(options.mergekit_python) / "python")
    problems = [*_wrong_commands(options), *_wrong_folder(options.folder), *_wrong_report(options.report)]
    if problems:
        parser.error("; ".join(problems))
    return options


def _wrong_commands(options: argparse.Namespace) -> Iterator[str]:
    if not options.graftbench or shutil.which(options.graftbench[0]) is None:
        yield f"--graftbench {shlex.join(options.graftbench)}: there is no such command"
    if options.mergekit_python:
        for program in (Path(options.mergekit_python), Path(options.mergekit_python).parent / "mergekit-yaml"):
            if shutil.which(str(program)) is None:
                yield f"--mergekit-python: {program} is no program; name the python of an environment with mergekit"
                break
    for override in options.override:
        if not re.match(r"\+{0,2}[\w.]+=", override):
            yield f"--override {override}: options of graftbench are written name=value, such as memory_gb=1"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", options.device):
        yield f"--device {options.device}: name cpu, cuda or cuda:N"


def _wrong_folder(folder: Path) -> Iterator[str]:
    """It must be writable, and empty or the benchmark's own: what lies in it is overwritten where it does not fit."""
    if folder.exists() and not folder.is_dir():
        yield f"{folder} is a file; name a folder for the checkpoints"
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=_OURS[1], dir=folder):
            pass
    except OSError as error:
        yield f"{folder} cannot be written to ({error.strerror}); name another folder"
        return
    if strange := sorted(path.name for path in folder.iterdir() if not path.name.startswith(_OURS)):
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        yield f"{folder} holds '{strange[0]}'{more}, which is not of this benchmark; name an empty folder"


def _wrong_report(report: Path | None) -> Iterator[str]:
    if report is None:
        return
    if report.is_dir() or not report.absolute().parent.is_dir():
        yield f"--report {report}: name a file in a folder that exists"
    elif not os.access(report if report.exists() else report.absolute().parent, os.W_OK):
        yield f"--report {report} cannot be written to"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of runs, 1 or more")
    return int(text)
