"""Distributions of the next outcome, m correct completions of G: functions that several predictors use."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax import _checks
from dps_jax.types import Prediction


def summarise(probs: jax.Array) -> Prediction:
    """Returns the prediction that follows from a distribution of outcomes.

    Args:
      probs: probabilities of m = 0, ..., G, [G + 1] or [G + 1, N].
    """
    group_size = probs.shape[0] - 1
    rates = (jnp.arange(group_size + 1, dtype=probs.dtype) / group_size).reshape(-1, *(1,) * (probs.ndim - 1))
    return Prediction(
        p_informative=probs[1:-1].sum(axis=0),
        success_rate=(rates * probs).sum(axis=0),
        variance=(rates * (1 - rates) * probs).sum(axis=0),
    )


def nearest(successes: jax.Array, counts: jax.Array, group_size: int) -> jax.Array:
    """Returns the outcome out of G that is nearest to an outcome m out of another count, int32 [P].

    An outcome without correct completions is mapped to 0, an outcome with only correct completions to G, and all others
    to values in between.

    Args:
      successes: number of correct completions, int [P], in [0, counts].
      counts: number of completions, int [P]; entries with a count of 0 are padding, for which the result is undefined.
      group_size: number of completions of a group, G.
    """
    scaled = (2 * successes * group_size + counts) // jnp.maximum(2 * counts, 1)
    inside = jnp.clip(scaled, min(1, group_size), max(group_size - 1, 0))
    is_inside = (successes > 0) & (successes < counts)
    return jnp.where(is_inside, inside, jnp.where(successes > 0, group_size, 0)).astype(jnp.int32)


def histogram(successes: jax.Array, counts: jax.Array, group_size: int) -> jax.Array:
    """Returns the number of completion groups with each outcome, float32 [G + 1].

    Args:
      successes: number of correct completions, int [P].
      counts: number of completions, int [P]; entries with a count of 0 are padding.
      group_size: number of completions of a group, G.
    """
    outcome = nearest(successes, counts, group_size)
    return jnp.zeros(group_size + 1, jnp.float32).at[outcome].add((counts > 0).astype(jnp.float32))


def check_hardness(hardness: float) -> None:
    """Raises ValueError if a hardness is out of range."""
    _checks.check_number("hardness", hardness, at_least=0)


def worth_of_outcomes(group_size: int, hardness: float) -> np.ndarray:
    """Returns the value of a group with m = 0, ..., G correct completions, float64 [G + 1].

    The value is (1 - m / G) ** hardness if the group is informative, 0 < m < G, and 0 otherwise.
    """
    successes = np.arange(group_size + 1)
    is_informative = (successes > 0) & (successes < group_size)
    return np.where(is_informative, (1 - successes / group_size) ** hardness, 0.0)
