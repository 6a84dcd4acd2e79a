"""The distribution of m correct completions of G at known success rates, and expectations under it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax.hmm import emissions
from dps_jax.types import Prediction


def probs(success_rates: jax.Array, group_size: int, precision: jax.Array | None = None) -> jax.Array:
    """Returns p(m successes) for m = 0, ..., G, [G + 1, ...].

    Args:
      success_rates: success rates, [...], in [0, 1]; inside (0, 1) with a precision.
      group_size: number of completions of a group, G.
      precision: a + b of the Beta distribution of the rate, [...]; None if the rate is known.
    """
    dtype = success_rates.dtype
    # Rates are kept away from 0 and 1, where the logarithm of an impossible completion would be infinite.
    success_rates = jnp.clip(success_rates, jnp.finfo(dtype).tiny, 1 - jnp.finfo(dtype).epsneg)
    over_outcomes = (group_size + 1,) + (1,) * success_rates.ndim
    successes = np.arange(group_size + 1)
    coefficients = emissions.log_coefficients(group_size)
    log_likelihood = emissions.binomial_log_likelihood(
        success_rates[None],
        None if precision is None else precision[None],
        jnp.asarray(successes, dtype).reshape(over_outcomes),
        jnp.full(over_outcomes, group_size, dtype),
    )
    unnormalised = jnp.exp(jnp.asarray(coefficients, dtype).reshape(over_outcomes) + log_likelihood)
    # Without this division, the sum would differ from 1 by the rounding errors of large logarithms.
    return unnormalised / unnormalised.sum(axis=0, keepdims=True)


def prediction(success_rates: jax.Array, group_size: int) -> Prediction:
    """Returns the prediction for known success rates, fields [...], without computing the distribution of m.

    Args:
      success_rates: success rates, [...], in [0, 1].
      group_size: number of completions of a group, G.
    """
    rest = 1 - success_rates
    return Prediction(
        p_informative=jnp.maximum(
            1 - lax.integer_pow(success_rates, group_size) - lax.integer_pow(rest, group_size), 0
        ),
        success_rate=success_rates,
        variance=success_rates * rest * (1 - 1 / group_size),
    )
