"""The store of records: one JSON file each, and the texts of the answers beside it."""

import contextlib
import fcntl
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import GraftbenchError
from harness.files import PARTIAL, file_written_atomically
from harness.results.record import Record, read_record, to_json

log = logging.getLogger(__name__)

ABANDONED_SECONDS = 24 * 3600.0
"""Unfinished files that nobody has touched for so long are what killed processes have left."""


class Store:
    """Records under one folder, by key; several processes may read and write it at the same time.

    Every file is whole or absent, whenever a process dies. A record and its answers come from one writer.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def get(self, key: str) -> Record | None:
        """The record of that key, or None.

        Raises:
            GraftbenchError: the file is there but cannot be read; it is named, and never overwritten in silence.
        """
        path = self._record_path(key)
        if not path.exists():
            return None
        record = read_record(path)
        if record.key != key:
            raise GraftbenchError(f"{path}: holds the record {record.key}; rename the file or delete it")
        return record

    def put(self, record: Record, answers: pa.Table | None = None) -> Path:
        """Keep a record, in place of one with the same key. Returns its path.

        Both files are written beside their final names before either takes it, the answers first, so that a record
        never lacks them.
        """
        path = self._record_path(record.key)
        with contextlib.ExitStack() as files:
            files.enter_context(self._writing())
            partial = files.enter_context(file_written_atomically(path))
            partial.write_text(to_json(record), encoding="utf-8")
            if answers is not None:  # entered last, so that it is renamed first
                pq.write_table(answers, files.enter_context(file_written_atomically(self.answers_path(record.key))))
        return path

    def records(self) -> list[Record]:
        """Every readable record, sorted by key; an unreadable one is named in the log and left out."""
        found = []
        for path in sorted(self.root.glob("*.json")):
            try:
                found.append(read_record(path))
            except GraftbenchError as error:
                log.warning("left out: %s", error)
        return found

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time, so that a record and its answers are not those of two; a killed one holds up nobody."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("a") as file:
            with contextlib.suppress(OSError):  # some network file systems have no locks; each file is whole even so
                fcntl.flock(file, fcntl.LOCK_EX)
            self._remove_abandoned()
            yield

    def _remove_abandoned(self) -> None:
        for path in self.root.glob(f".*{PARTIAL}"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()

    def _record_path(self, key: str) -> Path:
        return self.root / f"{key}.json"

    def answers_path(self, key: str) -> Path:
        """Where the texts of a record's answers lie (parquet), if there are any."""
        return self.root / f"{key}.parquet"
