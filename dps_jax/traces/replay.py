"""Replays of logged traces: each visit is predicted before its outcome is observed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax import _checks
from dps_jax._documented import documented
from dps_jax.traces._format import Trace
from dps_jax.types import Predictor

__all__ = ["Visits", "replay", "replay_own_counts", "visits_of"]

# All rounds are padded to the size of the largest if the table then has at most so many entries per visit, or in total.
_MAX_PADDING, _FEW_ENTRIES = 8, 2**20
# Otherwise each round is padded to the next power of this base, and so many rounds of one size are scanned together.
_WIDTH_BASE, _BLOCK_LENGTH = 4, 64


@documented
class Visits(NamedTuple):
    """The visits of a trace in order of rounds; the rows of one prompt in one round are summed to one visit.

    Only rounds that occur are counted: rounds 0, 10 and 20 of a trace become rounds 0, 1 and 2.

    Attributes:
      rounds: round of each visit, int32 [R], in [0, T), sorted.
      ids: prompt of each visit, given by its position in `prompt_ids`, int32 [R], in [0, N).
      successes: number of correct completions of each visit, int32 [R].
      counts: number of completions of each visit, int32 [R], >= 1.
      prompt_ids: ids of all prompts in the trace, int64 [N], sorted; 0, ..., N - 1 if `visits_of` was given N.
      inclusion_prob: probability with which each visit was selected, float64 [R]; None if it was not logged.

    Example:
      >>> import numpy as np
      >>> from dps_jax.traces import Trace
      >>> from dps_jax.traces.replay import visits_of
      >>> rounds, prompt_ids = np.array([0, 0, 10]), np.array([7, 3, 7])
      >>> visits = visits_of(Trace(rounds, prompt_ids, successes=np.array([2, 8, 5]), counts=np.array([8, 8, 8])))
      >>> visits.rounds.tolist(), visits.num_rounds, visits.sizes.tolist()
      ([0, 0, 1], 2, [2, 1])
      >>> visits.by_round(visits.successes, fill=-1).tolist()  # a row per round, padded with -1
      [[2, 8], [5, -1]]
    """

    rounds: np.ndarray
    ids: np.ndarray
    successes: np.ndarray
    counts: np.ndarray
    prompt_ids: np.ndarray
    inclusion_prob: np.ndarray | None = None

    @property
    def num_rounds(self) -> int:
        """Number of rounds with a visit, T."""
        return int(self.rounds[-1]) + 1

    @property
    def num_prompts(self) -> int:
        """Number of prompts, N."""
        return self.prompt_ids.size

    @property
    def sizes(self) -> np.ndarray:
        """Number of visits in each round, int64 [T]."""
        return np.bincount(self.rounds)

    def by_round(self, values: Any, fill: Any) -> np.ndarray:
        """Returns values of visits as a table of rounds.

        Args:
          values: one value per visit, [R, ...].
          fill: value of padding.

        Returns:
          The table, [T, P, ...], where P is the number of visits in the largest round.
        """
        values, sizes = np.asarray(values), self.sizes
        dtype = np.result_type(values.dtype, np.min_scalar_type(fill))
        table = np.full((sizes.size, sizes.max(), *values.shape[1:]), fill, dtype)
        table[self.rounds, self._places(sizes)] = values
        return table

    def _places(self, sizes: np.ndarray) -> np.ndarray:
        """Returns the position of each visit within its round, [R]."""
        return np.arange(self.rounds.size) - (np.cumsum(sizes) - sizes)[self.rounds]


def visits_of(trace: Trace, num_prompts: int | None = None) -> Visits:
    """Returns the visits of a trace in order of rounds; within a round they keep the order of the trace.

    Args:
      trace: rows in any order, with any ids; the rows of one prompt in one round are summed to one visit.
      num_prompts: number of prompts, N, if ids are positions in a training set; prompts without a visit are included.
        None includes only prompts with a visit, which are numbered in order of their ids, so that arrays over prompts
        stay small when ids are large.

    Raises:
      ValueError: for an empty trace, columns that differ in length or are not integers, an id that is not below
        `num_prompts`, a visit with more completions than int32 can represent, or rows of one visit with different
        `inclusion_prob`.

    Example:
      >>> import numpy as np
      >>> from dps_jax.traces import Trace
      >>> from dps_jax.traces.replay import visits_of
      >>> rounds, prompt_ids = np.array([0, 0, 0]), np.array([7, 7, 3])  # one row per completion
      >>> successes, counts = np.array([1, 0, 1]), np.array([1, 1, 1])
      >>> visits = visits_of(Trace(rounds, prompt_ids, successes, counts))
      >>> visits.prompt_ids.tolist(), visits.ids.tolist()  # `ids` are positions in `prompt_ids`
      ([3, 7], [1, 0])
      >>> visits.successes.tolist(), visits.counts.tolist()
      ([1, 1], [2, 1])
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
            f"trace: expected fewer than 2**31 completions of a prompt in a round, got {sums.max():.0f} of prompt "
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
    """Yields blocks of rounds to scan together: the first round, the number of rounds, and their padded width."""
    largest = int(sizes.max())
    if sizes.size * largest <= max(_MAX_PADDING * int(sizes.sum()), _FEW_ENTRIES):
        yield 0, sizes.size, largest
        return
    widths = _WIDTH_BASE ** np.ceil(np.log(sizes) / np.log(_WIDTH_BASE) - 1e-9).astype(np.int64)
    widths = np.minimum(np.maximum(widths, sizes), largest)
    changes = np.flatnonzero(np.diff(widths)) + 1
    for start, stop in zip([0, *changes], [*changes, sizes.size], strict=True):
        # Blocks have one of two lengths, so that each width is compiled at most twice.
        while start < stop:
            length = _BLOCK_LENGTH if stop - start >= _BLOCK_LENGTH else 1
            yield int(start), length, int(widths[start])
            start += length


def _reported(predictor: Predictor, visits: Visits, report: Callable[[Any, jax.Array], Any]) -> Iterator[Any]:
    """Yields reports on the state before every round, for blocks of rounds.

    Args:
      predictor: predictor of the N prompts of the visits, which starts from its `init`.
      visits: visits as returned by `visits_of`.
      report: function (state, ids of the round [P], -1 for padding) -> pytree; it is compiled.

    Yields:
      For each block, the indices of its visits in a table [T, P], and the reports, with an axis T in front.
    """

    def step(state: Any, row: Any) -> tuple[Any, Any]:
        ids, successes, counts = row
        found = report(state, ids)
        return predictor.observe(state, ids, successes, counts), found

    run = jax.jit(lambda state, rows: lax.scan(step, state, rows), donate_argnums=0)
    state = jax.jit(lambda: predictor.init(visits.num_prompts))()
    sizes = visits.sizes
    starts = np.append(0, np.cumsum(sizes))
    places = visits._places(sizes)
    for first, length, width in _blocks(sizes):
        rows = slice(starts[first], starts[first + length])
        cells = visits.rounds[rows] - first, places[rows]
        padded = []
        for column, fill in ((visits.ids, -1), (visits.successes, 0), (visits.counts, 0)):
            table = np.full((length, width), fill, np.int32)
            table[cells] = column[rows]
            padded.append(jnp.asarray(table))
        state, found = run(state, tuple(padded))
        yield cells, jax.tree.map(np.asarray, found)


def replay(predictor: Predictor, visits: Visits) -> np.ndarray:
    """Returns the predicted outcome distribution of every visit, from the visits of earlier rounds.

    Args:
      predictor: predictor for completion groups of G completions; the replay starts from its `init`.
      visits: visits as returned by `visits_of`.

    Returns:
      Probabilities of m = 0, ..., G correct completions, float32 [R, G + 1]; rows sum to 1.

    Example:
      >>> import numpy as np
      >>> from dps_jax import predictors, traces
      >>> from dps_jax.traces.replay import replay, visits_of
      >>> rng = np.random.default_rng(0)
      >>> visits = visits_of(traces.simulate_learners(rng, num_prompts=20, num_rounds=10, batch_size=8).trace)
      >>> probs = replay(predictors.last_state(group_size=8), visits)
      >>> probs.shape, bool(np.allclose(probs.sum(axis=1), 1, atol=1e-5))
      ((80, 9), True)
    """
    of_round = lambda state, ids: predictor.outcome_probs(state, jnp.maximum(ids, 0)).T
    return np.concatenate([probs[cells] for cells, probs in _reported(predictor, visits, of_round)])


def replay_own_counts(build: Callable[[int], Predictor], visits: Visits) -> np.ndarray:
    """Returns the predicted outcome distribution of every visit, for visits with different numbers of completions.

    Args:
      build: function from a number of completions to a predictor for completion groups of this size; it is called once
        for each number that occurs.
      visits: visits as returned by `visits_of`.

    Returns:
      Probabilities, float32 [R, C + 1], where C is the largest count. A visit of n completions has the distribution of
      m = 0, ..., n, and zeros beyond.

    Example:
      >>> import numpy as np
      >>> from dps_jax import predictors
      >>> from dps_jax.traces import Trace
      >>> from dps_jax.traces.replay import replay_own_counts, visits_of
      >>> rounds, prompt_ids = np.array([0, 0, 1]), np.array([7, 3, 7])
      >>> visits = visits_of(Trace(rounds, prompt_ids, successes=np.array([2, 1, 3]), counts=np.array([4, 2, 4])))
      >>> probs = replay_own_counts(lambda group_size: predictors.last_state(group_size=group_size), visits)
      >>> probs.shape, probs[1, 3:].tolist()  # the second visit has 2 completions: it cannot have 3 or 4 correct ones
      ((3, 5), [0.0, 0.0])
    """
    found = np.zeros((visits.counts.size, int(visits.counts.max()) + 1), np.float32)
    for count in np.unique(visits.counts).tolist():
        rows = np.flatnonzero(visits.counts == count)
        found[rows, : count + 1] = replay(build(count), visits)[rows]
    return found
