"""Cutoffs that were found, as they are used and as they are kept: finding them costs passes over whole models."""

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.files import file_written_atomically
from methods import Cutoff

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged archive may raise."""


@dataclass(frozen=True)
class LastTie:
    """Where the last entry lies that equals the threshold and is kept."""

    name: str
    """Its parameter."""
    start: int
    """The range of flat indices that was counted as one piece."""
    stop: int
    nth: int
    """Which of that range's ties it is, from 1."""
    until: int | None = None
    """Flat index after it; None until somebody has looked it up."""


@dataclass(frozen=True)
class ExpertCutoff:
    """Where one expert's selection ends over many parameters."""

    threshold: float
    ties: Mapping[str, int] | None = None
    """Entries equal to the threshold that are kept, by parameter; None where nobody counted."""
    last: LastTie | None = None
    """The last of them, by parameter name, then flat index; None if all are kept."""

    def within(self, name: str) -> Cutoff:
        """The cutoff inside of one parameter."""
        if self.last is None or name < self.last.name:
            return Cutoff(self.threshold)
        if name > self.last.name:
            return Cutoff(self.threshold, 0)
        assert self.last.until is not None, "the last tie has not been looked up"
        return Cutoff(self.threshold, self.last.until)

    def settled(self, until: int) -> "ExpertCutoff":
        """The same with the flat index after the last tie."""
        assert self.last is not None
        return replace(self, last=replace(self.last, until=until))


@dataclass(frozen=True)
class KnownCutoffs:
    """What is known of one expert's scores."""

    upper: NDArray[np.integer[Any]] | None
    """How many scores share the upper bits of their patterns; None until a second density was asked for."""
    cutoffs: Mapping[int, ExpertCutoff]
    """The cutoffs that keep so many entries."""


class CutoffStore:
    """A folder of known cutoffs, one file for each expert and kind of score, under a digest of what they depend on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> KnownCutoffs | None:
        """What is kept under a key; None if nothing is, or if it cannot be read: it can be found again."""
        try:
            with np.load(self._folder / f"{key}.npz", allow_pickle=False) as stored:
                found = json.loads(bytes(stored["cutoffs"]))
                upper = stored["upper"] if stored["upper"].size else None
                return KnownCutoffs(upper, {int(rank): _from_json(entry) for rank, entry in found.items()})
        except _UNREADABLE:
            return None

    def put(self, key: str, known: KnownCutoffs) -> None:
        """Keep what was found."""
        text = json.dumps({rank: asdict(cutoff) for rank, cutoff in sorted(known.cutoffs.items())})
        stored = io.BytesIO()
        upper = np.empty(0, dtype=np.int64) if known.upper is None else known.upper
        np.savez_compressed(stored, upper=upper, cutoffs=np.frombuffer(text.encode(), dtype=np.uint8))
        with file_written_atomically(self._folder / f"{key}.npz") as temporary:
            temporary.write_bytes(stored.getvalue())


def _from_json(entry: Mapping[str, object]) -> ExpertCutoff:
    fields = dict(entry)
    last = fields.pop("last")
    return ExpertCutoff(**fields, last=LastTie(**last) if isinstance(last, dict) else None)  # type: ignore[arg-type]
