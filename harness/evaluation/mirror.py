"""Data sets on the local disk, laid out by the names that tasks know them by.

`<root>/<data set id>/<configuration, or "default">/<split>.jsonl` (or `.parquet`): a task that declares
`dataset_path: openai/gsm8k` and `dataset_name: main` finds `<root>/openai/gsm8k/main/test.jsonl`. The
embedded tasks read the data of their zoo the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.evaluation.declaration import Declaration

READERS = {".jsonl": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class MirroredData:
    """The files of one configuration of one data set."""

    folder: Path
    reader: str
    """The `datasets` reader: json or parquet."""
    files: dict[str, Path]
    """One file per split."""


def mirrored_data(root: Path | None, declaration: Declaration) -> MirroredData | None:
    """The task's data in the mirror, or None where the mirror has none of it."""
    folder = mirror_folder(root, declaration)
    if folder is None or not folder.is_dir():
        return None
    for suffix, reader in READERS.items():
        files = {file.stem: file for file in sorted(folder.glob(f"*{suffix}"))}
        if files:
            return MirroredData(folder, reader, files)
    return None


def mirror_folder(root: Path | None, declaration: Declaration) -> Path | None:
    """Where the mirror would have the task's data; None without a mirror or where the task itself names
    files."""
    data_set = declaration.fields.get("dataset_path")
    if root is None or not isinstance(data_set, str) or Path(data_set).is_absolute() or data_set in READERS.values():
        return None
    return root / data_set / str(declaration.fields.get("dataset_name") or "default")


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
