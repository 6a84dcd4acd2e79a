"""What followed the same last outcome, over all prompts: one table, without a memory of more than one visit."""

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
    """Last outcomes, and what followed them.

    Attributes:
      last: 0 if never seen, else 1 + the last outcome, int8 [N], or int16 for a large G.
      table: completion groups by the last outcome before them and their own, float32 [G + 2, G + 1].
    """

    last: jax.Array
    table: jax.Array


class _Model(NamedTuple):
    """What does not change: the options of `last_state`."""

    prior_count: float | jax.Array
    group_size: int


def last_state(*, prior_count: float | jax.Array = 0.5, group_size: int = 8) -> Predictor:
    """Returns the predictor of the pooled distribution of the next outcome given the last one.

    How long ago that was makes no difference.

    Args:
      prior_count: of every cell of the table, > 0.
      group_size: G of the completion groups that are predicted; outcomes of another size count as the nearest.

    Raises:
      ValueError: for an option out of range.
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
    """Returns the distribution of the next outcome for each last one, [G + 1, G + 2]."""
    counts = state.table.T + model.prior_count
    return counts / counts.sum(axis=0, keepdims=True)


def _predict(model: _Model, state: LastState) -> Prediction:
    # By comparing, which goes along any sharding of the prompts, unlike a gather.
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
