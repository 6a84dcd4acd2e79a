"""Predict first, then reveal: what a predictor said about every visit of a logged trace before it came."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax import _checks
from dps_jax.traces._format import Trace
from dps_jax.types import Predictor

__all__ = ["Visits", "replay", "replay_own_counts", "visits_of"]

# Rounds are padded to the size of the largest where this asks for so few entries per visit, or so few in all.
_MAX_PADDING, _FEW_ENTRIES = 8, 2**20
# Elsewhere to the next power of this, and so many rounds of one size are scanned together.
_WIDTH_BASE, _BLOCK_LENGTH = 4, 64


class Visits(NamedTuple):
    """The visits of a trace in order of rounds; rows of one prompt in one round are one visit.

    The clock counts the rounds that occur: rounds 0, 10 and 20 of a trace are rounds 0, 1 and 2.

    Attributes:
      rounds: of the visit, int32 [R], in [0, T), sorted.
      ids: positions of the prompt in `prompt_ids`, int32 [R], in [0, N).
      successes: int32 [R].
      counts: int32 [R], >= 1.
      prompt_ids: all prompts, as the trace names them, int64 [N], sorted.
      inclusion_prob: with which the prompt was in the round, float64 [R], or None.
    """

    rounds: np.ndarray
    ids: np.ndarray
    successes: np.ndarray
    counts: np.ndarray
    prompt_ids: np.ndarray
    inclusion_prob: np.ndarray | None = None

    @property
    def num_rounds(self) -> int:
        """T, rounds with a visit."""
        return int(self.rounds[-1]) + 1

    @property
    def num_prompts(self) -> int:
        """N."""
        return self.prompt_ids.size

    @property
    def sizes(self) -> np.ndarray:
        """Visits of every round, int64 [T]."""
        return np.bincount(self.rounds)

    def by_round(self, values: Any, fill: Any) -> np.ndarray:
        """Returns values of the visits [R, ...] as a table [T, P, ...]; P is the size of the largest round."""
        values, sizes = np.asarray(values), self.sizes
        dtype = np.result_type(values.dtype, np.min_scalar_type(fill))
        table = np.full((sizes.size, sizes.max(), *values.shape[1:]), fill, dtype)
        table[self.rounds, self._places(sizes)] = values
        return table

    def _places(self, sizes: np.ndarray) -> np.ndarray:
        """Returns which visit of its round each is, [R]."""
        return np.arange(self.rounds.size) - (np.cumsum(sizes) - sizes)[self.rounds]


def visits_of(trace: Trace, num_prompts: int | None = None) -> Visits:
    """Returns the visits of a trace in order of rounds, and in its order within a round.

    Args:
      trace: rows in any order, with any ids.
      num_prompts: N, where ids are positions of prompts in a set; prompts without a visit are there as well. None:
        the prompts are those with a visit, renumbered in order of their ids, so that nothing has the size of the
        largest id.

    Raises:
      ValueError: for an empty trace, columns that differ in length or are not whole, an id from `num_prompts` on,
        visits of more completions than int32 holds, or rows of one visit whose inclusion_prob differs.
    """
    rounds = _checks.check_integer_array("trace.rounds", trace.rounds)
    if rounds.size == 0:
        raise ValueError("trace: expected at least one row, got an empty trace; log some rounds first")
    ids = _checks.check_integer_array("trace.prompt_ids", trace.prompt_ids)
    for name, column in (("trace.rounds", rounds), ("trace.prompt_ids", ids)):
        if column.size != rounds.size or column.min() < 0:
            found = f"{column.size} from {column.min()} on" if column.size else "none"
            raise ValueError(f"{name}: expected {rounds.size} values >= 0 and one per row, got {found}")
    successes, counts = _checks.check_outcomes(trace.successes, trace.counts, rounds.size)
    _, index = np.unique(rounds, return_inverse=True)
    if num_prompts is None:
        prompt_ids, positions = np.unique(ids, return_inverse=True)
    else:
        prompt_ids, positions = np.arange(num_prompts), _checks.check_ids("trace.prompt_ids", ids, num_prompts)
    cells, first, visit_of = np.unique(
        index.astype(np.int64) * prompt_ids.size + positions, return_index=True, return_inverse=True
    )
    order = np.lexsort((first, index[first]))
    first, visit_of = first[order], np.argsort(order)[visit_of]
    total = lambda column: np.bincount(visit_of, weights=column, minlength=cells.size)
    sums = total(counts)
    if sums.max() >= _checks.MAX_COUNT:
        row = first[np.argmax(sums)]
        raise ValueError(
            f"trace: expected less than 2**31 completions of a prompt in a round, got {sums.max():.0f} of prompt "
            f"{ids[row]} in round {rounds[row]}; correct the counts"
        )
    return Visits(
        rounds=index[first].astype(np.int32),
        ids=positions[first].astype(np.int32),
        successes=total(successes).astype(np.int32),
        counts=sums.astype(np.int32),
        prompt_ids=prompt_ids,
        inclusion_prob=_of_visits(trace.inclusion_prob, first, visit_of, ids, rounds),
    )


def _of_visits(probs: Any, first: np.ndarray, visit_of: np.ndarray, ids: np.ndarray, rounds: np.ndarray) -> Any:
    """Returns the inclusion_prob of every visit, [R], or None."""
    if probs is None:
        return None
    probs = np.asarray(probs, np.float64)
    if probs.shape != ids.shape:
        raise ValueError(f"trace.inclusion_prob: expected {ids.size} values, one per row, got {list(probs.shape)}")
    found = probs[first]
    is_other = probs != found[visit_of]
    if np.any(is_other):
        row = int(np.argmax(is_other))
        raise ValueError(
            f"trace.inclusion_prob: expected one value per prompt and round, got {found[visit_of[row]]} and "
            f"{probs[row]} of prompt {ids[row]} in round {rounds[row]}; correct it or leave the column out"
        )
    return found


def _blocks(sizes: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Yields blocks of rounds to scan together: the first, how many, and the width they are padded to."""
    largest = int(sizes.max())
    if sizes.size * largest <= max(_MAX_PADDING * int(sizes.sum()), _FEW_ENTRIES):
        yield 0, sizes.size, largest
        return
    widths = _WIDTH_BASE ** np.ceil(np.log(sizes) / np.log(_WIDTH_BASE) - 1e-9).astype(np.int64)
    widths = np.minimum(np.maximum(widths, sizes), largest)
    changes = np.flatnonzero(np.diff(widths)) + 1
    for start, stop in zip([0, *changes], [*changes, sizes.size], strict=True):
        # Two lengths only, each of which is compiled once per width.
        while start < stop:
            length = _BLOCK_LENGTH if stop - start >= _BLOCK_LENGTH else 1
            yield int(start), length, int(widths[start])
            start += length


def replay(predictor: Predictor, visits: Visits) -> np.ndarray:
    """Returns the distribution of outcomes that a predictor gave every visit before it saw it, float32 [R, G + 1].

    Args:
      predictor: of the N prompts of the visits; starts from nothing.
      visits: of `visits_of`.
    """

    def step(state: Any, row: Any) -> tuple[Any, jax.Array]:
        ids, successes, counts = row
        probs = predictor.outcome_probs(state, jnp.maximum(ids, 0))
        return predictor.observe(state, ids, successes, counts), probs.T

    run = jax.jit(lambda state, rows: lax.scan(step, state, rows), donate_argnums=0)
    state = jax.jit(lambda: predictor.init(visits.num_prompts))()
    sizes = visits.sizes
    starts = np.append(0, np.cumsum(sizes))
    places, found = visits._places(sizes), []
    for first, length, width in _blocks(sizes):
        rows = slice(starts[first], starts[first + length])
        cells = visits.rounds[rows] - first, places[rows]
        padded = []
        for column, fill in ((visits.ids, -1), (visits.successes, 0), (visits.counts, 0)):
            table = np.full((length, width), fill, np.int32)
            table[cells] = column[rows]
            padded.append(jnp.asarray(table))
        state, probs = run(state, tuple(padded))
        found.append(np.asarray(probs)[cells])
    return np.concatenate(found)


def replay_own_counts(build: Callable[[int], Predictor], visits: Visits) -> np.ndarray:
    """Returns what a method said of every visit, as of a group of that visit's own count, float32 [R, C + 1].

    C is the largest count; a visit of n completions has zeros beyond n.

    Args:
      build: group size -> predictor of groups of that size, which starts from nothing; called for every count.
      visits: of `visits_of`.
    """
    found = np.zeros((visits.counts.size, int(visits.counts.max()) + 1), np.float32)
    for count in np.unique(visits.counts).tolist():
        rows = np.flatnonzero(visits.counts == count)
        found[rows, : count + 1] = replay(build(count), visits)[rows]
    return found
