"""The journal of a merge that is being written: what is finished, so that an interrupted merge goes on from there."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import GraftbenchError

FILE_NAME = ".progress"

_locks: set[int] = set()
"""Open locks; a forked worker closes its copies, or they would outlive this process if it is killed."""


def _close_copies() -> None:
    while _locks:
        os.close(_locks.pop())


os.register_at_fork(after_in_child=_close_copies)


class FinishedElsewhere(GraftbenchError):
    """Everything is made, but it cannot take its final name; it stays where it is."""


class Journal:
    """Names and digests of the tensors that are whole in an unfinished folder."""

    def __init__(self, file: Path, identity: str) -> None:
        """Go on with what is there if it is of the same merge, else empty the folder and start over.

        Args:
            file: where it is kept, in the unfinished folder.
            identity: what the merge is; anything else in the file means that it is of another one.
        """
        self._file = file
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
        self.finished: dict[str, str] = {}
        """Digest of each tensor that an interrupted merge had finished."""
        if lines[:1] == [identity]:
            for line in lines[1:]:
                try:
                    name, digest = json.loads(line)
                except (ValueError, TypeError):
                    break  # the line that the interruption cut
                self.finished[str(name)] = str(digest)
        else:
            for left in file.parent.iterdir():  # shards and tokenizer files of another merge
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        file.write_text(
            "".join(f"{line}\n" for line in (identity, *map(json.dumps, self.finished.items()))), encoding="utf-8"
        )

    def add(self, name: str, digest: str) -> None:
        """Note that a tensor has been written whole."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps([name, digest]) + "\n")


def unfinished_path(final: Path) -> Path:
    """Where a folder is made before it takes its final name."""
    return final.parent / f".{final.name}.unfinished"


@contextmanager
def unfinished_folder(final: Path) -> Iterator[Path]:
    """The hidden folder beside `final` in which it is made; an error removes it, an interruption leaves it.

    Raises:
        GraftbenchError: another process is at work on it.
    """
    folder = unfinished_path(final)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    _locks.add(descriptor)
    try:
        _lock(descriptor, folder, final)
        try:
            yield folder
        except FinishedElsewhere:
            raise
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        _locks.discard(descriptor)
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, final: Path) -> None:
    """One process at a time; the lock goes with the process, however it ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between opening and locking, another process may have finished and renamed the folder.
        ours = folder.exists() and os.path.samestat(folder.stat(), os.fstat(descriptor))
    except OSError:
        ours = False
    if not ours:
        raise GraftbenchError(
            f"another process is making {final} at this moment; wait for it, or choose another folder"
        )
