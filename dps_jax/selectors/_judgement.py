"""What was predicted for the prompts of a round, beside what was seen."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dps_jax.types import Selector


class Judgement(NamedTuple):
    """How good the predictions for a round were; float32 scalars unless said otherwise, 0 for a round without visits.

    Attributes:
      effective_sample_ratio: share of the completion groups with 0 < m < G.
      predicted_informative: mean predicted probability of that.
      brier: mean squared error of these predictions.
      confusion: completion groups by predicted (row) and observed (column) solve state: unsolved, partially solved,
        solved; int32 [3, 3]. Zeros for methods without solve states.
    """

    effective_sample_ratio: jax.Array
    predicted_informative: jax.Array
    brier: jax.Array
    confusion: jax.Array


def judged(selector: Selector, state: Any, ids: jax.Array, successes: jax.Array, counts: jax.Array) -> Judgement:
    """Returns how good the predictions of a state were for some prompts.

    Args:
      selector: that predicted.
      state: of the selector, before it observes these outcomes.
      ids: int [P]; entries below 0 are padding.
      successes: correct completions, int [P].
      counts: completions, int [P]; 0 for padding.
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
    """Returns the likeliest of unsolved, partially solved and solved, from K >= 3 states, int32 [P]."""
    partial = predicted_probs[1:-1].sum(axis=0)
    return jnp.argmax(jnp.stack([predicted_probs[0], partial, predicted_probs[-1]]), axis=0)
