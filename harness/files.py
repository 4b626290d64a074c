"""Files that are either whole or absent, and digests of what they hold."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
"""How names end of what is being written; killed processes leave such behind."""

_SETTLED_SECONDS = 2.0

_WORTH_KEEPING_BYTES = 10**7
"""Smaller files are read again faster than one could wonder whether they changed."""


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` beside `path` and rename it there, so that a reader sees the old file or the new one."""
    with file_written_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def file_written_atomically(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final`; what was written there takes the final name when the block ends well."""
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=PARTIAL, dir=final.parent)
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
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=PARTIAL, dir=final.parent))
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

    A file is read once, as long as its place, size and times stay what they were: a sweep would hash the same models in
    every job. A file that changed within the last seconds is read each time, since a clock's tick may hide the next
    change. See `digests_kept_in` for how long "once" is.
    """
    path = Path(path).resolve()
    status = path.stat()
    identity = f"{path} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    settled = time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_SECONDS
    if settled and identity in _known_digests:
        return _known_digests[identity]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if settled:
        _known_digests[identity] = digest
    return digest


def file_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """The digest of each file, in the order of their paths; several are read at the same time."""
    distinct = sorted(set(paths))
    with ThreadPoolExecutor() as pool:
        return dict(zip(distinct, pool.map(file_digest, distinct), strict=True))


@contextlib.contextmanager
def digests_kept_in(file: Path) -> Iterator[None]:
    """Know the digests that earlier processes have left in a file, and leave those of this one there for later."""
    try:
        kept = {str(identity): str(digest) for identity, digest in json.loads(file.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError):
        kept = {}
    _known_digests.update(kept)
    before = set(_known_digests)
    try:
        yield
    finally:
        new = {identity: _known_digests[identity] for identity in _known_digests.keys() - before}
        if any(map(_is_worth_keeping, new)):
            kept = {identity: digest for identity, digest in (kept | new).items() if _is_worth_keeping(identity)}
            with contextlib.suppress(OSError):
                write_text_atomically(file, json.dumps(kept, indent=1, sort_keys=True) + "\n")


_known_digests: dict[str, str] = {}


def _is_worth_keeping(identity: str) -> bool:
    path, _, size, *_ = identity.rsplit(" ", 4)
    return int(size) >= _WORTH_KEEPING_BYTES and Path(path).exists()


def readable_size(count: float) -> str:
    """So many bytes in the largest unit of which there is at least one, three digits of it: `1.23 GB`, `45.6 kB`."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= 0.9995 * size:  # what would be rounded to a thousand of the next smaller unit
            return f"{float(f'{count / size:.3g}'):g} {unit}"
    return f"{count:.0f} bytes"


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
