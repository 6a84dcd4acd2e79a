"""Files of traces: `.npz`, `.parquet` and `.csv`, told apart by their suffix.

Each has the columns round, prompt_id, successes and count, integers, and perhaps inclusion_prob; others are ignored.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from dps_jax import _files
from dps_jax.traces.format import COLUMNS, OPTIONAL_COLUMN, Trace, checked_trace

_EXPECTED = f"expected a trace with columns {', '.join(COLUMNS)}"


def read_trace(path: Path | str) -> Trace:
    """Returns the trace in an `.npz`, `.parquet` or `.csv` file.

    A `.csv` file is comma-separated UTF-8, with the names of the columns in the first line. `.parquet` needs the
    extra `parquet`.

    Raises:
      ValueError: for another suffix, an empty or damaged file, a column that is missing or named twice, or an entry
        that no trace has (not whole, negative, NaN, successes above the count, a probability outside (0, 1]); or
        without pyarrow, for a `.parquet` file.
      OSError: if the file cannot be read.
    """
    path = Path(path)
    read, _ = _format_of(path)
    content = path.read_bytes()
    if not content.strip():
        raise ValueError(f"{path}: {_EXPECTED}, got an empty file; write it again or restore it")
    return read(path, content)


def write_trace(path: Path | str, trace: Trace) -> None:
    """Writes a trace to an `.npz`, `.parquet` or `.csv` file, atomically.

    The column inclusion_prob is written where the trace has it. `.parquet` needs the extra `parquet`.

    Raises:
      ValueError: for another suffix, without pyarrow, or for a trace that `read_trace` would refuse; no file is
        written.
      OSError: if the disk is full; the file is as it was.
    """
    path = Path(path)
    _, to_bytes = _format_of(path)
    *columns, inclusion_prob = Trace(*trace)
    checked = checked_trace("trace", columns, inclusion_prob)
    named = zip((*COLUMNS, OPTIONAL_COLUMN), checked, strict=True)
    _files.write_atomically(path, to_bytes(path, {name: column for name, column in named if column is not None}))


def _read_npz(path: Path, content: bytes) -> Trace:
    try:
        # From memory: NumPy leaves a damaged file open.
        with np.load(io.BytesIO(content)) as file:
            names = _checked_names(path, file.files)
            arrays = {name: file[name] for name in names}
    except _ColumnError:
        raise
    except _files.DAMAGED_NPZ as error:
        raise _damaged(path, error) from error
    return checked_trace(path, [arrays[name] for name in COLUMNS], arrays.get(OPTIONAL_COLUMN))


def _npz_bytes(path: Path, columns: dict[str, np.ndarray]) -> bytes:
    del path
    content = io.BytesIO()
    np.savez_compressed(content, **columns)  # pyright: ignore[reportArgumentType]
    return content.getvalue()


def _read_parquet(path: Path, content: bytes) -> Trace:
    pyarrow, parquet = _pyarrow(path)
    try:
        with parquet.ParquetFile(pyarrow.BufferReader(content), page_checksum_verification=True) as file:
            names = _checked_names(path, file.schema_arrow.names)
            table = file.read(columns=names)
        # A null becomes a NaN, which is refused below.
        arrays = {name: table.column(name).to_numpy() for name in names}
    except _ColumnError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return checked_trace(path, [arrays[name] for name in COLUMNS], arrays.get(OPTIONAL_COLUMN))


def _parquet_bytes(path: Path, columns: dict[str, np.ndarray]) -> bytes:
    pyarrow, parquet = _pyarrow(path)
    content = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), content, write_page_checksum=True)
    return content.getvalue()


def _pyarrow(path: Path) -> tuple[ModuleType, ModuleType]:
    """Returns pyarrow and pyarrow.parquet."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            f"{path}: expected pyarrow to be installed, which reads and writes .parquet, got none; "
            "pip install 'dps-jax[parquet]', or use .npz or .csv"
        ) from error
    return pyarrow, pyarrow.parquet


def _read_csv(path: Path, content: bytes) -> Trace:
    try:
        # Spreadsheets put a byte-order mark first.
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        header = [name.strip() for name in next(reader, [])]
        names = _checked_names(path, header)
        places = [header.index(name) for name in names]
        lines: list[int] = []
        cells: list[list[str]] = [[] for _ in names]
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise _ColumnError(
                    f"{path}: expected {len(header)} cells in a line, as in the first, got {len(row)} in line "
                    f"{reader.line_num}; correct the line or leave it out"
                )
            lines.append(reader.line_num)
            for column, place in zip(cells, places, strict=True):
                column.append(row[place])
    except (csv.Error, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error
    arrays = {name: _numbers(path, name, column, lines) for name, column in zip(names, cells, strict=True)}
    return checked_trace(path, [arrays[name] for name in COLUMNS], arrays.get(OPTIONAL_COLUMN), lines=lines)


def _numbers(path: Path, name: str, cells: Sequence[str], lines: Sequence[int]) -> np.ndarray:
    """Returns the numbers in text, float64 [M], or int64 [M] where all are whole."""
    numbers = np.empty(len(cells))
    for row, cell in enumerate(cells):
        try:
            if "_" in cell:  # Python would read 1_000.
                raise ValueError(cell)
            numbers[row] = float(cell)
        except ValueError:
            what = "numbers" if name == OPTIONAL_COLUMN else "integers"
            raise ValueError(
                f"{path}: {name}: expected {what}, got {cell!r} in line {lines[row]}; correct it or leave the line out"
            ) from None
    # So that messages show -1 as it stands in the file; what is beyond 2**53 is refused anyway.
    is_whole = np.all(np.isfinite(numbers)) and np.all(np.abs(numbers) < 2**53) and np.all(numbers == np.rint(numbers))
    return numbers.astype(np.int64) if is_whole else numbers


def _csv_bytes(path: Path, columns: dict[str, np.ndarray]) -> bytes:
    del path
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
    return text.getvalue().encode()


class _ColumnError(ValueError):
    """An error that already says what to do, raised while a library reads."""


def _checked_names(path: Path, names: Sequence[str]) -> list[str]:
    """Returns the names of the columns to read."""
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        separator = ", with commas between cells" if path.suffix.lower() == ".csv" else ""
        raise _ColumnError(
            f"{path}: {_EXPECTED}, got no {missing[0]!r} among {', '.join(map(repr, names)) or 'none'}; "
            f"add the column, or rename the one that holds it{separator}"
        )
    used = [name for name in (*COLUMNS, OPTIONAL_COLUMN) if name in names]
    repeated = [name for name in used if list(names).count(name) > 1]
    if repeated:
        raise _ColumnError(f"{path}: expected one column {repeated[0]!r}, got several; rename or remove the others")
    return used


def _damaged(path: Path, error: BaseException) -> ValueError:
    return ValueError(
        f"{path}: {_EXPECTED}, got a file that is damaged or no {path.suffix} ({_files.damage(error)}); "
        "write it again or restore it"
    )


_Read = Callable[[Path, bytes], Trace]
_ToBytes = Callable[[Path, dict[str, np.ndarray]], bytes]
_FORMATS: dict[str, tuple[_Read, _ToBytes]] = {
    ".npz": (_read_npz, _npz_bytes),
    ".parquet": (_read_parquet, _parquet_bytes),
    ".csv": (_read_csv, _csv_bytes),
}


def _format_of(path: Path) -> tuple[_Read, _ToBytes]:
    """Returns how files of a suffix are read and written."""
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise ValueError(
            f"{path}: expected a file that ends in one of {', '.join(_FORMATS)}, got {path.suffix!r}; "
            "rename or convert it"
        )
    return _FORMATS[suffix]
