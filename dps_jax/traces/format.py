"""The trace of a run, one row per group of completions, and its file: `.npz` with four columns of integers."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dps_jax import _checks, _files


class Trace(NamedTuple):
    """Which prompt was rolled out when, and how often it was solved, int32 [M] each, in order of time.

    Attributes:
      rounds: in which the prompt was rolled out, >= 0.
      prompt_ids: of the prompt, >= 0.
      successes: completions that were correct, in [0, counts].
      counts: completions, >= 1.
    """

    rounds: np.ndarray
    prompt_ids: np.ndarray
    successes: np.ndarray
    counts: np.ndarray


_COLUMNS = ("round", "prompt_id", "successes", "count")
_LARGEST = np.iinfo(np.int32).max


def checked_trace(source: object, columns: Sequence[Any]) -> Trace:
    """Returns the columns round, prompt_id, successes and count as a trace.

    Args:
      source: what messages begin with: a file, or the name of an argument.
      columns: whole numbers, [M] each.

    Raises:
      ValueError: for columns of different lengths, a NaN, a number that is not whole, negative or beyond int32, a
        count of 0, or successes above the count.
    """
    arrays = [np.asarray(column) for column in columns]
    if len({array.shape for array in arrays}) != 1 or arrays[0].ndim != 1:
        raise ValueError(f"{source}: expected columns of one length, got {[array.shape for array in arrays]}")
    for name, array in zip(_COLUMNS, arrays, strict=True):
        with np.errstate(invalid="ignore"):  # A float beyond int64 is refused below.
            _checks.check_integer_array(f"{source}: {name}", array)
        smallest = int(name == "count")
        is_bad = (array < smallest) | (array > _LARGEST)
        if np.any(is_bad):
            position = int(np.argmax(is_bad))
            raise ValueError(
                f"{source}: {name}: expected values in [{smallest}, {_LARGEST}], got {array[position]} "
                f"at position {position}"
            )
    trace = Trace(*(array.astype(np.int32) for array in arrays))
    is_bad = trace.successes > trace.counts
    if np.any(is_bad):
        position = int(np.argmax(is_bad))
        raise ValueError(
            f"{source}: successes: expected values in [0, count], got {trace.successes[position]} of "
            f"{trace.counts[position]} at position {position}"
        )
    return trace


def read_trace(path: Path | str) -> Trace:
    """Returns the trace in an `.npz` file.

    Raises:
      ValueError: if the file is no trace, or has an entry that no trace has.
    """
    try:
        # From memory: NumPy leaves a damaged file open.
        with np.load(io.BytesIO(Path(path).read_bytes())) as columns:
            arrays = [columns[name] for name in _COLUMNS]
    except (KeyError, EOFError, TypeError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected a trace with columns {', '.join(_COLUMNS)}, got {error}") from error
    return checked_trace(path, arrays)


def write_trace(path: Path | str, trace: Trace) -> None:
    """Writes a trace to an `.npz` file, atomically.

    Raises:
      ValueError: for a trace that `read_trace` would refuse; no file is written.
      OSError: if the disk is full; the file is as it was.
    """
    content = io.BytesIO()
    np.savez_compressed(content, **dict(zip(_COLUMNS, checked_trace("trace", trace), strict=True)))
    _files.write_atomically(path, content.getvalue())
