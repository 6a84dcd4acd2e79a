"""Files that are whole or not there: atomic writes, and errors of a full disk that say where and what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_error(error: OSError, path: Path) -> OSError:
    """Returns an error of the same number that names the file, which those of a write do not, and a remedy."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    remedy = "free space there" if error.errno in _FULL else "make it writable"
    return OSError(error.errno, f"{reason}; {remedy} and run the same again", str(path))


def full_disk_reason(error: BaseException) -> str | None:
    """Returns in a few words that a disk is full or a quota is used up, if an error or its text says so."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return error.strerror or os.strerror(error.errno)
    return next((os.strerror(number) for number in _FULL if os.strerror(number) in str(error)), None)


def write_atomically(path: os.PathLike[str] | str, content: bytes | str) -> None:
    """Replaces a file; a kill or a power cut at any moment leaves the old content or the whole of the other.

    Raises:
      OSError: naming the path; the old file is intact and no part of the other is left.
    """
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_directory(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise write_error(error, path) from error


def sync_directory(path: Path) -> None:
    """Makes the names in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
