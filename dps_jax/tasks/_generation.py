"""Draws problems with a counter-based random number generator.

Every random number is a hash of (seed, split, index, attempt, draw). For given levels, a problem therefore depends
on nothing else, and many problems can be drawn at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dps_jax import _checks

# Share of each split in all possible problems. Training has the largest, as some levels have few problems.
_SPLITS = {"train": 0.5, "warmup": 0.4, "test": 0.1}
# Largest number of attempts to draw a problem, and to draw the first problem of a level.
_MAX_ATTEMPTS = 2000
_MAX_LEVEL_ATTEMPTS = 50_000
# Entry of a canonical form in columns that a problem does not have.
ABSENT = -1

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(bits: np.ndarray) -> np.ndarray:
    """Returns the bits mixed by the finaliser of SplitMix64, a bijection of uint64.

    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


# Two whole numbers that determine the difficulty, whose meaning depends on the task, and the weight of the level.
Level = tuple[int, int, float]


class Levels(NamedTuple):
    """The levels of a task and how often each is drawn.

    Attributes:
      kinds: two whole numbers for each of L levels that determine its difficulty; their meaning depends on the task.
      weights: weight of each level in training and warm-up, >= 0, [L].
      test_weights: weight of each level in the test set, >= 0, [L].
    """

    kinds: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]
    test_weights: tuple[float, ...]

    def column(self, place: int) -> np.ndarray:
        """Returns the first (0) or the second (1) number of every level, int64 [L]."""
        return np.array([kind[place] for kind in self.kinds], np.int64)


class Stream(NamedTuple):
    """A random stream for each of N problems.

    Attributes:
      states: state of each stream, uint64 [N].
    """

    states: np.ndarray

    def fold_in(self, number: int) -> Stream:
        """Returns the streams derived with a number; different numbers give independent streams."""
        # Modulo 2**64 on purpose, without NumPy's warning for scalars.
        step = np.uint64((int(_GOLDEN) * (number + 1)) % 2**64)
        return Stream(_mix(self.states + step))

    def integers(self, draw: int, limit: Any) -> np.ndarray:
        """Returns integers in [0, limit), int64 [N]; `limit` is an int or int [N]."""
        return ((self.fold_in(draw).states >> np.uint64(32)) % np.asarray(limit, np.uint64)).astype(np.int64)

    def floats(self, draw: int) -> np.ndarray:
        """Returns numbers in [0, 1), float64 [N]."""
        return (self.fold_in(draw).states >> np.uint64(11)) * 2.0**-53


def streams(seed: int, split: str, indices: np.ndarray) -> Stream:
    """Returns the streams of the problems of a split."""
    start = Stream(np.array([_checks.check_int("seed", seed, at_least=0, at_most=2**63 - 1)], np.uint64))
    base = start.fold_in(list(_SPLITS).index(split)).states
    return Stream(_mix(base + indices.astype(np.uint64) * _GOLDEN))


def solution_streams(seed: int, split: str, indices: Any) -> Stream:
    """Returns streams for the randomness of solutions, independent of those of problems."""
    return streams(seed, split, check_request(seed, split, indices)).fold_in(-1)


def reference_streams(seed: int, split: str, indices: Any) -> Stream:
    """Returns streams for the choice of wrong references, independent of those of problems and solutions."""
    return streams(seed, split, check_request(seed, split, indices)).fold_in(-2)


def is_in_split(canonical: np.ndarray, split: str) -> np.ndarray:
    """Returns which problems belong to a split, bool [N].

    Args:
      canonical: canonical form of each problem, the same for problems that are equal up to reordering,
        int [N, columns]. Entries `ABSENT` are skipped, so that the split of a problem does not depend on the number of
        columns.
      split: name of the split.
    """
    states = np.full(canonical.shape[0], 0x5EED, np.uint64)
    for column in canonical.T:
        mixed = Stream(_mix(states ^ column.astype(np.uint64))).fold_in(0).states
        states = np.where(column == ABSENT, states, mixed)
    share = Stream(states).floats(0)
    names = list(_SPLITS)
    start = sum(_SPLITS[name] for name in names[: names.index(split)])
    return (share >= start) & (share < start + _SPLITS[split])


def check_levels(levels: Any, test_levels: Any, bounds: Sequence[tuple[str, int, int]]) -> Levels:
    """Returns checked levels: those of training, then those that only the test set has.

    Args:
      levels: (whole number, whole number, weight > 0) of each level.
      test_levels: levels of the test set; None is `levels`.
      bounds: (name, at_least, at_most) of the first whole number and of the second.

    Raises:
      ValueError: for no levels, a level out of range, or a level that occurs twice.
    """
    weights = _weights("levels", levels, bounds)
    test_weights = weights if test_levels is None else _weights("test_levels", test_levels, bounds)
    kinds = tuple(dict.fromkeys((*weights, *test_weights)))
    return Levels(
        kinds=kinds,
        weights=tuple(weights.get(kind, 0.0) for kind in kinds),
        test_weights=tuple(test_weights.get(kind, 0.0) for kind in kinds),
    )


def _weights(name: str, levels: Any, bounds: Sequence[tuple[str, int, int]]) -> dict[tuple[int, int], float]:
    """Returns the weight of every level; see `check_levels`."""
    words = ", ".join(f"{bound} {low} to {high}" for bound, low, high in bounds)
    if not isinstance(levels, (tuple, list)) or not levels:
        raise ValueError(f"{name}: expected one or more of ({words}, weight > 0), got {levels!r}")
    is_whole = lambda value: isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    is_real = lambda value: is_whole(value) or isinstance(value, (float, np.floating))
    weights: dict[tuple[int, int], float] = {}
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
            raise ValueError(f"{name}: expected ({words}, weight > 0), got {level!r}")
        kind = (int(level[0]), int(level[1]))
        if kind in weights:
            raise ValueError(
                f"{name}: expected levels that differ, got {level!r} beside another {kind}; give it one weight"
            )
        weights[kind] = float(level[2])
    return weights


def check_request(seed: int, split: str, indices: Any) -> np.ndarray:
    """Returns indices as int64 [N].

    Raises:
      ValueError: for an unknown split, a seed out of range, or an index below 0.
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
    levels: Levels,
    draw: Callable[[Stream, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers drawn for each problem, int64 [N, D], and its level, int64 [N].

    Args:
      seed: seed of the problems.
      split: split that the problems must belong to.
      indices: indices of the problems, int [N], >= 0.
      levels: levels to draw from, by their weights in this split.
      draw: (streams, level [R]) -> drawn numbers [R, D], their canonical form [R, columns], and whether they are a
        valid problem [R], for the R of the N problems that are not found yet.

    Raises:
      ValueError: for an unknown split, a seed out of range, a negative index, or a level with almost no problems in
        this split.
    """
    indices = check_request(seed, split, indices)
    weights = levels.test_weights if split == "test" else levels.weights
    bounds = np.cumsum(weights)
    base = streams(seed, split, indices)
    level = np.minimum(np.searchsorted(bounds / bounds[-1], base.floats(0), side="right"), len(weights) - 1)
    found: np.ndarray | None = None
    left = np.arange(indices.size)
    num_drawn, num_found = np.zeros(len(weights), np.int64), np.zeros(len(weights), np.int64)
    for attempt in range(_MAX_ATTEMPTS):
        drawn, canonical, is_problem = draw(Stream(base.states[left]).fold_in(attempt + 1), level[left])
        if found is None:
            found = np.zeros((indices.size, drawn.shape[1]), np.int64)
        is_done = is_problem & is_in_split(canonical, split)
        found[left[is_done]] = drawn[is_done]
        num_drawn += np.bincount(level[left], minlength=len(weights))
        num_found += np.bincount(level[left[is_done]], minlength=len(weights))
        left = left[~is_done]
        if left.size == 0:
            return found, level
        if np.any((num_found == 0) & (num_drawn >= _MAX_LEVEL_ATTEMPTS)):
            break
    poorest = min(level[left], key=lambda number: num_found[number] / num_drawn[number])
    raise ValueError(
        f"levels: expected problems for split {split!r}, got {num_found[poorest]} in {num_drawn[poorest]} attempts at "
        f"level {levels.kinds[poorest]}; widen the level or leave it out"
    )
