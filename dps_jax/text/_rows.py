"""Reads the rows of data files as JSON values; the suffix of a file determines its format.

Formats are `.parquet`, `.jsonl` and `.json`; the last two may be compressed, as `.jsonl.gz` and `.json.gz`.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from dps_jax import _checks

_EXPECTED = "rows of questions"


class Rows(NamedTuple):
    """The rows of a file.

    Attributes:
      path: path of the file.
      values: the rows, at least one, each a dictionary from names of columns to values.
      places: place of each row for error messages, such as "line 3".
    """

    path: Path
    values: list[dict[str, Any]]
    places: Sequence[str]


def files_of(paths: os.PathLike[str] | str | Sequence[os.PathLike[str] | str]) -> list[Path]:
    """Returns the files that paths name; the files of a folder are in the order of the numbers in their names.

    Raises:
      ValueError: for an empty list, a path that does not exist, or a folder without data files.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not given:
        raise ValueError("paths: expected at least one file or folder, got none; name one")
    found = []
    for path in given:
        _checks.check_path("paths", path)
        path = Path(path)
        if not path.exists():
            raise ValueError(f"{path}: expected a file or folder of questions, got none; is the path right?")
        found += _files_in(path) if path.is_dir() else [path]
    return found


def _files_in(folder: Path) -> list[Path]:
    is_file = lambda path: path.is_file() and not path.name.startswith(".") and path.name.lower().endswith(SUFFIXES)
    by_number = lambda path: ([int(digits) for digits in re.findall(r"\d+", path.name)], path.name)
    files = sorted(filter(is_file, folder.iterdir()), key=by_number)
    if not files:
        raise ValueError(
            f"{folder}: expected a folder with files that end in one of {', '.join(SUFFIXES)}, got none; name the "
            "folder that holds them"
        )
    return files


def read_rows(path: Path) -> Rows:
    """Returns the rows of a file.

    Raises:
      ValueError: for an unknown suffix, a damaged file, no rows, or a `.parquet` file without pyarrow; the message
        names the file and, if there is one, the line.
    """
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise ValueError(
            f"{path}: expected a file that ends in one of {', '.join(SUFFIXES)}, got {path.suffix!r}; rename or "
            "convert it"
        )
    try:
        content = path.read_bytes()
        if suffix.endswith(".gz"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error
    rows = _READERS[suffix.removesuffix(".gz")](path, content) if content.strip() else Rows(path, [], [])
    if not rows.values:
        raise ValueError(f"{path}: expected {_EXPECTED}, got an empty file; write it again, or leave it out")
    return rows


def as_json(value: Any) -> Any:
    """Returns a JSON value: dates and decimal numbers become texts; NaN, infinities and bytes become null."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): as_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(entry) for entry in value]
    return None if isinstance(value, (bytes, bytearray)) else str(value)


def _damaged(path: Path, error: BaseException) -> ValueError:
    return ValueError(
        f"{path}: expected {_EXPECTED}, got a file that is damaged or not of the format in its name ({error!s:.200}); "
        "write it again or restore it"
    )


def _read_json(path: Path, content: bytes) -> Rows:
    """Returns the rows of a file with a list of JSON objects, or with one object per line."""
    if not content.lstrip().startswith(b"["):
        return _read_lines(path, content)
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    places = _numbered(len(values))
    for value, place in zip(values, places, strict=True):
        if not isinstance(value, dict):
            raise ValueError(f"{path}: {place}: expected a JSON object, got {value!r:.60}; correct it or leave it out")
    return Rows(path, values, places)


def _read_lines(path: Path, content: bytes) -> Rows:
    """Returns the rows of a file with a JSON object per line."""
    values: list[dict[str, Any]] = []
    places = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        value, reason = None, ""
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = f" ({error!s:.100})"
        if not isinstance(value, dict):
            raise ValueError(
                f"{path}: line {number}: expected a JSON object, got {line[:60]!r}{reason}; correct the line or leave "
                "it out"
            )
        values.append(value)
        places.append(f"line {number}")
    return Rows(path, values, places)


def _read_parquet(path: Path, content: bytes) -> Rows:
    pyarrow, parquet = _import_pyarrow(path)
    try:
        with parquet.ParquetFile(pyarrow.BufferReader(content), page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            values = [] if len(set(names)) < len(names) else file.read().to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        raise _damaged(path, error) from error
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"{path}: {repeated}: expected one column of this name, got several; rename the others")
    return Rows(path, values, _numbered(len(values)))


def _numbered(num_rows: int) -> list[str]:
    return [f"row {row} (the first is 0)" for row in range(num_rows)]


def _import_pyarrow(path: Path) -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            f"{path}: expected pyarrow to be installed, which reads .parquet, got none; install the extra `text`: "
            "pip install -e '.[text]', or use .jsonl"
        ) from error
    return pyarrow, pyarrow.parquet


_READERS: dict[str, Callable[[Path, bytes], Rows]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_lines,
    ".json": _read_json,
}
SUFFIXES = (*_READERS, ".jsonl.gz", ".json.gz")
