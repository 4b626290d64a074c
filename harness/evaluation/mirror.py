"""Data sets on the local disk, laid out by the names that tasks know them by.

`<root>/<data set id>/<configuration, or "default">/<split>.jsonl` (or `.parquet`): a task that declares
`dataset_path: openai/gsm8k` and `dataset_name: main` finds `<root>/openai/gsm8k/main/test.jsonl`. A split may lie in
several files, `<split>-00000-of-00002.parquet` and so on, as the hub stores them. The embedded tasks read the data of
their zoo the same way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import GraftbenchError
from harness.evaluation.declaration import Declaration

READERS = {".jsonl": "json", ".parquet": "parquet"}
ZOO_DATA = "graftbench/"
"""How the ids of data sets begin that come with a built model set, and are on no hub."""
_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")


@dataclass(frozen=True)
class MirroredData:
    """The files of one configuration of one data set."""

    folder: Path
    reader: str
    """The `datasets` reader: json or parquet."""
    files: Mapping[str, tuple[Path, ...]]
    """The files of each split, in their order."""


def mirrored_data(root: Path | None, declaration: Declaration) -> MirroredData | None:
    """The task's data in the mirror, or None where the mirror has none of it.

    Raises:
        GraftbenchError: the folder holds files of both formats, or not all files of a split.
    """
    folder = mirror_folder(root, declaration)
    return None if folder is None else data_in(folder)


def data_in(folder: Path) -> MirroredData | None:
    """The data in a folder of the mirror, or None where there are none.

    Raises:
        GraftbenchError: the folder holds files of both formats, or not all files of a split.
    """
    found = {suffix: sorted(folder.glob(f"[!.]*{suffix}")) for suffix in READERS}
    formats = [suffix for suffix, files in found.items() if files]
    if not formats:
        return None
    if len(formats) > 1:
        raise GraftbenchError(f"{folder} holds both .jsonl and .parquet files; keep one format, to tell which count")
    files = found[formats[0]]
    splits = {_split_of(file) for file in files}
    by_split = {split: tuple(file for file in files if _split_of(file) == split) for split in sorted(splits)}
    for split, parts in by_split.items():
        _check_complete(folder, split, parts)
    return MirroredData(folder, READERS[formats[0]], by_split)


def mirror_folder(root: Path | None, declaration: Declaration) -> Path | None:
    """Where the mirror would have the task's data; None without a mirror or where the task itself names files.

    Where the task names no configuration, that is `default`, or the only one that there is, as on the hub (HumanEval's
    is called `openai_humaneval`).
    """
    data_set = declaration.fields.get("dataset_path")
    if root is None or not isinstance(data_set, str) or Path(data_set).is_absolute() or data_set in READERS.values():
        return None
    configuration = declaration.fields.get("dataset_name")
    folder = root / data_set / str(configuration or "default")
    if configuration is None and not folder.is_dir():
        there = [each for each in (root / data_set).glob("[!.]*") if each.is_dir()]
        return there[0] if len(there) == 1 else folder
    return folder


def declared_files(declaration: Declaration) -> dict[str, Path]:
    """The local files that a task names itself (`dataset_path: json` with `data_files`), by split; globs and
    addresses are left out."""
    given = (declaration.fields.get("dataset_kwargs") or {}).get("data_files")
    by_split = given if isinstance(given, dict) else {"train": given}
    files = {}
    for split, value in by_split.items():
        for number, each in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(each, str) and Path(each).is_file():
                files[f"{split}/{number}"] = Path(each)
    return files


def _split_of(file: Path) -> str:
    shard = _SHARD.fullmatch(file.stem)
    return shard["split"] if shard else file.stem


def _check_complete(folder: Path, split: str, files: tuple[Path, ...]) -> None:
    shards = [match for match in (_SHARD.fullmatch(file.stem) for file in files) if match]
    if not shards and len(files) == 1:
        return
    numbers = [int(shard["number"]) for shard in shards]
    if len(shards) != len(files) or any(numbers != list(range(int(shard["count"]))) for shard in shards):
        raise GraftbenchError(
            f"{folder}: the split '{split}' is not whole: it has {', '.join(file.name for file in files)}"
        )
