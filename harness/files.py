"""Files that are either whole or absent, and digests of what they hold."""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SETTLED_SECONDS = 2.0


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` beside `path` and rename it there, so that a reader sees the old file or the new one."""
    with file_written_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def file_written_atomically(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final`; what was written there takes the final name when the block ends well."""
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=".partial", dir=final.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_written_atomically(final: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `final`; it takes the final name when the block ends well, else it is removed.

    A killed process leaves the temporary folder behind, never anything under the final name.
    """
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".partial", dir=final.parent))
    try:
        yield temporary
        _make_readable(temporary)
        if final.exists():
            former = temporary.with_suffix(".former")
            final.rename(former)
            temporary.rename(final)
            shutil.rmtree(former)
        else:
            temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_readable(folder: Path) -> None:
    """Give a folder and what is in it the modes that the umask asks for; safetensors and mkdtemp write for one user."""
    mask = _umask()
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    A process reads a file once, as long as its place, size and times stay what they were: a sweep would hash the same
    models in every job. A file that changed within the last seconds is read each time, since a clock's tick may hide
    the next change.
    """
    path = Path(path).resolve()
    status = path.stat()
    settled = time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_SECONDS
    read = _digest_of_settled if settled else _digest_of_settled.__wrapped__
    return read(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.lru_cache(maxsize=4096)
def _digest_of_settled(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_digest(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """JSON that is the same text for the same value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
