"""The distribution of the next outcome given the last outcome, one table for all prompts."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dps_jax import _checks
from dps_jax.predictors import _outcomes
from dps_jax.predictors._visits import pooled, visits
from dps_jax.types import Prediction, Predictor


class LastState(NamedTuple):
    """The last outcome of each prompt, and a table of successive outcomes.

    Attributes:
      last: 0 for prompts without visits, and 1 + the last outcome m for others, int8 [N], or int16 for a large G.
      table: number of completion groups by the previous outcome of their prompt (row) and their own outcome (column),
        float32 [G + 2, G + 1].
    """

    last: jax.Array
    table: jax.Array


class _Model(NamedTuple):
    """Constants of the method: the options of `last_state`."""

    prior_count: float | jax.Array
    group_size: int


def last_state(*, prior_count: float | jax.Array = 0.5, group_size: int = 8) -> Predictor:
    """Returns the predictor that looks up the next outcome's distribution by the last outcome, in one shared table.

    The number of rounds since the last visit has no influence. Prompts without visits have a row of their own in the
    table, the distribution of first outcomes.

    Args:
      prior_count: pseudo-count (> 0) of every entry of the table.
      group_size: number of completions of a predicted completion group, G; visits with other counts are mapped to the
        nearest outcome out of G.

    Raises:
      ValueError: for an option out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from dps_jax import predictors
      >>> predictor = predictors.last_state(group_size=8)
      >>> state = predictor.observe(predictor.init(3), jnp.array([0, 2]), jnp.array([8, 3]), jnp.array([8, 8]))
      >>> print(np.asarray(predictor.predict(state).p_informative).round(2))  # prompt 1: from two first visits
      [0.78 0.69 0.78]
    """
    _checks.check_group_size(group_size)
    _checks.check_in_interval("prior_count", prior_count, 1e-6, 1e6)
    model = _Model(prior_count=_checks.as_float32(prior_count), group_size=group_size)
    bound = lambda function: functools.partial(function, model)
    return Predictor(
        init=bound(_init), predict=bound(_predict), observe=bound(_observe), outcome_probs=bound(_outcome_probs)
    )


def _init(model: _Model, num_prompts: int, first_id: Any = 0) -> LastState:
    del first_id
    dtype = jnp.int8 if model.group_size < 127 else jnp.int16
    return LastState(
        last=jnp.zeros(num_prompts, dtype),
        table=jnp.zeros((model.group_size + 2, model.group_size + 1), jnp.float32),
    )


def _probs(model: _Model, state: LastState) -> jax.Array:
    """Returns the distribution of the next outcome for each last outcome, [G + 1, G + 2]."""
    counts = state.table.T + model.prior_count
    return counts / counts.sum(axis=0, keepdims=True)


def _predict(model: _Model, state: LastState) -> Prediction:
    # Comparisons keep any sharding of the prompts; a gather would not.
    read = lambda entries: functools.reduce(
        lambda rest, last: jnp.where(state.last == last, entries[last], rest),
        range(1, model.group_size + 2),
        jnp.where(state.last == 0, entries[0], 0.0),
    )
    return jax.tree.map(read, _outcomes.summarise(_probs(model, state)))


def _outcome_probs(model: _Model, state: LastState, positions: jax.Array) -> jax.Array:
    return _probs(model, state)[:, state.last[positions].astype(jnp.int32)]


def _observe(
    model: _Model,
    state: LastState,
    ids: jax.Array,
    successes: jax.Array,
    counts: jax.Array,
    axis_name: str | None = None,
) -> LastState:
    seen = visits(state.last.shape[0], ids, successes, counts)
    outcome = _outcomes.nearest(seen.successes, seen.counts, model.group_size)
    last = state.last[seen.positions].astype(jnp.int32)
    followed = jnp.zeros_like(state.table).at[last, outcome].add(seen.weights)
    return LastState(
        last=state.last.at[seen.targets].set((1 + outcome).astype(state.last.dtype), mode="drop"),
        table=state.table + pooled(followed, axis_name),
    )
