"""Reads .npz files of other people: no pickled objects, no array larger than the file, one kind of error."""

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
      path: of the file, for messages.
      file: open, to be closed by the caller: NumPy leaves a damaged file open that it opened itself.
      expected: what the file should be, in words that follow "expected".
      choose: names in the file -> those to read; its errors pass.
      remedy: what messages end in.

    Raises:
      ValueError: naming the file, if it is damaged or no .npz, holds Python objects, or claims arrays that are larger
        than it is.
    """
    damaged = lambda reason: ValueError(f"{path}: expected {expected}, got {reason}; {remedy}")
    if file.read(2) != b"PK":
        raise damaged("no .npz file")
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
    """Returns why an array cannot be read, from its header; None if nothing speaks against it."""
    info: Any = archive.NameToInfo.get(f"{name}.npy")
    if info is None:
        return f"no array but something else as {name!r}"
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
