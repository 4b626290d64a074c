"""Making a mirror: the data sets of a suite, fetched where there is a network, for where there is none."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.errors import GraftbenchError
from harness.evaluation.declaration import Declaration
from harness.evaluation.mirror import data_in, mirror_folder
from harness.evaluation.plan import TaskPlan, plan_suite, validation_split
from harness.evaluation.suite import Suite
from harness.files import file_written_atomically

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Piece:
    """One split of one configuration of a data set."""

    data_set: str
    configuration: str | None
    split: str
    folder: Path
    """Where it lies in the mirror."""
    options: dict[str, Any] = field(default_factory=dict, compare=False)
    """What the task gives the `datasets` library besides."""

    def __str__(self) -> str:
        return "/".join(part for part in (self.data_set, self.configuration, self.split) if part)


def fetch(suite: Suite, root: Path) -> tuple[list[Path], int]:
    """Write the splits that the suite needs, few-shot examples and validation items included, into a mirror.

    What is there already is not fetched again, and a file is either whole or absent, so that an interrupted fetch
    goes on where it ended.

    Args:
        suite: the tasks; its own `data_root` does not count.
        root: the mirror; made if it is not there.

    Returns:
        The files that were written, and how many splits were there already.

    Raises:
        GraftbenchError: tasks that do not exist (before anything is fetched); data that could not be fetched, all of
            them, after the others were; or the hub cannot be reached.
    """
    wanted = pieces(suite, root)
    missing = [piece for piece in wanted if not _is_there(piece)]
    written, problems = [], []
    for number, piece in enumerate(missing):
        try:
            written.append(_fetched(piece))
        except Exception as error:  # the library raises a dozen kinds for what is not there or cannot be read
            if _no_network(error):
                raise GraftbenchError(
                    f"the hub cannot be reached ({_first_line(error)}): {len(missing) - number} of {len(wanted)} "
                    f"splits are still missing, the next is {piece}.\n"
                    "Run the same command where there is a network; it goes on from here. Then copy the folder."
                ) from error
            problems.append(f"{piece}: {_first_line(error)}")
    if problems:
        raise GraftbenchError(
            f"{len(problems)} of {len(wanted)} splits could not be fetched, the others are in {root}:\n"
            + "\n".join(problems)
        )
    return written, len(wanted) - len(missing)


def pieces(suite: Suite, root: Path) -> list[Piece]:
    """The splits that the suite needs, in the order of its tasks, each once.

    Raises:
        GraftbenchError: tasks that cannot be planned, all of them.
    """
    plans, problems = plan_suite(replace(suite, data_root=None, split="test"))
    if problems:
        raise GraftbenchError("\n".join(problems))
    found: dict[Piece, None] = {}
    for plan in plans:
        found |= dict.fromkeys(_pieces_of(suite, plan, root))
    return list(found)


def _pieces_of(suite: Suite, plan: TaskPlan, root: Path) -> Iterator[Piece]:
    declared = plan.declaration.fields
    folder = mirror_folder(root, plan.declaration)
    if folder is None or declared.get("custom_dataset") is not None:
        log.info("%s: its declaration says itself where its data are; nothing to fetch", plan.name)
        return
    if str(declared["dataset_path"]).startswith("graftbench/"):
        log.info("%s: its data come with the zoo; nothing to fetch", plan.name)
        return
    options = {
        key: value for key, value in (declared.get("dataset_kwargs") or {}).items() if key != "trust_remote_code"
    }
    configuration = declared.get("dataset_name")
    for split in sorted({*plan.needed_splits(), *_validation_splits(suite, plan.entry, plan.declaration)}):
        yield Piece(
            str(declared["dataset_path"]), str(configuration) if configuration else None, split, folder, options
        )


def _validation_splits(suite: Suite, entry: str, declaration: Declaration) -> list[str]:
    """The split that chooses hyper-parameters, where it is another than the test split."""
    spec = suite.tasks[entry]
    if spec.held_out or "hash" in spec.validation:
        return []
    chosen = validation_split(spec, declaration)
    return [chosen] if chosen is not None else []


def _is_there(piece: Piece) -> bool:
    data = data_in(piece.folder)
    return data is not None and piece.split in data.files


def _fetched(piece: Piece) -> Path:
    """Fetch one split and write it in the format that its folder has already, or else as parquet."""
    import datasets

    items = datasets.load_dataset(piece.data_set, piece.configuration, split=piece.split, **piece.options)
    present = data_in(piece.folder)
    as_lines = present is not None and present.reader == "json"
    final = piece.folder / f"{piece.split}{'.jsonl' if as_lines else '.parquet'}"
    with file_written_atomically(final) as path:
        if as_lines:
            items.to_json(str(path), lines=True, force_ascii=False)
        else:
            items.to_parquet(str(path))
    log.info("%s: %d items in %s", piece, len(items), final)
    return final


def _no_network(error: BaseException) -> bool:
    """Whether the error, or one that led to it, says that the hub cannot be reached."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (ConnectionError, TimeoutError, OfflineModeIsEnabled, LocalEntryNotFoundError)):
            return True
        if type(cause).__name__ in ("ConnectError", "ConnectTimeout"):  # httpx, whichever version the hub library takes
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0]}"
