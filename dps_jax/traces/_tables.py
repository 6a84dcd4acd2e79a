"""Reads columns of files in the format that their suffix names.

The formats are `.npz`, `.parquet`, `.csv` and `.jsonl`; the last two may be compressed, as `.csv.gz` and `.jsonl.gz`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from dps_jax import _npz


class Columns(NamedTuple):
    """Some columns of a file.

    Attributes:
      values: entries of each column, [R], by its name: an array of numbers, or of objects (text, lists, None, ...).
      lines: line of each row in a text file, [R]; None for other files.
    """

    values: dict[str, np.ndarray]
    lines: Sequence[int] | None


# (names of the columns in the file) -> names of the columns to read; raises a ValueError if some are missing.
Choose = Callable[[Sequence[str]], Sequence[str]]
_Read = Callable[[Path, bytes, str, Choose], Columns]


class ColumnError(ValueError):
    """An error whose message is complete, raised while another library reads a file; it is passed on unchanged."""


def read_columns(path: Path, expected: str, choose: Choose) -> Columns:
    """Returns some columns of a file.

    Args:
      path: path of the file.
      expected: description of the file for error messages, after the word "expected".
      choose: function that chooses the columns, see `Choose`.

    Raises:
      ValueError: for another suffix, an empty or damaged file, or a `.parquet` file if pyarrow is not installed; the
        message names the file. Errors of `choose` are passed on.
      OSError: if the file cannot be read.
    """
    suffix = suffix_of(path)
    content = path.read_bytes()
    if not content.strip():
        raise ValueError(f"{path}: expected {expected}, got an empty file; write it again or restore it")
    if suffix.endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(path, expected, error) from error
    return _READERS[suffix.removesuffix(".gz")](path, content, expected, choose)


def suffix_of(path: Path, known: Sequence[str] | None = None) -> str:
    """Returns the suffix of a file, in lower case.

    Raises:
      ValueError: if the suffix is not known; by default, the known suffixes are those that can be read.
    """
    known, name = SUFFIXES if known is None else known, path.name.lower()
    for suffix in known:
        if name.endswith(suffix):
            return suffix
    raise ValueError(
        f"{path}: expected a file that ends in one of {', '.join(known)}, got {path.suffix!r}; rename or convert it"
    )


def import_pyarrow(path: Path) -> tuple[ModuleType, ModuleType]:
    """Returns pyarrow and pyarrow.parquet.

    Raises:
      ValueError: if pyarrow is not installed; the message contains the remedy.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            f"{path}: expected pyarrow to be installed, to read and write .parquet, got none; "
            "pip install 'pyarrow>=16' (the extra `parquet`), or use .npz or .csv"
        ) from error
    return pyarrow, pyarrow.parquet


def _damaged(path: Path, expected: str, error: BaseException) -> ValueError:
    return ValueError(
        f"{path}: expected {expected}, got a file that is damaged or not {suffix_of(path)} ({error}); write it again "
        "or restore it"
    )


def _read_npz(path: Path, content: bytes, expected: str, choose: Choose) -> Columns:
    return Columns(_npz.read(path, io.BytesIO(content), expected, choose), None)


def _read_parquet(path: Path, content: bytes, expected: str, choose: Choose) -> Columns:
    pyarrow, parquet = import_pyarrow(path)
    try:
        with parquet.ParquetFile(pyarrow.BufferReader(content), page_checksum_verification=True) as file:
            names = choose(file.schema_arrow.names)
            table = file.read(columns=list(names))
        is_number = lambda kind: pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)
        values = {}
        for name in names:
            column = table.column(name)
            # A null among numbers becomes a NaN.
            values[name] = column.to_numpy() if is_number(column.type) else as_objects(column.to_pylist())
    except ColumnError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        raise _damaged(path, expected, error) from error
    return Columns(values, None)


def _read_csv(path: Path, content: bytes, expected: str, choose: Choose) -> Columns:
    # Completions may be longer than the largest cell that the module csv reads by default.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        # Spreadsheet programs write a byte-order mark first.
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        header = [name.strip() for name in next(reader, [])]
        names = choose(header)
        places = [header.index(name) for name in names]
        lines: list[int] = []
        cells: list[list[str]] = [[] for _ in names]
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise ColumnError(
                    f"{path}: expected {len(header)} cells in a line, as in the first, got {len(row)} in line "
                    f"{reader.line_num}; correct the line or leave it out"
                )
            lines.append(reader.line_num)
            for column, place in zip(cells, places, strict=True):
                column.append(row[place])
    except (csv.Error, UnicodeDecodeError) as error:
        raise _damaged(path, expected, error) from error
    finally:
        csv.field_size_limit(limit)
    return Columns({name: as_objects(column) for name, column in zip(names, cells, strict=True)}, lines)


def _read_jsonl(path: Path, content: bytes, expected: str, choose: Choose) -> Columns:
    names: Sequence[str] = ()
    lines: list[int] = []
    cells: list[list[Any]] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _bad_line(path, number, f"a JSON object, got {line[:40]!r} ({error})") from error
        if not isinstance(row, dict):
            raise _bad_line(path, number, f"a JSON object, got {line[:40]!r}")
        if not lines:
            names = choose(list(row))
            cells = [[] for _ in names]
        missing = [name for name in names if name not in row]
        if missing:
            raise _bad_line(path, number, f"the keys of the first line, got no {missing[0]!r}")
        lines.append(number)
        for column, name in zip(cells, names, strict=True):
            column.append(row[name])
    return Columns({name: as_objects(column) for name, column in zip(names, cells, strict=True)}, lines)


def _bad_line(path: Path, number: int, what: str) -> ValueError:
    return ValueError(f"{path}: expected {what} in line {number}; correct it or leave the line out")


def as_objects(values: Sequence[Any]) -> np.ndarray:
    """Returns an array of objects [R], whose entries may be lists."""
    array = np.empty(len(values), object)
    for row, value in enumerate(values):
        array[row] = value
    return array


_READERS: dict[str, _Read] = {
    ".npz": _read_npz,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
}
SUFFIXES = (*_READERS, ".csv.gz", ".jsonl.gz")
