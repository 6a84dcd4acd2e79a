"""Reads .npz files from untrusted sources: no pickled objects, no array larger than the file, one kind of error."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dps_jax import _files

_DAMAGED = (*_files.DAMAGED_NPZ, MemoryError, RecursionError)


def read(
    path: Path | str,
    file: BinaryIO,
    expected: str,
    choose: Callable[[list[str]], Sequence[str]] = list,
    *,
    remedy: str = "write it again or restore it",
) -> dict[str, np.ndarray]:
    """Returns arrays of an .npz file by name.

    Args:
      path: path of the file, for error messages.
      file: open file, which the caller has to close: NumPy would not close a damaged file that it opened itself.
      expected: description of the expected file, which follows "expected" in error messages.
      choose: function from the names in the file to the names to read; its exceptions are not handled.
      remedy: text that error messages end with.

    Raises:
      ValueError: naming the file, if it is damaged, is not an .npz file, contains Python objects, or has headers that
        describe arrays larger than the file.
    """
    damaged = lambda reason: ValueError(f"{path}: expected {expected}, got {reason}; {remedy}")
    if file.read(2) != b"PK":
        raise damaged("a file of another format")
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
    except _DAMAGED as error:
        raise damaged(f"a damaged file ({_files.damage(error)})") from error
    chosen = choose(names)
    try:
        with zipfile.ZipFile(file) as archive:
            reason = next(filter(None, (_refusal(archive, name) for name in chosen)), None)
        if reason is None:
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in chosen}
    except _DAMAGED as error:
        raise damaged(f"a damaged file ({_files.damage(error)})") from error
    raise damaged(reason)


def _refusal(archive: zipfile.ZipFile, name: str) -> str | None:
    """Returns the reason, according to its header, why an array must not be read; None if there is no such reason."""
    info: Any = archive.NameToInfo.get(f"{name}.npy")
    if info is None:
        return f"an entry {name!r} that is not an array"
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if dtype.hasobject:
            return f"Python objects in {name!r}, which are not read as they could run code"
        size = math.prod(shape) * dtype.itemsize
        if size > info.file_size - file.tell():
            return f"a header of {name!r} that claims {size:,} bytes where there are {info.file_size - file.tell():,}"
    return None
