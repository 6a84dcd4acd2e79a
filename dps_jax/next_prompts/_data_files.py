"""Data files with a row per prompt: reading the names of prompts, and writing some rows with all their columns."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dps_jax import _files
from dps_jax.integrations import _fingerprints
from dps_jax.traces import _layouts, _tables

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz")
_EXPECTED = "a row per prompt"
_LONGEST_KEY = 64


class PromptFile(NamedTuple):
    """A data file.

    Attributes:
      path: path of the file.
      table: a pyarrow table, or the lines of a text file, [N].
      names: distinct names of the prompts, [N]; the numbers of the rows if no column has names.
      texts: part of each prompt that a chat template would surround, [N]: the name of the prompt, or the content of its
        last message; empty if no column has names.
      has_key: whether a column has the names of the prompts.
      fingerprint: short checksum of the rows, by which a changed file is recognised.
    """

    path: Path
    table: Any
    names: list[str]
    texts: list[str]
    has_key: bool
    fingerprint: str

    def __len__(self) -> int:
        return len(self.names)

    @property
    def keys(self) -> list[str] | None:
        """The names of the prompts, long ones as checksums, [N]; None if no column has names."""
        digest = lambda name: hashlib.sha256(name.encode()).hexdigest()
        return [name if len(name) < _LONGEST_KEY else digest(name) for name in self.names] if self.has_key else None


class _Rows:
    """The rows of a table as a sequence of mappings, for the fingerprint."""

    def __init__(self, table: Any):
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        if isinstance(self._table, list):
            return {"line": self._table[row]}
        return self._table.slice(row, 1).to_pylist()[0]


def read(path: Path, key: str | None) -> PromptFile:
    """Returns the contents of a data file.

    Args:
      path: path of the file, which ends in one of `SUFFIXES`.
      key: column with the names of the prompts: integers, texts or messages; None uses the numbers of the rows.

    Raises:
      ValueError: for an unsupported suffix, a damaged file, a file without rows, a .parquet file without pyarrow, an
        unknown column, or names that are missing or not distinct; the message names the file.
      OSError: if the file cannot be read.
    """
    _tables.suffix_of(path, SUFFIXES)

    def choose(names: Sequence[str]) -> list[str]:
        if key is not None and key not in names:
            listed = ", ".join(map(repr, list(names)[:20]))
            raise _tables.ColumnError(f"{path}: key: expected a column of the file, one of {listed}, got {key!r}")
        return [] if key is None else [key]

    columns = _tables.read_columns(path, _EXPECTED, choose)
    table = _whole_table(path) if columns.lines is None else _lines(path, columns.lines)
    if len(table) == 0:
        raise ValueError(f"{path}: expected {_EXPECTED}, got none; write it again or restore it")
    fingerprint = _fingerprints.fingerprint(_Rows(table))
    if key is None:
        names = [str(row) for row in range(len(table))]
        return PromptFile(path, table, names, texts=[], has_key=False, fingerprint=fingerprint)
    names = [str(name) for name in _layouts.prompt_keys(path, key, columns).tolist()]
    _check_distinct(path, key, names)
    texts = [_text(value, name) for value, name in zip(columns.values[key].tolist(), names, strict=True)]
    return PromptFile(path, table, names, texts, has_key=True, fingerprint=fingerprint)


def _whole_table(path: Path) -> Any:
    pyarrow, parquet = _tables.import_pyarrow(path)
    try:
        return parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, ValueError) as error:
        raise ValueError(f"{path}: expected {_EXPECTED}, got a damaged file ({error}); write it again") from error


def _lines(path: Path, numbers: Sequence[int]) -> list[bytes]:
    content = path.read_bytes()
    lines = (gzip.decompress(content) if path.name.lower().endswith(".gz") else content).split(b"\n")
    return [lines[number - 1] for number in numbers]


def _check_distinct(path: Path, key: str, names: Sequence[str]) -> None:
    places: dict[str, int] = {}
    for row, name in enumerate(names):
        first = places.setdefault(name, row)
        if first != row:
            raise ValueError(
                f"{path}: {key}: expected a name of its own for every row, got {name[:60]!r} in rows {first} and {row} "
                "(the first is 0); leave repeats out, or name as --key a column that differs in every row"
            )


def _text(value: Any, name: str) -> str:
    """Returns the content of the last message of a prompt, or the name of a prompt that is not messages, stripped."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        value = value[-1].get("content")
        return value.strip() if isinstance(value, str) else ""
    return name.strip()


def check_columns(file: PromptFile, names: Sequence[str]) -> None:
    """Raises ValueError if a file already has a column with one of these names."""
    first = json.loads(file.table[0]) if isinstance(file.table, list) else file.table.column_names
    taken = [name for name in names if name in first]
    if taken:
        raise ValueError(
            f"{file.path}: with_predictions: expected a file without a column {taken[0]!r}, got one with it; rename "
            "the column, or leave --with-predictions out"
        )


def write(path: Path, file: PromptFile, ids: np.ndarray, more: Mapping[str, np.ndarray]) -> None:
    """Writes some rows of a data file to another file of the same format, in the given order, atomically.

    Args:
      path: path of the new file.
      file: data file with the rows.
      ids: numbers of the rows to write, in order, int [B].
      more: columns to add, by name, float [B] each.

    Raises:
      OSError: if the file cannot be written; an existing file is not changed.
    """
    if not isinstance(file.table, list):
        pyarrow, parquet = _tables.import_pyarrow(path)
        table = file.table.take(pyarrow.array(ids))
        for name, values in more.items():
            table = table.append_column(name, pyarrow.array(values))
        with _files.atomic(path) as stream:
            parquet.write_table(table, stream, write_page_checksum=True)
        return
    lines = [file.table[row].rstrip(b"\r") for row in ids]
    if more:
        columns = {name: values.astype(float).round(6).tolist() for name, values in more.items()}
        added = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        rows = [json.loads(line) | extra for line, extra in zip(lines, added, strict=True)]
        lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    content = b"".join(line + b"\n" for line in lines)
    is_compressed = path.name.lower().endswith(".gz")
    _files.write_atomically(path, gzip.compress(content, mtime=0) if is_compressed else content)
