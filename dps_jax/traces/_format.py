"""The trace of a run: one row per completion group, and the checks of its columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dps_jax._documented import documented

COLUMNS = ("round", "prompt_id", "successes", "count")
OPTIONAL_COLUMN = "inclusion_prob"
# Ids may be hashes of 63 bits. As floats they are refused beyond 2**53, where different ids would become equal.
_LARGEST = {name: np.iinfo(np.int64 if name == "prompt_id" else np.int32).max for name in COLUMNS}
_LARGEST_EXACT_FLOAT = 2**53
_REMEDY = "correct it or leave the row out"


@documented
class Trace(NamedTuple):
    """A log of the visits of a run: which prompt was rolled out in which round, and how many completions were correct.

    Attributes:
      rounds: round of each visit, int32 [R], >= 0.
      prompt_ids: id of the prompt of each visit, int64 (int32 in simulated traces) [R], >= 0; ids need not be
        consecutive and may, for example, be hashes.
      successes: number of correct completions of each visit, int32 [R], in [0, counts].
      counts: number of completions of each visit, int32 [R], >= 1.
      inclusion_prob: probability with which each visit was selected, float64 [R], in (0, 1]; None if it was not logged.

    Example:
      >>> import numpy as np
      >>> from dps_jax import traces
      >>> columns = {"rounds": [0, 0, 1], "prompt_ids": [7, 3, 7], "successes": [2, 8, 5], "counts": [8, 8, 8]}
      >>> trace = traces.Trace(**{name: np.array(column) for name, column in columns.items()})
      >>> is_informative = (trace.successes > 0) & (trace.successes < trace.counts)
      >>> trace.take(is_informative).prompt_ids.tolist()
      [7, 7]
    """

    rounds: np.ndarray
    prompt_ids: np.ndarray
    successes: np.ndarray
    counts: np.ndarray
    inclusion_prob: np.ndarray | None = None

    def take(self, rows: Any) -> Trace:
        """Returns the trace of some rows, given by their positions, int [P], or by a mask, bool [R]."""
        inclusion_prob = None if self.inclusion_prob is None else self.inclusion_prob[rows]
        return Trace(*(column[rows] for column in self[:4]), inclusion_prob=inclusion_prob)


def concatenate(parts: Iterable[Trace]) -> Trace:
    """Returns one trace with the rows of all parts, one part after another.

    Args:
      parts: any number of traces.

    Returns:
      The trace. Its `inclusion_prob` is None if a part with at least one row has no inclusion probabilities.

    Example:
      >>> import numpy as np
      >>> from dps_jax import traces
      >>> rng = np.random.default_rng(0)
      >>> first, second = (traces.simulate_learners(rng, num_prompts=90, num_rounds=3).trace for _ in range(2))
      >>> second = second._replace(rounds=second.rounds + 3)  # the second run continued the first
      >>> traces.concatenate([first, second]).rounds.max().item()
      5
    """
    parts = list(parts)
    # Parts without rows have no influence on whether inclusion_prob is kept.
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
      source: beginning of error messages: a file, or the name of an argument.
      columns: the four columns of whole numbers, [R] each.
      inclusion_prob: probabilities, [R], or None.
      lines: line of each row in a text file, [R], for error messages; None names positions instead.

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
    """Raises a ValueError for the first bad row, if there is one, with its place."""
    if np.any(is_bad):
        row = int(np.argmax(is_bad))
        place = f"at position {row}" if lines is None else f"in line {lines[row]}"
        raise ValueError(f"{message(row)} {place}; {remedy}")
