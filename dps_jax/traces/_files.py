"""Files of traces and logs of trainers, recognised by their suffix and their columns; docs/traces.md lists them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dps_jax import _checks, _files
from dps_jax.traces import _layouts, _tables
from dps_jax.traces._format import COLUMNS, OPTIONAL_COLUMN, Trace, checked_trace
from dps_jax.traces._layouts import ColumnNames, Layout


class _Rows(NamedTuple):
    """What a file holds, before texts are numbered: columns [R]."""

    rounds: np.ndarray
    prompts: np.ndarray
    successes: np.ndarray
    counts: np.ndarray
    inclusion_prob: np.ndarray | None


def read_trace(path: Path | str, columns: ColumnNames | None = None, *, threshold: float | None = None) -> Trace:
    """Returns the trace in a file, or in a folder of files.

    A file ends in `.npz`, `.parquet`, `.csv`, `.jsonl`, `.csv.gz` or `.jsonl.gz`. It has a row per group of
    completions, with columns round, prompt_id, successes and count and perhaps inclusion_prob, or a row per completion,
    as TRL and verl write it; then every row is a group of one, which whoever uses the trace adds up. Text is UTF-8, the
    first line of `.csv` has the names of the columns. `.parquet` needs pyarrow, the extra `parquet`. The files of a
    folder are one log; in files without a column for the round it is the number in the file's name. A folder that a run
    of `experiments/train.py` wrote has its trace in trace.npz.

    Prompts that are texts or messages are numbered in the order in which they first appear; integers are kept.

    Args:
      path: of the file or folder.
      columns: names of columns, where they are not those that trainers use.
      threshold: completions with a reward of at least this are correct. None: rewards are 0 or 1. Completions without
        a reward (null or NaN) are left out.

    Raises:
      ValueError: for another suffix, an empty or damaged file, a column that is missing or named twice, or an entry
        that no trace has (not whole, negative, NaN, successes above the count, a probability outside (0, 1]); or
        without pyarrow, for a `.parquet` file. The message names the file.
      OSError: if a file cannot be read.
    """
    return read_named_trace(path, columns, threshold=threshold)[0]


def read_named_trace(
    path: Path | str, columns: ColumnNames | None = None, *, threshold: float | None = None
) -> tuple[Trace, list[str] | None]:
    """Returns what `read_trace` does, and the texts that name the prompts, by id; None where the log has integers.

    Messages are named by their JSON text.

    Raises:
      ValueError: as `read_trace`.
      OSError: if a file cannot be read.
    """
    path, columns = Path(path), ColumnNames() if columns is None else columns
    _checks.check_instance("columns", columns, ColumnNames)
    if threshold is not None:
        threshold = _checks.check_number("threshold", threshold)
    files = _files_of(path) if path.is_dir() else [path]
    parts = [_read_rows(file, columns, threshold, is_part=path.is_dir()) for file in files]
    probs = [part.inclusion_prob for part in parts if part.inclusion_prob is not None]
    prompt_ids, names = _numbered([part.prompts for part in parts])
    trace = Trace(
        np.concatenate([part.rounds for part in parts]),
        prompt_ids,
        np.concatenate([part.successes for part in parts]),
        np.concatenate([part.counts for part in parts]),
        inclusion_prob=np.concatenate(probs) if len(probs) == len(parts) else None,
    )
    return trace, names


def _files_of(folder: Path) -> list[Path]:
    """Returns the files of a log, in order of the numbers in their names."""
    if (folder / "trace.npz").is_file():
        return [folder / "trace.npz"]
    by_number = lambda path: ([int(digits) for digits in re.findall(r"\d+", path.name)], path.name)
    is_part = lambda path: path.is_file() and not path.name.startswith(".") and path.name.endswith(_tables.SUFFIXES)
    files = sorted(filter(is_part, folder.iterdir()), key=by_number)
    if not files:
        raise ValueError(
            f"{folder}: expected a folder with trace.npz, or with files that end in one of "
            f"{', '.join(_tables.SUFFIXES)}, got none; name the folder that holds them"
        )
    return files


def _read_rows(path: Path, names: ColumnNames, threshold: float | None, *, is_part: bool) -> _Rows:
    """Returns the rows of one file; the name of one of several may give the round."""
    number = re.findall(r"\d+", path.name.split(".")[0])[-1:] if is_part else []
    chosen: list[Layout] = []

    def choose(found: Sequence[str]) -> list[str]:
        chosen.append(_layouts.choose_layout(path, names, found, has_number=bool(number)))
        return chosen[0].columns

    table = _tables.read_columns(path, _layouts.EXPECTED, choose)
    if not chosen:
        raise ValueError(f"{path}: expected {_layouts.EXPECTED}, got no row; leave the file out")
    layout, lines = chosen[0], table.lines
    read = lambda name, what: _layouts.numbers(path, name, table.values[name], lines, what)
    prompts = (
        _layouts.prompt_keys(path, layout.prompt, table) if layout.may_be_text else read(layout.prompt, "integers")
    )
    if layout.round is None:
        rounds = np.full(prompts.size, int(number[0]))
    else:
        rounds = read(layout.round, "integers")
    probs = None if layout.inclusion_prob is None else read(layout.inclusion_prob, "numbers")
    is_there = np.ones(prompts.size, bool)
    if layout.successes is None or layout.count is None:
        successes, is_there = _is_correct(path, str(layout.success), table, threshold)
        counts = np.ones(successes.size, np.int64)
    else:
        if threshold is not None:
            raise ValueError(f"{path}: threshold: expected None for a row per group, got {threshold}; leave it out")
        successes, counts = read(layout.successes, "integers"), read(layout.count, "integers")
    is_text = prompts.dtype == object
    checked = checked_trace(
        path, [rounds, np.zeros(prompts.size, np.int64) if is_text else prompts, successes, counts], probs, lines=lines
    )
    # Left out only now, so that messages name the places that rows have in the file.
    return _Rows(
        rounds=checked.rounds[is_there],
        prompts=(prompts if is_text else checked.prompt_ids)[is_there],
        successes=checked.successes[is_there],
        counts=checked.counts[is_there],
        inclusion_prob=None if checked.inclusion_prob is None else checked.inclusion_prob[is_there],
    )


def _without_blanks(values: np.ndarray) -> np.ndarray:
    """Returns entries of a text file with None for blank ones, as what has no reward is written there."""
    if values.dtype != object:
        return values
    found = np.empty(values.size, object)
    found[:] = [None if isinstance(value, str) and not value.strip() else value for value in values]
    return found


def _is_correct(
    path: Path, name: str, table: _tables.Columns, threshold: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns whether completions are correct, int64 [R], and which have a reward at all, bool [R]."""
    rewards = _layouts.numbers(path, name, _without_blanks(table.values[name]), table.lines, "numbers")
    if rewards.dtype.kind not in "iuf":
        raise ValueError(f"{path}: {name}: expected numbers or truth values, got dtype {rewards.dtype}; name another")
    rewards = rewards.astype(np.float64)
    is_there = ~np.isnan(rewards)
    if threshold is not None:
        return (rewards >= threshold).astype(np.int64), is_there
    is_bad = is_there & (rewards != 0) & (rewards != 1)
    if np.any(is_bad):
        row = int(np.argmax(is_bad))
        place = f"at position {row}" if table.lines is None else f"in line {table.lines[row]}"
        raise ValueError(
            f"{path}: {name}: expected 0 or 1, got {rewards[row]:g} {place}; set a threshold from which on a reward "
            "stands for a correct completion, or name a column that says so, as columns.success"
        )
    return (rewards == 1).astype(np.int64), is_there


def _numbered(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, list[str] | None]:
    """Returns ids of prompts, int64 [R], and their texts, which are numbered in the order in which they first appear.

    Integers are kept, and there are no texts.
    """
    if all(part.dtype != object for part in parts):
        return np.concatenate(parts).astype(np.int64), None
    places: dict[Any, int] = {}
    texts = (str(key) for part in parts for key in part.tolist())
    return np.array([places.setdefault(text, len(places)) for text in texts], np.int64), list(places)


def write_trace(path: Path | str, trace: Trace) -> None:
    """Writes a trace to an `.npz`, `.parquet` or `.csv` file, atomically.

    The column inclusion_prob is written where the trace has it. `.parquet` needs the extra `parquet`.

    Raises:
      ValueError: for another suffix, without pyarrow, or for a trace that `read_trace` would refuse; no file is
        written.
      OSError: if the disk is full; the file is as it was.
    """
    path = Path(path)
    to_bytes = _WRITERS[_tables.suffix_of(path, tuple(_WRITERS))]
    *columns, inclusion_prob = Trace(*trace)
    checked = checked_trace("trace", columns, inclusion_prob)
    named = zip((*COLUMNS, OPTIONAL_COLUMN), checked, strict=True)
    _files.write_atomically(path, to_bytes(path, {name: column for name, column in named if column is not None}))


def _npz_bytes(path: Path, columns: dict[str, np.ndarray]) -> bytes:
    del path
    content = io.BytesIO()
    np.savez_compressed(content, **columns)  # pyright: ignore[reportArgumentType]
    return content.getvalue()


def _parquet_bytes(path: Path, columns: dict[str, np.ndarray]) -> bytes:
    pyarrow, parquet = _tables.import_pyarrow(path)
    content = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), content, write_page_checksum=True)
    return content.getvalue()


def _csv_bytes(path: Path, columns: dict[str, np.ndarray]) -> bytes:
    del path
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
    return text.getvalue().encode()


_WRITERS: dict[str, Callable[[Path, dict[str, np.ndarray]], bytes]] = {
    ".npz": _npz_bytes,
    ".parquet": _parquet_bytes,
    ".csv": _csv_bytes,
}
