"""Validation and test items out of one split, for data that come without validation items.

The rule: take an item as the data set stores it, leave out fields without a value, write the rest as JSON with sorted
keys, and read the first 8 bytes of its SHA-256 as a fraction. Below the share it is a validation item, else a test
item. So an item's part depends on nothing but the item: not on its place, on the others, or on a seed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import GraftbenchError
from harness.files import canonical_json


@dataclass(frozen=True)
class Partition:
    """One of the two parts of a split."""

    share: float
    """The share of validation items, between 0 and 1."""
    validation: bool
    """Whether this is the validation part."""

    def holds(self, item: Mapping[str, Any]) -> bool:
        """Whether an item, as the data set stores it, belongs to this part."""
        return (fraction_of(item) < self.share) == self.validation

    def write(self, items: Any, path: Path) -> None:
        """Write this part of a `datasets.Dataset` as a parquet file.

        Raises:
            GraftbenchError: no item belongs to it.
        """
        kept = [number for number, item in enumerate(items) if self.holds(item)]
        if not kept:
            part = "validation" if self.validation else "test"
            raise GraftbenchError(f"none of the {len(items)} items belongs to the {part} part (share {self.share})")
        items.select(kept).to_parquet(str(path))


def fraction_of(item: Mapping[str, Any]) -> float:
    """The item's place in 0..1, by its hash."""
    digest = hashlib.sha256(canonical_json(_stated(item)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _stated(value: Any) -> Any:
    """A value without fields that have none: readers differ in whether they fill those in."""
    if isinstance(value, Mapping):
        return {str(key): _stated(each) for key, each in value.items() if each is not None}
    if isinstance(value, (list, tuple)):
        return [_stated(each) for each in value]
    plain = isinstance(value, (str, int, type(None))) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else str(value)
