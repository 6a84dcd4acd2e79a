"""Moving averages of every prompt's success rate and reward variance, with one step per visit."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dps_jax import _checks
from dps_jax.predictors import _binomial, _outcomes
from dps_jax.predictors._visits import pooled, visits
from dps_jax.types import Prediction, Predictor

# Weight of the population in a prediction: after a few equal outcomes, a prompt's average alone would be overconfident.
_POPULATION_SHARE = 0.1


class EMAVarianceState(NamedTuple):
    """Averages of each prompt, and the distribution of outcomes over all prompts.

    Attributes:
      rate: moving average of the success rate, float32 [N]; undefined for prompts without visits.
      variance: moving average of m / G * (1 - m / G), float32 [N]; undefined for prompts without visits.
      is_seen: whether a prompt was visited, bool [N].
      histogram: number of completion groups with each outcome m, float32 [G + 1].
    """

    rate: jax.Array
    variance: jax.Array
    is_seen: jax.Array
    histogram: jax.Array


class _Model(NamedTuple):
    """Constants of the method: the options of `ema_variance`."""

    decay: float | jax.Array
    group_size: int


def ema_variance(*, decay: float | jax.Array = 0.7, group_size: int = 8) -> Predictor:
    r"""Returns the predictor that keeps a moving average of each prompt's success rate.

    A visit with m correct completions of G updates the average $r \leftarrow \lambda r + (1 - \lambda)\, m / G$, which
    starts at the mean over all prompts (1/2 before any outcome). The next outcome is predicted by a mixture of the
    binomial distribution with the rate $r$ and the distribution of the outcomes of all prompts. The state also has the
    moving average of the reward variance m / G * (1 - m / G), for the option `rank_by` of the selector `ema_variance`.

    Args:
      decay: share of an average that survives a visit, $\lambda$, in [0, 1].
      group_size: number of completions of a predicted completion group, G; in the distribution over all prompts, visits
        with other counts are mapped to the nearest outcome out of G.

    Raises:
      ValueError: for an option out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from dps_jax import predictors
      >>> predictor = predictors.ema_variance(decay=0.5)
      >>> state = predictor.observe(predictor.init(2), jnp.array([0]), jnp.array([8]), jnp.array([8]))
      >>> print(np.asarray(state.rate[:1]))  # (1 / 2 + 8 / 8) / 2
      [0.75]
    """
    _checks.check_group_size(group_size)
    _checks.check_in_interval("decay", decay, 0.0, 1.0)
    model = _Model(decay=_checks.as_float32(decay), group_size=group_size)
    bound = lambda function: functools.partial(function, model)
    return Predictor(
        init=bound(_init), predict=bound(_predict), observe=bound(_observe), outcome_probs=bound(_outcome_probs)
    )


def _init(model: _Model, num_prompts: int, first_id: Any = 0) -> EMAVarianceState:
    del first_id
    return EMAVarianceState(
        rate=jnp.zeros(num_prompts, jnp.float32),
        variance=jnp.zeros(num_prompts, jnp.float32),
        is_seen=jnp.zeros(num_prompts, bool),
        histogram=jnp.zeros(model.group_size + 1, jnp.float32),
    )


def _rates(state: EMAVarianceState, positions: Any = slice(None)) -> jax.Array:
    """Returns the average success rates of some prompts, [P]; the mean over all outcomes for prompts without visits."""
    mean = _outcomes.summarise(_population(state)).success_rate
    return jnp.where(state.is_seen[positions], state.rate[positions], mean)


def _predict(model: _Model, state: EMAVarianceState) -> Prediction:
    own = _binomial.prediction(_rates(state), model.group_size)
    pooled_over_all = _outcomes.summarise(_population(state))
    mixed = lambda one, all_: (1 - _POPULATION_SHARE) * one + _POPULATION_SHARE * all_
    return jax.tree.map(mixed, own, pooled_over_all)


def _outcome_probs(model: _Model, state: EMAVarianceState, positions: jax.Array) -> jax.Array:
    own = _binomial.probs(_rates(state, positions), model.group_size)
    return (1 - _POPULATION_SHARE) * own + _POPULATION_SHARE * _population(state)[:, None]


def _observe(
    model: _Model,
    state: EMAVarianceState,
    ids: jax.Array,
    successes: jax.Array,
    counts: jax.Array,
    axis_name: str | None = None,
) -> EMAVarianceState:
    seen = visits(state.rate.shape[0], ids, successes, counts)
    found = seen.successes.astype(jnp.float32) / jnp.maximum(seen.counts, 1).astype(jnp.float32)
    averaged = lambda old, value: model.decay * old[seen.positions] + (1 - model.decay) * value
    rate = averaged(_rates(state), found)
    variance = averaged(average_variance(state), found * (1 - found))
    histogram = _outcomes.histogram(seen.successes, seen.counts, model.group_size)
    return EMAVarianceState(
        rate=state.rate.at[seen.targets].set(rate, mode="drop"),
        variance=state.variance.at[seen.targets].set(variance, mode="drop"),
        is_seen=state.is_seen.at[seen.targets].set(True, mode="drop"),
        histogram=state.histogram + pooled(histogram, axis_name),
    )


def average_variance(state: EMAVarianceState) -> jax.Array:
    """Returns the average reward variance, float32 [N]; the mean over all outcomes for prompts without visits."""
    return jnp.where(state.is_seen, state.variance, _outcomes.summarise(_population(state)).variance)


def _population(state: EMAVarianceState) -> jax.Array:
    """Returns the distribution of all outcomes so far under a uniform prior, [G + 1]."""
    counts = state.histogram + 1
    return counts / counts.sum()
