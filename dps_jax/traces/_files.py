"""Reads and writes traces, and reads logs of trainers; see docs/traces.md for the formats."""

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
    """The rows of a file, before prompts that are texts get numbers; columns have shape [R]."""

    rounds: np.ndarray
    prompts: np.ndarray
    successes: np.ndarray
    counts: np.ndarray
    inclusion_prob: np.ndarray | None


def read_trace(path: Path | str, columns: ColumnNames | None = None, *, threshold: float | None = None) -> Trace:
    r"""Returns the trace in a file, or in a folder of files.

    A file ends in `.npz`, `.parquet`, `.csv`, `.jsonl`, `.csv.gz` or `.jsonl.gz`. It has one of two layouts:

    * a row per completion group, with columns `round`, `prompt_id`, `successes` and `count`, and optionally
      `inclusion_prob`;
    * a row per completion, as TRL and verl write it. The trace then has one row with a count of 1 per completion, and
      `replay.visits_of` adds up the completions of one prompt in one round.

    Text is UTF-8; the first line of a `.csv` file names the columns. `.parquet` needs pyarrow (the extra `parquet`).
    The files of a folder are read as one log. If the files have no column for the round, the last number in the name of
    a file is its round. If the folder has a file trace.npz, as the folder of a run of `experiments/train.py` does, only
    this file is read.

    If all prompts are integers, these are their ids. Otherwise prompts are texts or messages, and numbered in the order
    in which they first appear.

    Args:
      path: path of the file or folder.
      columns: names of the columns whose names differ from the defaults in `ColumnNames`.
      threshold: smallest reward of a correct completion, for logs with a row per completion. None expects rewards of 0
        and 1. Completions without a reward (null or NaN) are left out.

    Raises:
      ValueError: for another suffix, an empty or damaged file, a column that is missing or named twice, an invalid
        entry (not an integer, negative, NaN, successes above the count, a probability outside (0, 1], without a
        threshold a reward other than 0 and 1), a threshold for a log with a row per completion group, or a `.parquet`
        file if pyarrow is not installed. The message names the file.
      OSError: if a file cannot be read.

    Example:
      >>> from pathlib import Path
      >>> from dps_jax import traces
      >>> rows = ["step,prompt,reward", "0,1 + 1?,1.0", "0,1 + 1?,0.0", "0,2 * 3?,1.0"]
      >>> _ = Path("log.csv").write_text("\n".join(rows))
      >>> trace = traces.read_trace("log.csv")
      >>> trace.prompt_ids.tolist(), trace.successes.tolist()
      ([0, 0, 1], [1, 0, 1])
    """
    return read_named_trace(path, columns, threshold=threshold)[0]


def read_named_trace(
    path: Path | str, columns: ColumnNames | None = None, *, threshold: float | None = None
) -> tuple[Trace, list[str] | None]:
    r"""Returns the trace in a file or folder, and the text of each prompt; same arguments as `read_trace`.

    Returns:
      The trace, and the texts of the prompts, indexed by prompt id. The text of a prompt that is a list of messages is
      its JSON. The texts are None if the prompts of the log are integers.

    Raises:
      ValueError: see `read_trace`.
      OSError: if a file cannot be read.

    Example:
      >>> from pathlib import Path
      >>> from dps_jax import traces
      >>> rows = ["step,prompt,reward", "0,1 + 1?,1.0", "0,1 + 1?,0.0", "0,2 * 3?,1.0"]
      >>> _ = Path("log.csv").write_text("\n".join(rows))
      >>> trace, names = traces.read_named_trace("log.csv")
      >>> [names[prompt_id] for prompt_id in trace.prompt_ids]
      ['1 + 1?', '1 + 1?', '2 * 3?']
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
    """Returns the rows of one file; if `is_part`, the number in its name may be the round."""
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
    if layout.may_be_mixed or _layouts.are_texts(table.values[layout.prompt]):
        prompts = _layouts.prompt_keys(path, layout.prompt, table)
    else:
        prompts = read(layout.prompt, "integers (or only texts, none of them a number)")
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
            raise ValueError(
                f"{path}: threshold: expected None for a row per completion group, got {threshold}; leave it out"
            )
        successes, counts = read(layout.successes, "integers"), read(layout.count, "integers")
    is_text = prompts.dtype == object
    checked = checked_trace(
        path, [rounds, np.zeros(prompts.size, np.int64) if is_text else prompts, successes, counts], probs, lines=lines
    )
    # Rows are dropped only now, so that error messages can name the place of a row in the file.
    return _Rows(
        rounds=checked.rounds[is_there],
        prompts=(prompts if is_text else checked.prompt_ids)[is_there],
        successes=checked.successes[is_there],
        counts=checked.counts[is_there],
        inclusion_prob=None if checked.inclusion_prob is None else checked.inclusion_prob[is_there],
    )


def _without_blanks(values: np.ndarray) -> np.ndarray:
    """Returns the cells of a text file, with None for blank cells, which stand for missing rewards."""
    if values.dtype != object:
        return values
    found = np.empty(values.size, object)
    found[:] = [None if isinstance(value, str) and not value.strip() else value for value in values]
    return found


def _is_correct(
    path: Path, name: str, table: _tables.Columns, threshold: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns whether completions are correct, int64 [R], and whether they have a reward, bool [R]."""
    rewards = _layouts.numbers(path, name, _without_blanks(table.values[name]), table.lines, "numbers")
    if rewards.dtype.kind not in "iuf":
        raise ValueError(
            f"{path}: {name}: expected numbers or truth values, got dtype {rewards.dtype}; name another column"
        )
    rewards = rewards.astype(np.float64)
    is_there = ~np.isnan(rewards)
    if threshold is not None:
        return (rewards >= threshold).astype(np.int64), is_there
    is_bad = is_there & (rewards != 0) & (rewards != 1)
    if np.any(is_bad):
        row = int(np.argmax(is_bad))
        place = f"at position {row}" if table.lines is None else f"in line {table.lines[row]}"
        raise ValueError(
            f"{path}: {name}: expected 0 or 1, got {rewards[row]:g} {place}; set a threshold, the smallest "
            "reward of a correct completion, or name the column of correctness with --columns.success NAME"
        )
    return (rewards == 1).astype(np.int64), is_there


def _numbered(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, list[str] | None]:
    """Returns the ids of prompts, int64 [R], and their texts by id.

    Texts are numbered in the order in which they first appear. If all prompts are integers, these are the ids, and the
    texts are None.
    """
    if all(part.dtype != object for part in parts):
        return np.concatenate(parts).astype(np.int64), None
    places: dict[Any, int] = {}
    texts = (str(key) for part in parts for key in part.tolist())
    return np.array([places.setdefault(text, len(places)) for text in texts], np.int64), list(places)


def write_trace(path: Path | str, trace: Trace) -> None:
    """Writes a trace to an `.npz`, `.parquet` or `.csv` file, atomically.

    The column `inclusion_prob` is written if the trace has inclusion probabilities. `.parquet` needs the extra
    `parquet`.

    Args:
      path: path of the file; its suffix determines the format.
      trace: rows in any order.

    Raises:
      ValueError: for another suffix, for a `.parquet` file if pyarrow is not installed, or for a trace that
        `read_trace` would reject. No file is written then.
      OSError: if the file cannot be written. A file that was there before is unchanged.

    Example:
      >>> from pathlib import Path
      >>> import numpy as np
      >>> from dps_jax import traces
      >>> columns = {"rounds": [0, 0, 1], "prompt_ids": [7, 3, 7], "successes": [2, 8, 5], "counts": [8, 8, 8]}
      >>> trace = traces.Trace(**{name: np.array(column) for name, column in columns.items()})
      >>> traces.write_trace("trace.csv", trace)
      >>> print(Path("trace.csv").read_text())
      round,prompt_id,successes,count
      0,7,2,8
      0,3,8,8
      1,7,5,8
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
