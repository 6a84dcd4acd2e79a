"""Predict first, then reveal: what a predictor said about every visit of a logged trace before it came."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax import _checks
from dps_jax.traces.format import Trace
from dps_jax.types import Predictor


class Visits(NamedTuple):
    """The rows of a trace by round, padded: ids -1 and counts 0 where a round has fewer visits than the largest.

    Attributes:
      ids: int32 [T, P].
      successes: int32 [T, P].
      counts: int32 [T, P].
    """

    ids: np.ndarray
    successes: np.ndarray
    counts: np.ndarray

    @property
    def is_visit(self) -> np.ndarray:
        """What is not padding, bool [T, P]."""
        return self.counts > 0


def by_round(trace: Trace) -> Visits:
    """Returns the rows of a trace by round, in order. Rounds without a visit are no rounds.

    Raises:
      ValueError: for an empty trace, or a prompt twice in a round.
    """
    rounds = _checks.check_integer_array("trace.rounds", trace.rounds)
    if rounds.size == 0:
        raise ValueError("trace: expected at least one row, got none")
    _, index = np.unique(rounds, return_inverse=True)
    order = np.argsort(index, kind="stable")
    index = index[order]
    place = np.arange(index.size) - np.searchsorted(index, index)
    shape = (int(index[-1]) + 1, int(place.max()) + 1)
    padded = []
    for column, fill in ((trace.prompt_ids, -1), (trace.successes, 0), (trace.counts, 0)):
        table = np.full(shape, fill, np.int32)
        table[index, place] = np.asarray(column)[order]
        padded.append(table)
    cells = index.astype(np.int64) * (int(np.max(trace.prompt_ids)) + 1) + np.asarray(trace.prompt_ids)[order]
    if np.unique(cells).size != cells.size:
        raise ValueError("trace: expected a prompt at most once per round, got one twice; add its rows up first")
    return Visits(*padded)


def replay(predictor: Predictor, visits: Visits, num_prompts: int) -> np.ndarray:
    """Returns the distribution of outcomes that a predictor gave every visit before it saw it, float32 [T, P, G + 1].

    Args:
      predictor: starts from nothing.
      visits: of `by_round`.
      num_prompts: N.
    """

    def step(state: Any, row: Any) -> tuple[Any, jax.Array]:
        ids, successes, counts = row
        probs = predictor.outcome_probs(state, jnp.maximum(ids, 0))
        return predictor.observe(state, ids, successes, counts), probs.T

    run = jax.jit(lambda rows: lax.scan(step, predictor.init(num_prompts), rows)[1])
    return np.asarray(run(tuple(jnp.asarray(column) for column in visits)))
