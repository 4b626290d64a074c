"""What an evaluated model leaves behind: its record, and the store of records."""

from harness.results.record import Record, TaskOutcome, from_json, read_record, to_json
from harness.results.store import Store

__all__ = ["Record", "Store", "TaskOutcome", "from_json", "read_record", "to_json"]
