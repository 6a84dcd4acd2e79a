"""The quality of the predictions for the prompts of a round, given their outcomes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dps_jax.types import Selector


class Judgement(NamedTuple):
    """The quality of the predictions for a round: float32 scalars, 0 for a round without visits, and a matrix.

    Attributes:
      effective_sample_ratio: share of the completion groups with 0 < m < G.
      predicted_informative: mean predicted probability of 0 < m < G.
      brier: mean squared error of these predicted probabilities, the Brier score.
      confusion: number of completion groups by predicted (row) and observed (column) solve state: unsolved, partially
        solved, solved; int32 [3, 3]. Zeros for methods without solve states and for K = 2.
    """

    effective_sample_ratio: jax.Array
    predicted_informative: jax.Array
    brier: jax.Array
    confusion: jax.Array


def judged(selector: Selector, state: Any, ids: jax.Array, successes: jax.Array, counts: jax.Array) -> Judgement:
    """Returns the quality of the predictions of a state for some prompts.

    Args:
      selector: selector that predicts.
      state: state of the selector before it observes these outcomes.
      ids: ids of the prompts, int [P]; negative entries are padding.
      successes: number of correct completions, int [P].
      counts: number of completions, int [P]; 0 for padding.
    """
    is_seen = (ids >= 0) & (counts > 0)
    observed = jnp.where(successes == 0, 0, jnp.where(successes == counts, 2, 1))
    is_informative = (observed == 1).astype(jnp.float32)
    predicted = selector.predict(state, ids).p_informative
    num_seen = jnp.maximum(jnp.sum(is_seen, dtype=jnp.float32), 1.0)
    mean = lambda values: jnp.sum(jnp.where(is_seen, values, 0.0)) / num_seen
    confusion = jnp.zeros((3, 3), jnp.int32)
    if selector.predicted_probs is not None:
        probs = selector.predicted_probs(state, ids)
        if probs.shape[0] >= 3:
            confusion = confusion.at[_solve_state(probs), observed].add(is_seen.astype(jnp.int32))
    return Judgement(
        effective_sample_ratio=mean(is_informative),
        predicted_informative=mean(predicted),
        brier=mean((predicted - is_informative) ** 2),
        confusion=confusion,
    )


def _solve_state(predicted_probs: jax.Array) -> jax.Array:
    """Returns the most probable of unsolved, partially solved and solved, from K >= 3 states, int32 [P]."""
    partial = predicted_probs[1:-1].sum(axis=0)
    return jnp.argmax(jnp.stack([predicted_probs[0], partial, predicted_probs[-1]]), axis=0)
