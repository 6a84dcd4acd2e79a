"""Problems drawn by counters.

Every number is a hash of (seed, split, index, attempt, draw), so that a problem depends on nothing else, and millions
are drawn at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dps_jax import _checks

# Shares of all possible problems. Where there are few of a kind, training gets most.
_SPLITS = {"train": 0.5, "warmup": 0.4, "test": 0.1}
# A problem is given up after so many attempts, and a level after so many without a single problem.
_MAX_ATTEMPTS = 2000
_MAX_LEVEL_ATTEMPTS = 50_000
# Marks a column of a canonical form that a problem does not have.
ABSENT = -1

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(bits: np.ndarray) -> np.ndarray:
    """Returns the finaliser of SplitMix64, a bijection of uint64 whose output looks random.

    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


# Two whole numbers that say how difficult problems are, in the task's own terms, and how many of them there shall be.
Level = tuple[int, int, float]


class Stream(NamedTuple):
    """A random stream for each of some problems.

    Attributes:
      states: uint64 [N].
    """

    states: np.ndarray

    def fold_in(self, number: int) -> Stream:
        """Returns other streams, one for every number."""
        # Modulo 2**64 on purpose, without NumPy's warning for scalars.
        step = np.uint64((int(_GOLDEN) * (number + 1)) % 2**64)
        return Stream(_mix(self.states + step))

    def integers(self, draw: int, limit: Any) -> np.ndarray:
        """Returns integers in [0, limit), int64 [N]; `limit`: int or int [N]."""
        return ((self.fold_in(draw).states >> np.uint64(32)) % np.asarray(limit, np.uint64)).astype(np.int64)

    def floats(self, draw: int) -> np.ndarray:
        """Returns numbers in [0, 1), [N]."""
        return (self.fold_in(draw).states >> np.uint64(11)) * 2.0**-53


def streams(seed: int, split: str, indices: np.ndarray) -> Stream:
    """Returns the streams of the problems of a split."""
    start = Stream(np.array([_checks.check_int("seed", seed, at_least=0, at_most=2**63 - 1)], np.uint64))
    base = start.fold_in(list(_SPLITS).index(split)).states
    return Stream(_mix(base + indices.astype(np.uint64) * _GOLDEN))


def is_in_split(canonical: np.ndarray, split: str) -> np.ndarray:
    """Returns which problems belong to a split, bool [N].

    Args:
      canonical: what problems share that are equal up to reordering, int [N, C]. Columns of `ABSENT` do not count, so
        that the split of a problem does not depend on how wide a task makes the table.
      split: its name.
    """
    states = np.full(canonical.shape[0], 0x5EED, np.uint64)
    for column in canonical.T:
        mixed = Stream(_mix(states ^ column.astype(np.uint64))).fold_in(0).states
        states = np.where(column == ABSENT, states, mixed)
    share = Stream(states).floats(0)
    names = list(_SPLITS)
    start = sum(_SPLITS[name] for name in names[: names.index(split)])
    return (share >= start) & (share < start + _SPLITS[split])


def check_levels(levels: Any, bounds: Sequence[tuple[str, int, int]]) -> tuple[Level, ...]:
    """Returns levels with whole numbers within `bounds`: (name, at_least, at_most) of the first and of the second.

    Raises:
      ValueError: for no levels, one that is out of range, or one that is there twice.
    """
    words = ", ".join(f"{name} {low} to {high}" for name, low, high in bounds)
    if not isinstance(levels, (tuple, list)) or not levels:
        raise ValueError(f"levels: expected one or more of ({words}, weight > 0), got {levels!r}")
    is_whole = lambda value: isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    is_real = lambda value: is_whole(value) or isinstance(value, (float, np.floating))
    checked: list[Level] = []
    for level in levels:
        is_good = (
            isinstance(level, (tuple, list))
            and len(level) == 3
            and all(
                is_whole(value) and low <= value <= high for value, (_, low, high) in zip(level, bounds, strict=False)
            )
            and is_real(level[2])
            and 0 < level[2] < np.inf
        )
        if not is_good:
            raise ValueError(f"levels: expected ({words}, weight > 0), got {level!r}")
        checked.append((int(level[0]), int(level[1]), float(level[2])))
        if [other[:2] for other in checked].count(checked[-1][:2]) > 1:
            raise ValueError(f"levels: expected different ones, got {level!r} beside another of its kind")
    return tuple(checked)


def check_request(seed: int, split: str, indices: Any) -> np.ndarray:
    """Returns indices as int64 [N].

    Raises:
      ValueError: for an unknown split or an index below 0.
    """
    _checks.check_choice("split", split, _SPLITS)
    _checks.check_int("seed", seed, at_least=0, at_most=2**63 - 1)
    indices = _checks.check_integer_array("indices", indices)
    if np.any(indices < 0):
        raise ValueError(f"indices: expected numbers >= 0, got {indices.min()}")
    return indices


def draw_problems(
    seed: int,
    split: str,
    indices: Any,
    levels: Sequence[Level],
    draw: Callable[[Stream, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what was drawn for each index, int64 [N, D], and its level, int64 [N].

    Args:
      seed: of the problems.
      split: that they must belong to.
      indices: int [N], >= 0.
      levels: what is drawn from, by their weights.
      draw: (streams, level [M]) -> what was drawn [M, D], its canonical form [M, C], and whether it is a problem [M].

    Raises:
      ValueError: for an unknown split, a negative index, or a level with next to no problem of this split.
    """
    indices = check_request(seed, split, indices)
    bounds = np.cumsum([weight for *_, weight in levels])
    base = streams(seed, split, indices)
    level = np.minimum(np.searchsorted(bounds / bounds[-1], base.floats(0), side="right"), len(levels) - 1)
    found: np.ndarray | None = None
    left = np.arange(indices.size)
    num_drawn, num_found = np.zeros(len(levels), np.int64), np.zeros(len(levels), np.int64)
    for attempt in range(_MAX_ATTEMPTS):
        drawn, canonical, is_problem = draw(Stream(base.states[left]).fold_in(attempt + 1), level[left])
        if found is None:
            found = np.zeros((indices.size, drawn.shape[1]), np.int64)
        is_done = is_problem & is_in_split(canonical, split)
        found[left[is_done]] = drawn[is_done]
        num_drawn += np.bincount(level[left], minlength=len(levels))
        num_found += np.bincount(level[left[is_done]], minlength=len(levels))
        left = left[~is_done]
        if left.size == 0:
            return found, level
        if np.any((num_found == 0) & (num_drawn >= _MAX_LEVEL_ATTEMPTS)):
            break
    poorest = min(level[left], key=lambda number: num_found[number] / num_drawn[number])
    raise ValueError(
        f"levels: expected problems for split {split!r}, got {num_found[poorest]} in {num_drawn[poorest]} attempts at "
        f"level {tuple(levels[poorest])}; make it less narrow"
    )
