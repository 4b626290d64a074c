"""The store of records: one JSON file each, and the texts of the answers beside it."""

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import GraftbenchError
from harness.files import file_written_atomically, write_text_atomically
from harness.results.record import Record, read_record, to_json

log = logging.getLogger(__name__)


class Store:
    """Records under one folder, by key. Every file is whole or absent, whenever the process dies."""

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
        """Keep a record, the answers first, so that a record never lacks them. Returns the record's path."""
        if answers is not None:
            with file_written_atomically(self.root / f"{record.key}.parquet") as temporary:
                pq.write_table(answers, temporary)
        path = self._record_path(record.key)
        write_text_atomically(path, to_json(record))
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

    def _record_path(self, key: str) -> Path:
        return self.root / f"{key}.json"
