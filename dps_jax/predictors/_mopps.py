"""MoPPS: the belief about the success rate of every prompt is a Beta distribution; its counts decay at every visit."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dps_jax import _checks
from dps_jax.hmm import emissions
from dps_jax.predictors import _binomial
from dps_jax.predictors._visits import visits
from dps_jax.types import Prediction, Predictor


class MoPPSState(NamedTuple):
    """Parameters of the Beta distributions of all prompts.

    Attributes:
      successes: parameter a, the discounted number of correct completions plus the prior's parameter, float32 [N].
      failures: parameter b, the discounted number of wrong completions plus the prior's parameter, float32 [N].
    """

    successes: jax.Array
    failures: jax.Array


class _Model(NamedTuple):
    """Constants of the method: the options of `mopps`."""

    decay: float | jax.Array
    prior_successes: float | jax.Array
    prior_failures: float | jax.Array
    group_size: int


def mopps(
    *,
    decay: float | jax.Array = 0.5,
    prior_successes: float | jax.Array = 1.0,
    prior_failures: float | jax.Array = 1.0,
    group_size: int = 8,
) -> Predictor:
    r"""Returns the predictor that keeps a discounted Beta posterior over each prompt's success rate.

    The posterior has the parameters $a$ and $b$. At a visit with m correct completions of G,
    $a \leftarrow \lambda a + (1 - \lambda) a_0 + m$ and $b \leftarrow \lambda b + (1 - \lambda) b_0 + G - m$. Between
    visits, the posterior does not change.

    Args:
      decay: share of the learned counts that survives a visit, $\lambda$, in [0, 1].
      prior_successes: parameter $a_0$ of the Beta prior, positive.
      prior_failures: parameter $b_0$ of the Beta prior, positive.
      group_size: number of completions of a predicted completion group, G; visits may have other counts.

    Raises:
      ValueError: for an option out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from dps_jax import predictors
      >>> predictor = predictors.mopps(decay=0.5)
      >>> state = predictor.observe(predictor.init(2), jnp.array([1]), jnp.array([6]), jnp.array([8]))
      >>> print(predictor.predict(state).success_rate)  # prompt 1: (1 + 6) / (2 + 8)
      [0.5 0.7]

    Source: MoPPS (arXiv 2507.04632).
    """
    _checks.check_group_size(group_size)
    _checks.check_in_interval("decay", decay, 0.0, 1.0)
    _checks.check_in_interval("prior_successes", prior_successes, 1e-3, 1e6)
    _checks.check_in_interval("prior_failures", prior_failures, 1e-3, 1e6)
    model = _Model(
        decay=_checks.as_float32(decay),
        prior_successes=_checks.as_float32(prior_successes),
        prior_failures=_checks.as_float32(prior_failures),
        group_size=group_size,
    )
    bound = lambda function: functools.partial(function, model)
    return Predictor(
        init=bound(_init),
        predict=bound(_predict),
        observe=bound(_observe),
        outcome_probs=bound(_outcome_probs),
        draw=bound(_draw),
    )


def _init(model: _Model, num_prompts: int, first_id: Any = 0) -> MoPPSState:
    del first_id
    return MoPPSState(
        successes=jnp.full(num_prompts, model.prior_successes, jnp.float32),
        failures=jnp.full(num_prompts, model.prior_failures, jnp.float32),
    )


def _predict(model: _Model, state: MoPPSState) -> Prediction:
    total = state.successes + state.failures
    rate, size = success_rates(state), jnp.full_like(total, model.group_size)
    end = lambda successes: jnp.exp(emissions.binomial_log_likelihood(rate, total, successes, size))
    return Prediction(
        p_informative=jnp.maximum(1 - end(jnp.zeros_like(size)) - end(size), 0),
        success_rate=rate,
        variance=(1 - 1 / model.group_size) * rate * (state.failures / (total + 1)),
    )


def _outcome_probs(model: _Model, state: MoPPSState, positions: jax.Array) -> jax.Array:
    total = state.successes + state.failures
    return _binomial.probs(success_rates(state)[positions], model.group_size, total[positions])


def _draw(model: _Model, state: MoPPSState, bits: jax.Array) -> Prediction:
    keys = jax.random.wrap_key_data(bits.T, impl="threefry2x32")
    return _binomial.prediction(jax.vmap(jax.random.beta)(keys, state.successes, state.failures), model.group_size)


def _observe(
    model: _Model,
    state: MoPPSState,
    ids: jax.Array,
    successes: jax.Array,
    counts: jax.Array,
    axis_name: str | None = None,
) -> MoPPSState:
    del axis_name
    seen = visits(state.successes.shape[0], ids, successes, counts)

    def discounted(old: jax.Array, prior: float | jax.Array, found: jax.Array) -> jax.Array:
        value = model.decay * old[seen.positions] + (1 - model.decay) * prior + found.astype(jnp.float32)
        return old.at[seen.targets].set(value, mode="drop")

    return MoPPSState(
        successes=discounted(state.successes, model.prior_successes, seen.successes),
        failures=discounted(state.failures, model.prior_failures, seen.counts - seen.successes),
    )


def success_rates(state: MoPPSState) -> jax.Array:
    """Returns the expected success rates, float32 [N]."""
    return state.successes / (state.successes + state.failures)


def nearness_to_half(state: MoPPSState) -> jax.Array:
    """Returns minus the distance of the expected success rate from 1/2, float32 [N]."""
    # In this form, a distribution and its mirror image have exactly the same score.
    return -jnp.abs(state.successes - state.failures) / (2 * (state.successes + state.failures))
