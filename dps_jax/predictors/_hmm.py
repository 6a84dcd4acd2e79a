"""The filter of `dps_jax.hmm.filtering` as a predictor: DPS with the exact emission, or any other `TransitionPrior`."""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax import _exact
from dps_jax.hmm import emissions, filtering
from dps_jax.hmm._transitions import TransitionPrior, check_group_ids, resolve_prior
from dps_jax.predictors import _draws
from dps_jax.predictors._side_information import of_prompts
from dps_jax.types import Prediction, Predictor


class _Model(NamedTuple):
    """Constants of the method.

    Attributes:
      prior: option of `hmm`.
      group_ids: group of every prompt, int32 [N + 1], with -1 at the end; None without groups.
      is_compact: option of `hmm`.
      value: P(0 < m < G) in each state, [K].
      success_rates: mean success rate in each state, [K].
      variances: variance of rewards in each state, [K].
      outcome_probs: probabilities of m = 0, ..., G in each state, [G + 1, K].
    """

    prior: TransitionPrior
    group_ids: np.ndarray | None
    is_compact: bool
    value: np.ndarray
    success_rates: np.ndarray
    variances: np.ndarray
    outcome_probs: np.ndarray


def hmm(
    prior: TransitionPrior | str | os.PathLike[str] = "uniform",
    *,
    group_ids: Any = None,
    group_size: int = 8,
    is_compact: bool = False,
) -> Predictor:
    """Returns the predictor that filters the hidden solve state of every prompt.

    Each prompt has a belief over K states and its own Dirichlet posterior over the rows of a transition matrix; see
    `dps_jax.hmm.filtering`. With the exact emission (the outcome determines the state), K = 3 and a named prior, it is
    the predictor of DPS.

    Args:
      prior: `TransitionPrior` with initial belief, Dirichlet parameters, decay and emission, or any other form that
        `hmm.resolve_prior` accepts, such as a name or the path of a saved prior.
      group_ids: group of each prompt, int [N]: an id of one of the L groups of the prior (0, ..., L - 1 unless the
        prior has `group_ids`), or -1 if it is not known. None means that no group is known.
      group_size: number of completions of a predicted completion group, G.
      is_compact: whether to store transition counts in 16 bits; see `dps_jax.hmm.filtering.init`.

    Raises:
      ValueError: for an unknown name, an unreadable file, or a group id out of range. The function `with_prior` of the
        predictor raises it for a prior with a different structure.

    Example:
      >>> from dps_jax import hmm, predictors
      >>> predictor = predictors.hmm(hmm.resolve_prior("uniform", initial=[0.2, 0.5, 0.3]))
      >>> state = predictor.init(2)
      >>> print(predictor.predicted_probs(state)[:, 0])
      [0.2 0.5 0.3]

    Source: DPS (arXiv 2603.10887).
    """
    prior = prior if isinstance(prior, TransitionPrior) else resolve_prior(prior)
    emission = prior.emission
    if group_ids is not None:
        # The additional last entry is for padding: prompts past the end.
        group_ids = np.append(check_group_ids("group_ids", group_ids, prior), -1).astype(np.int32)
    model = _Model(
        prior=prior,
        group_ids=group_ids if prior.groups else None,
        is_compact=is_compact,
        value=emissions.informative_probs(emission, group_size),
        success_rates=emissions.mean_success_rates(emission),
        variances=emissions.reward_variances(emission, group_size),
        outcome_probs=emissions.outcome_probs(emission, group_size),
    )
    bound = lambda function: functools.partial(function, model)
    return Predictor(
        init=bound(_init),
        predict=bound(_predict),
        observe=bound(_observe),
        outcome_probs=bound(_outcome_probs),
        draw=bound(_draw),
        predicted_probs=_predicted_probs,
        num_impossible=lambda state: state.num_impossible,
        with_prior=bound(_with_prior),
    )


def _init(model: _Model, num_prompts: int, first_id: Any = 0) -> filtering.FilterState:
    local_ids = None if model.group_ids is None else of_prompts(model.group_ids, num_prompts, first_id)
    return filtering.init(num_prompts, model.prior, model.value, group_ids=local_ids, is_compact=model.is_compact)


def _predict(model: _Model, state: filtering.FilterState) -> Prediction:
    probs = filtering.predicted_probs(state)
    expected = lambda values: jnp.sum(probs * jnp.asarray(values, probs.dtype)[:, None], axis=0)
    return Prediction(state.predicted_value, expected(model.success_rates), expected(model.variances))


def _predicted_probs(state: filtering.FilterState, positions: jax.Array | None = None) -> jax.Array:
    return filtering.predicted_probs(state if positions is None else filtering.of_some(state, positions))


def _outcome_probs(model: _Model, state: filtering.FilterState, positions: jax.Array) -> jax.Array:
    probs = _predicted_probs(state, positions)
    return _exact.matmul(jnp.asarray(model.outcome_probs, probs.dtype), probs)


def _draw(model: _Model, state: filtering.FilterState, bits: jax.Array) -> Prediction:
    drawn = _draws.state_of(filtering.predicted_probs(state), bits[0])
    of_states = (model.value, model.success_rates, model.variances)
    return Prediction(*(jnp.asarray(values, jnp.float32)[drawn] for values in of_states))


def _observe(
    model: _Model,
    state: filtering.FilterState,
    ids: jax.Array,
    successes: jax.Array,
    counts: jax.Array,
    axis_name: str | None = None,
) -> filtering.FilterState:
    emission = model.prior.emission
    return filtering.observe(state, emission, ids, successes, counts, model.value, axis_name=axis_name)


def _with_prior(model: _Model, state: filtering.FilterState, prior: TransitionPrior) -> filtering.FilterState:
    if prior.emission != model.prior.emission:
        raise ValueError(f"prior: expected the emission {model.prior.emission}, got {prior.emission}")
    own_ids = model.prior.group_ids
    if prior.group_ids != own_ids:
        raise ValueError(f"prior: expected group_ids {own_ids}, got {prior.group_ids}")
    return filtering.with_prior(state, prior, model.value)
