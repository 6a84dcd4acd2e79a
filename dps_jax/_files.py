"""Atomic writes of files, and errors that name the file and a remedy."""

from __future__ import annotations

import errno
import lzma
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

# Exceptions that NumPy and zipfile raise for damaged .npz files. OSError is one of them if the content is in memory or
# the file was opened before.
DAMAGED_NPZ = (
    *(EOFError, KeyError, OSError, OverflowError, RuntimeError, TypeError, ValueError),
    *(lzma.LZMAError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REMEDIES = {errno.ENOENT: "make the folder", errno.EISDIR: "name a file, not a folder,"}
_BLOCK_BYTES = 1 << 20


def damage(error: BaseException) -> str:
    """Returns the message of a library about a damaged file, without its advice to allow pickled objects."""
    if "allow_pickle" in str(error):
        return "it holds Python objects instead of numbers"
    return str(error) or type(error).__name__


def checksum(path: Path, *, is_synced: bool = False) -> int:
    """Returns the CRC-32 of a file; with `is_synced`, its content is also synchronised to the disk."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            value = zlib.crc32(block, value)
        if is_synced:
            os.fsync(file.fileno())
    return value


def write_error(error: OSError, path: Path) -> OSError:
    """Returns an error with the same number that also names the file and a remedy; Python's write errors do not."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    remedy = "free space there" if error.errno in _FULL else _REMEDIES.get(error.errno or 0, "make it writable")
    return OSError(error.errno, f"{reason}; {remedy} and try again", str(path))


def full_disk_reason(error: BaseException) -> str | None:
    """Returns the reason if an error, or its message, is about a full disk or an exhausted quota; otherwise None."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return error.strerror or os.strerror(error.errno)
    return next((os.strerror(number) for number in _FULL if os.strerror(number) in str(error)), None)


def write_atomically(path: os.PathLike[str] | str, content: bytes | str) -> None:
    """Replaces a file; after a crash at any moment, it has either all of the old or all of the new content.

    Raises:
      OSError: naming the path; the old file is not changed, and no partial file is left.
    """
    with atomic(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic(path: os.PathLike[str] | str) -> Iterator[BinaryIO]:
    """Opens a temporary file for writing, which replaces the file at `path` if the block ends without an exception.

    Raises:
      OSError: naming the path; the old file is not changed, and no partial file is left.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            sync_directory(path.parent)
        except BaseException:  # Raised again; after Ctrl-C, too, no partial file is left.
            with suppress(OSError):  # The first error is more informative than an error of the clean-up.
                partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise write_error(error, path) from error


def move_aside(path: Path, kind: str) -> Path:
    """Renames a file or folder to the first free of NAME.kind-1, NAME.kind-2, ..., and returns its path.

    Raises:
      OSError: naming the path.
    """
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.{kind}-{number}")):
        number += 1
    try:
        os.rename(path, aside)
    except OSError as error:
        raise write_error(error, path) from error
    return aside


def sync_directory(path: Path) -> None:
    """Synchronises the entries of a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
