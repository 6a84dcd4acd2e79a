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
_MAX_ATTEMPTS = 2000

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(bits: np.ndarray) -> np.ndarray:
    """Returns the finaliser of SplitMix64, a bijection of uint64 whose output looks random.

    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


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
    """Returns which problems belong to a split, bool [N]; `canonical`: what two equal problems share, int [N, C]."""
    state = Stream(np.full(canonical.shape[0], 0x5EED, np.uint64))
    for column in canonical.T:
        state = Stream(_mix(state.states ^ column.astype(np.uint64))).fold_in(0)
    share = state.floats(0)
    names = list(_SPLITS)
    start = sum(_SPLITS[name] for name in names[: names.index(split)])
    return (share >= start) & (share < start + _SPLITS[split])


def check_levels(levels: Any, bounds: Sequence[tuple[str, int, int]]) -> tuple[tuple[int, int, float], ...]:
    """Returns levels, each (first, second, weight), with whole numbers within `bounds`: (name, at_least, at_most).

    Raises:
      ValueError: for no levels, or one that is out of range.
    """
    words = ", ".join(f"{name} {low} to {high}" for name, low, high in bounds)
    checked = []
    for level in levels:
        entries = tuple(level)
        is_good = len(entries) == 3 and all(
            isinstance(value, (int, np.integer)) and not isinstance(value, bool) and low <= value <= high
            for value, (_, low, high) in zip(entries, bounds, strict=False)
        )
        if not is_good or not (np.isfinite(entries[2]) and entries[2] > 0):
            raise ValueError(f"levels: expected ({words}, weight > 0), got {level!r}")
        checked.append((int(entries[0]), int(entries[1]), float(entries[2])))
    if not checked:
        raise ValueError("levels: expected at least one, got none")
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
    indices: np.ndarray,
    levels: Sequence[tuple[int, int, float]],
    draw: Callable[[Stream, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what was drawn for each index, int64 [N, D], and its level, int64 [N].

    Args:
      seed: of the problems.
      split: that they must belong to.
      indices: int64 [N].
      levels: (.., .., weight) each.
      draw: (streams, level [M]) -> what was drawn [M, D], its canonical form [M, C], and whether it is a problem [M].

    Raises:
      ValueError: if a level has next to no problem of this split.
    """
    bounds = np.cumsum([weight for *_, weight in levels])
    base = streams(seed, split, indices)
    level = np.minimum(np.searchsorted(bounds / bounds[-1], base.floats(0), side="right"), len(levels) - 1)
    found: np.ndarray | None = None
    left = np.arange(indices.size)
    for attempt in range(_MAX_ATTEMPTS):
        drawn, canonical, is_problem = draw(Stream(base.states[left]).fold_in(attempt + 1), level[left])
        if found is None:
            found = np.zeros((indices.size, drawn.shape[1]), np.int64)
        is_done = is_problem & is_in_split(canonical, split)
        found[left[is_done]] = drawn[is_done]
        left = left[~is_done]
        if left.size == 0:
            return found, level
    raise ValueError(
        f"levels: expected problems for split {split!r}, got none in {_MAX_ATTEMPTS} attempts at level "
        f"{tuple(levels[int(level[left[0]])])}; make it less narrow"
    )
