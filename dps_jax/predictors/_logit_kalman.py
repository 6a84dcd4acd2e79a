"""A Kalman filter on the logit of every prompt's success rate, which follows a random walk between visits."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import ndtri

from dps_jax import _checks
from dps_jax.predictors import _binomial
from dps_jax.predictors._draws import uniforms
from dps_jax.predictors._visits import visits
from dps_jax.types import Prediction, Predictor

# Nodes of the Gauss-Hermite rule. Its error is 1e-5 at a standard deviation of 1.5, 3e-4 at 2, and 5e-3 at 3.
_NUM_NODES = 32
_NODES, _UNSCALED = np.polynomial.hermite_e.hermegauss(_NUM_NODES)
_WEIGHTS = _UNSCALED / _UNSCALED.sum()
# Number of prompts that are integrated at a time, so that no array of shape nodes x all prompts is allocated.
_BLOCK = 4096


class LogitKalmanState(NamedTuple):
    """Normal distributions of the logits of all prompts, each just after its last visit.

    Attributes:
      mean: mean of the logit, float32 [N].
      variance: variance of the logit, float32 [N].
      visit: round of the last visit, int32 [N]; -1 for prompts without visits.
      round_index: number of rounds so far, int32 scalar.
    """

    mean: jax.Array
    variance: jax.Array
    visit: jax.Array
    round_index: jax.Array


class _Model(NamedTuple):
    """Constants of the method: the options of `logit_kalman`."""

    process_noise: float | jax.Array
    prior_mean: float | jax.Array
    prior_variance: float | jax.Array
    group_size: int


def logit_kalman(
    *,
    process_noise: float | jax.Array = 0.05,
    prior_mean: float | jax.Array = 0.0,
    prior_variance: float | jax.Array = 4.0,
    group_size: int = 8,
) -> Predictor:
    r"""Returns the predictor that runs a Kalman filter on the logit of each prompt's success rate.

    A visit with m correct completions of G is treated as a normal observation $\log\frac{m + 1/2}{G - m + 1/2}$ of the
    logit, with the variance $\frac{1}{m + 1/2} + \frac{1}{G - m + 1/2}$ of the delta method. Each round adds
    `process_noise` to the variance of prompts that were visited before; the distribution of prompts without visits does
    not change.

    Args:
      process_noise: variance (>= 0) that a round adds to a logit.
      prior_mean: mean of the logit of prompts without visits.
      prior_variance: variance of the logit of prompts without visits, positive.
      group_size: number of completions of a predicted completion group, G; visits may have other counts.

    Raises:
      ValueError: for an option out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from dps_jax import predictors
      >>> predictor = predictors.logit_kalman()
      >>> state = predictor.observe(predictor.init(2), jnp.array([0]), jnp.array([8]), jnp.array([8]))
      >>> print((state.mean > 0).tolist(), (state.variance < 4).tolist())  # only prompt 0 was visited
      [True, False] [True, False]
    """
    _checks.check_group_size(group_size)
    _checks.check_in_interval("process_noise", process_noise, 0.0, 1e3)
    _checks.check_in_interval("prior_mean", prior_mean, -30.0, 30.0)
    _checks.check_in_interval("prior_variance", prior_variance, 1e-6, 1e3)
    model = _Model(
        process_noise=_checks.as_float32(process_noise),
        prior_mean=_checks.as_float32(prior_mean),
        prior_variance=_checks.as_float32(prior_variance),
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


def _init(model: _Model, num_prompts: int, first_id: Any = 0) -> LogitKalmanState:
    del first_id
    return LogitKalmanState(
        mean=jnp.full(num_prompts, model.prior_mean, jnp.float32),
        variance=jnp.full(num_prompts, model.prior_variance, jnp.float32),
        visit=jnp.full(num_prompts, -1, jnp.int32),
        round_index=jnp.zeros((), jnp.int32),
    )


def _variances(model: _Model, state: LogitKalmanState, positions: Any = slice(None)) -> jax.Array:
    """Returns the variances of the logits of some prompts in the next round, [P]."""
    visit = state.visit[positions]
    num_moves = jnp.where(visit < 0, 0, state.round_index - visit).astype(jnp.float32)
    return state.variance[positions] + model.process_noise * num_moves


def _rates(mean: jax.Array, variance: jax.Array) -> jax.Array:
    """Returns the success rates at the nodes of one prompt, [Q]."""
    return jax.nn.sigmoid(mean + jnp.sqrt(variance) * jnp.asarray(_NODES, jnp.float32))


def _prediction_of(model: _Model, mean: jax.Array, variance: jax.Array) -> Prediction:
    """Returns the prediction for one prompt, scalars."""
    at_nodes = _binomial.prediction(_rates(mean, variance), model.group_size)
    return jax.tree.map(lambda values: jnp.sum(jnp.asarray(_WEIGHTS, jnp.float32) * values), at_nodes)


def _predict(model: _Model, state: LogitKalmanState) -> Prediction:
    of_one = lambda moments: _prediction_of(model, *moments)
    seen = lax.map(of_one, (state.mean, _variances(model, state)), batch_size=_BLOCK)
    # Rounding depends on the position in an array, but prompts without visits must have identical predictions.
    unseen = of_one((jnp.asarray(model.prior_mean, jnp.float32), jnp.asarray(model.prior_variance, jnp.float32)))
    return jax.tree.map(lambda one, all_: jnp.where(state.visit < 0, one, all_), unseen, seen)


def _outcome_probs(model: _Model, state: LogitKalmanState, positions: jax.Array) -> jax.Array:
    rates = jax.vmap(_rates, out_axes=1)(state.mean[positions], _variances(model, state, positions))
    at_nodes = _binomial.probs(rates, model.group_size)
    return jnp.sum(jnp.asarray(_WEIGHTS, jnp.float32)[None, :, None] * at_nodes, axis=1)


def _draw(model: _Model, state: LogitKalmanState, bits: jax.Array) -> Prediction:
    logits = state.mean + jnp.sqrt(_variances(model, state)) * ndtri(uniforms(bits[0]))
    return _binomial.prediction(jax.nn.sigmoid(logits), model.group_size)


def _observe(
    model: _Model,
    state: LogitKalmanState,
    ids: jax.Array,
    successes: jax.Array,
    counts: jax.Array,
    axis_name: str | None = None,
) -> LogitKalmanState:
    del axis_name
    seen = visits(state.mean.shape[0], ids, successes, counts)
    correct = seen.successes.astype(jnp.float32) + 0.5
    wrong = (seen.counts - seen.successes).astype(jnp.float32) + 0.5
    noise = 1 / correct + 1 / wrong
    mean, variance = state.mean[seen.positions], _variances(model, state, seen.positions)
    gain = variance / (variance + noise)
    return LogitKalmanState(
        mean=state.mean.at[seen.targets].set(mean + gain * (jnp.log(correct / wrong) - mean), mode="drop"),
        variance=state.variance.at[seen.targets].set(gain * noise, mode="drop"),
        visit=state.visit.at[seen.targets].set(state.round_index, mode="drop"),
        round_index=state.round_index + 1,
    )
