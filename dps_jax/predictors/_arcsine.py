"""A Kalman filter on the angle arcsin(sqrt(success rate)), with drift and noise learned from all prompts.

On this scale, the variance of binomial noise is about the same for all rates. The change of the angle from one round to
the next has a normal distribution, with one mean (the drift) and variance after a visit, and another after an idle
round. At a visit, the prompt's normal distribution is truncated to [0, pi/2] and multiplied by the exact binomial
likelihood on a grid of angles; the mean and variance of the product are kept.

Drifts and variances are learned by steps of Fisher scoring on the log evidence of the visits. For a normal prior
N(mean, S) with expectations E, and a posterior with expectations E' and variance S', the derivatives of the log
evidence are differences of posterior and prior moments: E'[x - mean] / S - E[x - mean] / S with respect to the mean,
and half of E'[(x - mean)^2] / S^2 - E[(x - mean)^2] / S^2 with respect to the variance. The information about the drift
is the reduction of the variance, (S - S') / S^2; the information about the variance is the square of its derivative.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import ndtr, ndtri

from dps_jax import _checks, _exact
from dps_jax.hmm import emissions
from dps_jax.predictors import _binomial, _outcomes
from dps_jax.predictors._draws import uniforms
from dps_jax.predictors._visits import pooled, visits
from dps_jax.types import Prediction, Predictor

# The nodes of the grid are the middles of equal cells. Variances have a lower limit, since a distribution narrower than
# a cell could fall between two nodes.
_NUM_NODES = 64
_CELL = np.pi / 2 / _NUM_NODES
_SMALLEST_VARIANCE = float(_CELL**2)
_ANGLES = (np.arange(_NUM_NODES) + 0.5) * _CELL
# Log probabilities of a correct and of a wrong completion at each node, [2, Q].
_LOG_RATES = np.stack([2 * np.log(np.sin(_ANGLES)), 2 * np.log(np.cos(_ANGLES))])
# Initial variances of the change after a visit and after an idle round. Initial drifts are 0.
_FIRST_NOISE = (5e-3, 1e-3)
# Information that damps the steps of the drifts and of the log variances: standard deviations of 0.02 and 0.5.
_DRIFT_DAMPING, _NOISE_DAMPING = 2500.0, 4.0
# Bounds of the drifts, of the log variances, and of a step of the log variances, for visits with little information.
_LARGEST_DRIFT = 0.1
_LOG_NOISE_BOUNDS = (float(np.log(1e-6)), float(np.log(0.3)))
_LARGEST_STEP = 0.5
# The initial population: the number of first visits that it counts as, and the mean and variance of their angles.
_FIRST_POPULATION = (4.0, np.pi / 4, 0.2)
# Number of prompts that are integrated at a time, so that no array of shape nodes x all prompts is allocated.
_BLOCK = 4096


class ArcsineLearned(NamedTuple):
    """Parameters learned from all prompts; entry 0 is for changes after visits, entry 1 for changes after idle rounds.

    Attributes:
      drift: mean change of the angle in a round, radians, float32 [2].
      log_noise: logarithm of the variance of this change, float32 [2].
      drift_information: Fisher information about `drift`, a discounted sum over visits, float32 [2, 2].
      noise_information: Fisher information about `log_noise`, float32 [2, 2].
      population: discounted sums over first visits of 1, the angle and the squared angle, float32 [3].
    """

    drift: jax.Array
    log_noise: jax.Array
    drift_information: jax.Array
    noise_information: jax.Array
    population: jax.Array


class ArcsineState(NamedTuple):
    """Distributions of the angles of all prompts, each just after its last visit.

    Attributes:
      mean: mean angle, radians, float32 [N]; undefined for prompts without visits.
      variance: variance of the angle, float32 [N]; undefined for prompts without visits.
      visit: round of the last visit, int32 [N]; -1 for prompts without visits.
      round_index: number of rounds so far, int32 scalar.
      learned: parameters learned from all prompts.
    """

    mean: jax.Array
    variance: jax.Array
    visit: jax.Array
    round_index: jax.Array
    learned: ArcsineLearned


class _Predicted(NamedTuple):
    """Distributions of the angles of some prompts in the next round.

    Attributes:
      mean: mean angle, [P].
      variance: variance of the angle, [P].
      is_inside: whether the mean was inside [0, pi/2] before it was clipped to this interval, bool [P].
      num_moves: number of changes of each kind since the last visit, [2, P].
    """

    mean: jax.Array
    variance: jax.Array
    is_inside: jax.Array
    num_moves: jax.Array


class _Model(NamedTuple):
    """Constants of the method.

    Attributes:
      decay: option of `arcsine`.
      group_size: number of completions of a group, G.
      outcome_probs: probabilities of m = 0, ..., G at each angle of the grid, [G + 1, Q].
    """

    decay: float | jax.Array
    group_size: int
    outcome_probs: np.ndarray


def arcsine(*, decay: float | jax.Array = 0.99, group_size: int = 8) -> Predictor:
    r"""Returns the predictor that filters the angle of each prompt's success rate.

    The state of a prompt is a normal distribution of the angle $\phi = \arcsin\sqrt{\text{rate}}$. In each round a
    drift is added to its mean and a noise variance to its variance; both have one value after a visit and another after
    an idle round, and are learned from all prompts. Prompts without visits are predicted by the mean and variance of
    the angles at first visits.

    Args:
      decay: share of the statistics about drifts, variances and first visits that survives a round, in [0, 1].
      group_size: number of completions of a predicted completion group, G; visits may have other counts.

    Raises:
      ValueError: for an option out of range.

    Example:
      >>> import numpy as np
      >>> from dps_jax import predictors
      >>> predictor = predictors.arcsine(group_size=8)
      >>> state = predictor.init(3)
      >>> predictor.outcome_probs(state, np.array([0, 2])).shape  # P(m) for m = 0, ..., 8; prompts 0 and 2
      (9, 2)
    """
    _checks.check_group_size(group_size)
    _checks.check_in_interval("decay", decay, 0.0, 1.0)
    model = _Model(
        decay=_checks.as_float32(decay),
        group_size=group_size,
        outcome_probs=emissions.binomial_outcome_probs(np.sin(_ANGLES) ** 2, group_size),
    )
    bound = lambda function: functools.partial(function, model)
    return Predictor(
        init=_init,
        predict=bound(_predict),
        observe=bound(_observe),
        outcome_probs=bound(_outcome_probs),
        draw=bound(_draw),
    )


def _init(num_prompts: int, first_id: Any = 0) -> ArcsineState:
    del first_id
    count, mean, variance = _FIRST_POPULATION
    learned = ArcsineLearned(
        drift=jnp.zeros(2, jnp.float32),
        log_noise=jnp.asarray(np.log(_FIRST_NOISE), jnp.float32),
        drift_information=jnp.zeros((2, 2), jnp.float32),
        noise_information=jnp.zeros((2, 2), jnp.float32),
        population=jnp.asarray([count, count * mean, count * (variance + mean**2)], jnp.float32),
    )
    return ArcsineState(
        mean=jnp.zeros(num_prompts, jnp.float32),
        variance=jnp.zeros(num_prompts, jnp.float32),
        visit=jnp.full(num_prompts, -1, jnp.int32),
        round_index=jnp.zeros((), jnp.int32),
        learned=learned,
    )


def _predicted(state: ArcsineState, positions: Any = slice(None)) -> _Predicted:
    """Returns the distributions of the angles of some prompts in the next round."""
    count, total, squares = state.learned.population
    mean_unseen = total / count
    variance_unseen = squares / count - mean_unseen**2
    visit = state.visit[positions]
    is_unseen = visit < 0
    num_idle = (state.round_index - visit - 1).astype(jnp.float32)
    num_moves = jnp.where(is_unseen[None], 0.0, jnp.stack([jnp.ones_like(num_idle), num_idle]))
    drift, noise = state.learned.drift, jnp.exp(state.learned.log_noise)
    moved = state.mean[positions] + drift[0] * num_moves[0] + drift[1] * num_moves[1]
    moved = jnp.where(is_unseen, mean_unseen, moved)
    variance = state.variance[positions] + noise[0] * num_moves[0] + noise[1] * num_moves[1]
    mean = jnp.clip(moved, 0.0, np.pi / 2)
    return _Predicted(
        mean=mean,
        variance=jnp.maximum(jnp.where(is_unseen, variance_unseen, variance), _SMALLEST_VARIANCE),
        is_inside=mean == moved,
        num_moves=num_moves,
    )


def _outcome_probs_of(model: _Model, mean: jax.Array, variance: jax.Array) -> jax.Array:
    """Returns the distribution of the next outcome of one prompt, [G + 1]."""
    weights = jnp.exp(-((jnp.asarray(_ANGLES, jnp.float32) - mean) ** 2) / (2 * variance))
    return _exact.matmul(jnp.asarray(model.outcome_probs, jnp.float32), weights / weights.sum())


def _predict(model: _Model, state: ArcsineState) -> Prediction:
    of_next = _predicted(state)
    seen = lax.map(
        lambda moments: _outcomes.summarise(_outcome_probs_of(model, *moments)),
        (of_next.mean, of_next.variance),
        batch_size=_BLOCK,
    )
    # Rounding depends on the position in an array, but prompts without visits must have identical predictions.
    zero, never = jnp.zeros(1, jnp.float32), jnp.full(1, -1, jnp.int32)
    of_first = _predicted(state._replace(mean=zero, variance=zero, visit=never))
    unseen = _outcomes.summarise(_outcome_probs_of(model, of_first.mean[0], of_first.variance[0]))
    return jax.tree.map(lambda one, all_: jnp.where(state.visit < 0, one, all_), unseen, seen)


def _outcome_probs(model: _Model, state: ArcsineState, positions: jax.Array) -> jax.Array:
    of_next = _predicted(state, positions)
    return jax.vmap(functools.partial(_outcome_probs_of, model), out_axes=1)(of_next.mean, of_next.variance)


def _draw(model: _Model, state: ArcsineState, bits: jax.Array) -> Prediction:
    of_next = _predicted(state)
    scale = jnp.sqrt(of_next.variance)
    low, high = ndtr(-of_next.mean / scale), ndtr((np.pi / 2 - of_next.mean) / scale)
    drawn = of_next.mean + scale * ndtri(low + (high - low) * uniforms(bits[0]))
    return _binomial.prediction(jnp.sin(jnp.clip(drawn, 0.0, np.pi / 2)) ** 2, model.group_size)


def _observe(
    model: _Model,
    state: ArcsineState,
    ids: jax.Array,
    successes: jax.Array,
    counts: jax.Array,
    axis_name: str | None = None,
) -> ArcsineState:
    seen = visits(state.mean.shape[0], ids, successes, counts)
    prior = _predicted(state, seen.positions)
    away = jnp.asarray(_ANGLES, jnp.float32)[:, None] - prior.mean[None]  # [Q, P]
    log_prior = -(away**2) / (2 * prior.variance[None])
    correct = seen.successes.astype(jnp.float32)[None]
    wrong = (seen.counts - seen.successes).astype(jnp.float32)[None]
    log_rates = jnp.asarray(_LOG_RATES, jnp.float32)
    log_likelihood = correct * log_rates[0][:, None] + wrong * log_rates[1][:, None]
    before, after = _moments(log_prior, away), _moments(log_prior + log_likelihood, away)
    mean, variance = prior.mean + after[0], jnp.maximum(after[1], _SMALLEST_VARIANCE)

    is_first = (state.visit[seen.positions] < 0) & seen.is_used
    first = jnp.stack([jnp.ones_like(mean), mean, variance + mean**2]) * is_first.astype(jnp.float32)[None]
    sums = pooled(_sums(state.learned, prior, before, after, seen.weights, first), axis_name)
    return ArcsineState(
        mean=state.mean.at[seen.targets].set(mean, mode="drop"),
        variance=state.variance.at[seen.targets].set(variance, mode="drop"),
        visit=state.visit.at[seen.targets].set(state.round_index, mode="drop"),
        round_index=state.round_index + 1,
        learned=_learn(model, state.learned, sums),
    )


def _moments(log_weights: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and variance over nodes, [P] each, of values [Q, P] under unnormalised log weights [Q, P]."""
    weights = jnp.exp(log_weights - log_weights.max(axis=0, keepdims=True))
    weights = weights / weights.sum(axis=0, keepdims=True)
    mean = jnp.sum(weights * values, axis=0)
    return mean, jnp.sum(weights * (values - mean[None]) ** 2, axis=0)


class _Sums(NamedTuple):
    """Sums over the visits of a round.

    Attributes:
      drift_score: derivative of the log evidence with respect to both drifts, [2].
      noise_score: derivative of the log evidence with respect to the logarithms of both variances, [2].
      drift_information: Fisher information about the drifts, [2, 2].
      noise_information: Fisher information about the log variances, [2, 2].
      population: sums over first visits of 1, the angle and the squared angle, [3].
    """

    drift_score: jax.Array
    noise_score: jax.Array
    drift_information: jax.Array
    noise_information: jax.Array
    population: jax.Array


def _sums(
    learned: ArcsineLearned,
    prior: _Predicted,
    before: tuple[jax.Array, jax.Array],
    after: tuple[jax.Array, jax.Array],
    weights: jax.Array,
    first: jax.Array,
) -> _Sums:
    """Returns the statistics of the visits of a round.

    Args:
      learned: parameters before the round.
      prior: predicted distributions of the visited prompts.
      before: mean and variance of the distance from prior.mean under the truncated prior, [P] each.
      after: mean and variance of this distance under the posterior, [P] each.
      weights: 1 for visits, 0 for padding, [P].
      first: terms that each visit adds to the population, [3, P].
    """
    (mean_before, variance_before), (mean_after, variance_after) = before, after
    # Scores of every visit with respect to both drifts and to the logarithms of both variances, [2, P].
    num_moves = prior.num_moves * weights[None]
    free_moves = num_moves * prior.is_inside.astype(jnp.float32)[None]
    drift_score = free_moves * ((mean_after - mean_before) / prior.variance)[None]
    by_variance = variance_after + mean_after**2 - variance_before - mean_before**2
    noise_score = num_moves * jnp.exp(learned.log_noise)[:, None] * (by_variance / (2 * prior.variance**2))[None]
    fallen = jnp.maximum(variance_before - variance_after, 0) / prior.variance**2
    products = lambda one, other: jnp.sum(one[:, None] * other[None], axis=-1)
    return _Sums(
        drift_score=drift_score.sum(axis=-1),
        noise_score=noise_score.sum(axis=-1),
        drift_information=products(free_moves, free_moves * fallen[None]),
        noise_information=products(noise_score, noise_score),
        population=first.sum(axis=-1),
    )


def _learn(model: _Model, learned: ArcsineLearned, sums: _Sums) -> ArcsineLearned:
    """Returns the parameters after a round: one step of Fisher scoring, and first visits added to the population.

    Args:
      model: constants of the method; only the decay is used.
      learned: parameters before the round.
      sums: sums over the visits of all prompts.
    """
    drift_information = model.decay * learned.drift_information + sums.drift_information
    noise_information = model.decay * learned.noise_information + sums.noise_information
    drift = learned.drift + _damped_step(drift_information, sums.drift_score, _DRIFT_DAMPING)
    step = jnp.clip(_damped_step(noise_information, sums.noise_score, _NOISE_DAMPING), -_LARGEST_STEP, _LARGEST_STEP)
    # A round without first visits has no information about prompts without visits.
    kept = jnp.where(sums.population[0] > 0, model.decay, 1.0)
    return ArcsineLearned(
        drift=jnp.clip(drift, -_LARGEST_DRIFT, _LARGEST_DRIFT),
        log_noise=jnp.clip(learned.log_noise + step, *_LOG_NOISE_BOUNDS),
        drift_information=drift_information,
        noise_information=noise_information,
        population=kept * learned.population + sums.population,
    )


def _damped_step(information: jax.Array, score: jax.Array, damping: float) -> jax.Array:
    """Returns (information + damping * identity)^-1 @ score, [2]."""
    (a, b), (_, d) = information
    a, d = a + damping, d + damping
    return jnp.stack([d * score[0] - b * score[1], a * score[1] - b * score[0]]) / (a * d - b * b)
