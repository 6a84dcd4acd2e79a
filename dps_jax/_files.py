"""Files that are whole or not there: atomic writes, and errors of a full disk that say where and what to do."""

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

# What NumPy and zipfile raise for one damaged byte or another of an .npz; where the content is in memory, or the file
# was opened before, an OSError is one too.
DAMAGED_NPZ = (
    *(EOFError, KeyError, OSError, OverflowError, RuntimeError, TypeError, ValueError),
    *(lzma.LZMAError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REMEDIES = {errno.ENOENT: "make the folder", errno.EISDIR: "name a file, not a folder,"}
_BLOCK_BYTES = 1 << 20


def damage(error: BaseException) -> str:
    """Returns in words what a library found wrong with a file; advice to read it without checks is left out."""
    if "allow_pickle" in str(error):
        return "it holds Python objects instead of numbers"
    return str(error) or type(error).__name__


def checksum(path: Path, *, is_synced: bool = False) -> int:
    """Returns the CRC-32 of a file; `is_synced` makes its content survive a power cut."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            value = zlib.crc32(block, value)
        if is_synced:
            os.fsync(file.fileno())
    return value


def write_error(error: OSError, path: Path) -> OSError:
    """Returns an error of the same number that names the file, which those of a write do not, and a remedy."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    remedy = "free space there" if error.errno in _FULL else _REMEDIES.get(error.errno or 0, "make it writable")
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
    with atomic(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic(path: os.PathLike[str] | str) -> Iterator[BinaryIO]:
    """Opens a file to write; it takes the place of an old one when the block has ended, if nothing was raised.

    Raises:
      OSError: naming the path; the old file is intact and no part of the other is left.
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
        except BaseException:  # raised again; Ctrl-C, too, leaves nothing half-written
            with suppress(OSError):  # a clean-up that fails as well says less
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
    """Makes the names in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
