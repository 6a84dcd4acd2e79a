"""Finds the columns of a trace among the columns of a log, by the names that trainers use.

A log has a row per completion group (successes and count), or a row per completion (correct or not, or a reward).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dps_jax.traces._tables import ColumnError, Columns

# Names that trainers give to columns, in order of preference. TRL names rewards after the reward functions.
_DEFAULTS = {
    "round": ("round", "step", "global_step"),
    "prompt": ("prompt_id", "prompt", "input"),
    "success": ("success", "is_correct", "correct", "acc", "reward", "score"),
    "successes": ("successes",),
    "count": ("count",),
    "inclusion_prob": ("inclusion_prob",),
}
# Columns of trainers that are never rewards.
_NO_REWARDS = ("advantage", "advantages", "completion", "output", "gts")
EXPECTED = "a trace with columns round, prompt_id, successes, count"


@dataclasses.dataclass(frozen=True)
class ColumnNames:
    r"""Names of the columns of a log, where they differ from the names that trainers use.

    Example:
      >>> from pathlib import Path
      >>> from dps_jax import traces
      >>> _ = Path("log.csv").write_text("iteration,question,verified\n0,4,true\n1,4,false\n")
      >>> columns = traces.ColumnNames(round="iteration", prompt="question", success="verified")
      >>> traces.read_trace("log.csv", columns).successes.tolist()
      [1, 0]
    """

    round: str | None = None
    """Column of the round or step; by default "round", "step" or "global_step". Without such a column, the last
    number in the name of each file of a folder is the round."""
    prompt: str | None = None
    """Column of the prompt, which is a number, a text or messages; by default "prompt_id", "prompt" or "input"."""
    success: str | None = None
    """In logs with a row per completion, the column with its correctness or reward; by default "success", "is_correct",
    "correct", "acc", "reward" or "score", or else the only column that remains."""
    successes: str | None = None
    """In logs with a row per completion group, the column with the number of correct completions; by default
    "successes"."""
    count: str | None = None
    """In logs with a row per completion group, the column with the number of completions; by default "count"."""
    inclusion_prob: str | None = None
    """Column of the probability with which the prompt was selected; by default "inclusion_prob", if the log has it."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names of the columns of a file by their role; None for roles without a column.

    In a column of prompts that may be mixed, integers and texts are both texts; elsewhere the integers of such a column
    are right and the texts are mistakes.
    """

    round: str | None
    prompt: str
    success: str | None
    successes: str | None
    count: str | None
    inclusion_prob: str | None
    may_be_mixed: bool

    @property
    def columns(self) -> list[str]:
        """Names of the columns to read."""
        names = (self.round, self.prompt, self.success, self.successes, self.count, self.inclusion_prob)
        return [name for name in names if name is not None]


def choose_layout(path: Path, given: ColumnNames, names: Sequence[str], *, has_number: bool) -> Layout:
    """Returns the names of the columns of a file that make up a trace.

    Args:
      path: path of the file, for error messages.
      given: names of columns that the user gave.
      names: names of all columns of the file.
      has_number: whether the name of the file has a number, which is the round if there is no column for it.

    Raises:
      ColumnError: for a column that is missing or occurs twice.
    """
    found = {}
    for part, defaults in _DEFAULTS.items():
        name = getattr(given, part)
        if name is not None and name not in names:
            raise ColumnError(
                f"{path}: columns.{part}: expected one of {_listed(names)}, got {name!r}; use the name in the file"
            )
        found[part] = name or next((default for default in defaults if default in names), None)
    has_groups = found["successes"] is not None or (found["count"] is not None and found["success"] is None)
    is_grouped = given.success is None and has_groups
    if is_grouped:
        found["success"] = None
        needed = ["round", "prompt", "successes", "count"]
    else:
        found["successes"] = found["count"] = None
        found["success"] = found["success"] or _only_reward(path, names, found)
        needed = ["round", "prompt"]
    if has_number:
        needed.remove("round")
    for part in needed:
        if found[part] is None:
            raise _missing(path, _DEFAULTS[part][0], part, names)
    for name in filter(None, found.values()):
        if list(names).count(name) > 1:
            raise ColumnError(f"{path}: expected one column {name!r}, got several; rename or remove the others")
    return Layout(**found, may_be_mixed=not is_grouped or found["prompt"] != "prompt_id")


def _only_reward(path: Path, names: Sequence[str], found: dict[str, str | None]) -> str:
    """Returns the only column that may hold rewards."""
    taken = {*found.values(), *_NO_REWARDS}
    left = [name for name in names if name not in taken]
    if found["round"] is None or found["prompt"] is None or not left:
        part = next((part for part in ("round", "prompt") if found[part] is None), "successes")
        raise _missing(path, _DEFAULTS[part][0], part, names)
    if len(left) > 1:
        raise ColumnError(
            f"{path}: expected one column with the success or reward of a completion, got "
            f"{_listed(left)}; name the column of correctness with --columns.success NAME, in Python "
            'ColumnNames(success="NAME")'
        )
    return left[0]


def _listed(names: Sequence[str]) -> str:
    """Returns names for an error message, shortened because names in a damaged file may be long."""
    shown = [repr(name if len(name) <= 40 else f"{name[:40]}...") for name in names[:20]]
    return ", ".join([*shown, *(["..."] if len(names) > 20 else [])]) or "none"


def _missing(path: Path, name: str, part: str, names: Sequence[str]) -> ColumnError:
    separator = "; cells have to be separated by commas" if ".csv" in path.name.lower() else ""
    return ColumnError(
        f"{path}: expected {EXPECTED} (or success in place of the last two), got no {name!r} among "
        f"{_listed(names)}; add the column, or name one with the same values with "
        f'--columns.{part.replace("_", "-")} NAME, in Python ColumnNames({part}="NAME"){separator}'
    )


def numbers(path: Path, name: str, values: np.ndarray, lines: Sequence[int] | None, what: str) -> np.ndarray:
    """Returns a column of numbers, [R]; texts are parsed, None becomes NaN, and booleans become 0 and 1.

    Raises:
      ValueError: for an entry that is not a number; the message names its place.
    """
    if values.dtype != object:
        return values.astype(np.int64) if values.dtype == bool else values
    found: list[int | float] = []
    for row, value in enumerate(values):
        number = _number(value)
        if number is None:
            place = f"at position {row}" if lines is None else f"in line {lines[row]}"
            raise ValueError(
                f"{path}: {name}: expected {what}, got {value!r} {place}; correct it or leave the "
                f"{'row' if lines is None else 'line'} out"
            )
        found.append(number)
    # Whole floats up to 2**53 become integers, so that error messages show -1 as it stands in the file.
    is_whole = all(isinstance(number, int) or (number.is_integer() and abs(number) <= 2**53) for number in found)
    if is_whole and all(abs(number) < 2**63 for number in found):
        return np.array([int(number) for number in found], np.int64)
    # Some integers are larger than every float.
    as_float = lambda number: number if isinstance(number, float) else float(max(min(number, 2**1000), -(2**1000)))
    return np.array([as_float(number) for number in found], np.float64)


def _number(value: Any) -> int | float | None:
    """Returns the number in a cell, or None if the cell does not contain one."""
    if value is None:
        return float("nan")
    if isinstance(value, str):
        if "_" in value:  # Python would read 1_000.
            return None
        if value.strip().lower() in ("true", "false"):
            return int(value.strip().lower() == "true")
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
        return None
    return value if isinstance(value, (int, float)) else None


def are_texts(values: np.ndarray) -> bool:
    """Returns whether all cells of a column are texts, of which none is blank or a number."""
    is_text = lambda cell: isinstance(cell, str) and cell.strip() != "" and _number(cell) is None
    return values.dtype.kind in "UO" and all(map(is_text, values.tolist()))


def prompt_keys(path: Path, name: str, columns: Columns) -> np.ndarray:
    """Returns keys that identify prompts, [R]: integers, or texts as objects; messages become JSON text.

    Raises:
      ValueError: for a prompt that is missing, or a number that is not whole.
    """
    values, lines = columns.values[name], columns.lines
    if values.dtype.kind == "U":
        values = values.astype(object)
    if values.dtype != object:
        return values
    for row, value in enumerate(values):
        if value is None or value == "" or isinstance(value, (bool, float)):
            place = f"at position {row}" if lines is None else f"in line {lines[row]}"
            raise ValueError(
                f"{path}: {name}: expected a prompt as an integer, a text or messages, got {value!r} {place}; correct "
                "it or leave the row out"
            )
    # The texts "007" and "7" are different prompts.
    is_number = lambda text: text.isascii() and text.isdigit() and str(int(text)) == text
    is_digits = lambda value: isinstance(value, int) or (isinstance(value, str) and is_number(value))
    if all(is_digits(value) and 0 <= int(value) < 2**63 for value in values):
        return np.array([int(value) for value in values], np.int64)
    as_text = lambda value: value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    keys = np.empty(values.size, object)
    keys[:] = [as_text(value) for value in values]
    return keys
