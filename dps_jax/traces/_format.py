"""The trace of a run: one row per group of completions, in columns that are checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

COLUMNS = ("round", "prompt_id", "successes", "count")
OPTIONAL_COLUMN = "inclusion_prob"
# Ids may be hashes of 63 bits; beyond 2**53 not as floats, which would merge some of them.
_LARGEST = {name: np.iinfo(np.int64 if name == "prompt_id" else np.int32).max for name in COLUMNS}
_LARGEST_EXACT_FLOAT = 2**53
_REMEDY = "correct it or leave the row out"


class Trace(NamedTuple):
    """Which prompt was rolled out when, and how often it was solved, in order of time.

    Attributes:
      rounds: in which the prompt was rolled out, int32 [R], >= 0.
      prompt_ids: of the prompt, int64 [R], >= 0; any numbers, also hashes.
      successes: completions that were correct, int32 [R], in [0, counts].
      counts: completions, int32 [R], >= 1.
      inclusion_prob: with which the prompt was in that round, float64 [R], in (0, 1], or None where it was not logged.
    """

    rounds: np.ndarray
    prompt_ids: np.ndarray
    successes: np.ndarray
    counts: np.ndarray
    inclusion_prob: np.ndarray | None = None

    def take(self, rows: Any) -> Trace:
        """Returns the rows at positions [P] or under a mask [R]."""
        inclusion_prob = None if self.inclusion_prob is None else self.inclusion_prob[rows]
        return Trace(*(column[rows] for column in self[:4]), inclusion_prob=inclusion_prob)


def concatenate(parts: Iterable[Trace]) -> Trace:
    """Returns the rows of all parts, one part after another; without inclusion_prob if a part with rows lacks it."""
    parts = list(parts)
    # Parts without rows do not decide whether inclusion_prob is kept.
    parts = [part for part in parts if part.rounds.size] or parts[:1]
    if not parts:
        return Trace(*(np.zeros(0, _dtype(name)) for name in COLUMNS))
    columns = [np.concatenate(column) for column in zip(*(part[:4] for part in parts), strict=True)]
    probs = [part.inclusion_prob for part in parts if part.inclusion_prob is not None]
    return Trace(*columns, inclusion_prob=np.concatenate(probs) if len(probs) == len(parts) else None)


def checked_trace(
    source: object, columns: Sequence[Any], inclusion_prob: Any = None, *, lines: Sequence[int] | None = None
) -> Trace:
    """Returns the columns round, prompt_id, successes and count, and perhaps inclusion_prob, as a trace.

    Args:
      source: what messages begin with: a file, or the name of an argument.
      columns: whole numbers, [R] each.
      inclusion_prob: probabilities, [R], or None.
      lines: where the rows are in a text file, [R]; messages name positions where there are none.

    Raises:
      ValueError: for columns of different lengths, a NaN, a number that is not whole, negative or beyond int32 (int64
        for ids), a count of 0, successes above the count, or an inclusion_prob outside (0, 1].
    """
    arrays: dict[str, np.ndarray] = dict(zip(COLUMNS, map(np.asarray, columns), strict=True))
    if inclusion_prob is not None:
        arrays[OPTIONAL_COLUMN] = np.asarray(inclusion_prob)
    if len({array.shape for array in arrays.values()}) != 1 or arrays["round"].ndim != 1:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise ValueError(f"{source}: expected columns of one length, got {shapes}; write one value per row")
    probs = arrays.pop(OPTIONAL_COLUMN, None)
    trace = Trace(
        *(_whole_numbers(source, name, array, lines) for name, array in arrays.items()),
        inclusion_prob=None if probs is None else _probs(source, probs, lines),
    )
    _refuse(
        trace.successes > trace.counts,
        lines,
        lambda row: (
            f"{source}: successes: expected values in [0, count], got {trace.successes[row]} of {trace.counts[row]}"
        ),
    )
    return trace


def _dtype(name: str) -> type[np.integer]:
    return np.int64 if name == "prompt_id" else np.int32


def _whole_numbers(source: object, name: str, array: np.ndarray, lines: Sequence[int] | None) -> np.ndarray:
    """Returns a column as integers [R]."""
    dtype, largest = _dtype(name), _LARGEST[name]
    if array.size == 0:
        return np.zeros(0, dtype)
    if array.dtype.kind not in "iuf":
        raise ValueError(
            f"{source}: {name}: expected integers, got dtype {array.dtype} (the first is {array.tolist()[0]!r}); "
            "write the column as integers"
        )
    if array.dtype.kind == "f":
        _refuse(
            ~np.isfinite(array) | (array != np.floor(array)),
            lines,
            lambda row: f"{source}: {name}: expected whole numbers, got {array[row]}",
        )
        largest = min(largest, _LARGEST_EXACT_FLOAT)
    smallest = int(name == "count")
    _refuse(
        (array < smallest) | (array > largest),
        lines,
        lambda row: f"{source}: {name}: expected values in [{smallest}, {largest}], got {array[row]}",
    )
    return array.astype(dtype)


def _probs(source: object, array: np.ndarray, lines: Sequence[int] | None) -> np.ndarray:
    """Returns a column of probabilities as float64 [R]."""
    if array.dtype.kind not in "iuf" and array.size:
        raise ValueError(
            f"{source}: {OPTIONAL_COLUMN}: expected numbers, got dtype {array.dtype} (the first is "
            f"{array.tolist()[0]!r}); write the column as floats"
        )
    array = array.astype(np.float64)
    _refuse(
        ~((array > 0) & (array <= 1)),  # A NaN is neither.
        lines,
        lambda row: f"{source}: {OPTIONAL_COLUMN}: expected probabilities in (0, 1], got {array[row]}",
        remedy=f"correct it or leave the column {OPTIONAL_COLUMN} out",
    )
    return array


def _refuse(is_bad: np.ndarray, lines: Sequence[int] | None, message: Any, *, remedy: str = _REMEDY) -> None:
    """Raises ValueError with the message for the first bad row and its place, if there is one."""
    if np.any(is_bad):
        row = int(np.argmax(is_bad))
        place = f"at position {row}" if lines is None else f"in line {lines[row]}"
        raise ValueError(f"{message(row)} {place}; {remedy}")
