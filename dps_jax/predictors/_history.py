"""History resampling: a prompt solved in this epoch is predicted to stay solved; all others have one prediction."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dps_jax import _checks
from dps_jax.predictors._constant import ConstantState, constant
from dps_jax.types import Prediction, Predictor


class HistoryState(NamedTuple):
    """Outcomes of the current epoch, and outcomes over the whole run.

    Attributes:
      is_solved: whether all completions of a prompt's last visit in this epoch were correct, bool [N].
      epoch_visits: number of visits in this epoch, int32 scalar.
      totals: outcomes over the whole run.
    """

    is_solved: jax.Array
    epoch_visits: jax.Array
    totals: ConstantState


class _Model(NamedTuple):
    """Constants of the method.

    Attributes:
      epoch_size: option of `history`.
      group_size: number of completions of a group, G.
      base: predictor `constant`, for prompts that are not solved.
    """

    epoch_size: int
    group_size: int
    base: Predictor


def history(epoch_size: int, *, group_size: int = 8) -> Predictor:
    """Returns the predictor under which a fully solved prompt stays solved until the epoch ends.

    The prediction for all other prompts is the distribution of all outcomes of the run; see `constant`.

    Args:
      epoch_size: number of visits in an epoch; the usual choice is the number of prompts.
      group_size: number of completions of a predicted completion group, G.

    Raises:
      ValueError: if an option is not a whole number >= 1, or `epoch_size` exceeds 2**30.

    Example:
      >>> import jax.numpy as jnp
      >>> from dps_jax import predictors
      >>> predictor = predictors.history(epoch_size=10)
      >>> state = predictor.observe(predictor.init(3), jnp.array([0, 1]), jnp.array([8, 3]), jnp.array([8, 8]))
      >>> print(state.is_solved)
      [ True False False]

    Source: the baseline HR of DPS (arXiv 2603.10887), after the history resampling of SRPO (arXiv 2504.14286), which
    drops the prompts that were solved in the previous epoch; here a prompt is dropped as soon as it is solved.
    """
    _checks.check_int("epoch_size", epoch_size, at_least=1, at_most=2**30)
    model = _Model(epoch_size=epoch_size, group_size=group_size, base=constant(group_size=group_size))
    bound = lambda function: functools.partial(function, model)
    return Predictor(
        init=bound(_init), predict=bound(_predict), observe=bound(_observe), outcome_probs=bound(_outcome_probs)
    )


def _init(model: _Model, num_prompts: int, first_id: Any = 0) -> HistoryState:
    return HistoryState(
        is_solved=jnp.zeros(num_prompts, bool),
        epoch_visits=jnp.zeros((), jnp.int32),
        totals=model.base.init(num_prompts, first_id),
    )


def _predict(model: _Model, state: HistoryState) -> Prediction:
    rates = model.base.predict(state.totals)
    return Prediction(
        p_informative=jnp.where(state.is_solved, 0.0, rates.p_informative),
        success_rate=jnp.where(state.is_solved, 1.0, rates.success_rate),
        variance=jnp.where(state.is_solved, 0.0, rates.variance),
    )


def _outcome_probs(model: _Model, state: HistoryState, positions: jax.Array) -> jax.Array:
    rates = model.base.outcome_probs(state.totals, positions)
    solved = jnp.eye(model.group_size + 1, dtype=rates.dtype)[:, -1:]
    return jnp.where(state.is_solved[positions], solved, rates)


def _observe(
    model: _Model,
    state: HistoryState,
    ids: jax.Array,
    successes: jax.Array,
    counts: jax.Array,
    axis_name: str | None = None,
) -> HistoryState:
    num_prompts = state.is_solved.shape[0]
    targets = jnp.where((ids >= 0) & (counts > 0), ids, num_prompts)
    is_solved = state.is_solved.at[targets].set(successes == counts, mode="drop")
    epoch_visits = state.epoch_visits + jnp.sum(counts > 0, dtype=jnp.int32)
    is_over = epoch_visits >= model.epoch_size
    return HistoryState(
        is_solved=is_solved & ~is_over,
        epoch_visits=jnp.where(is_over, 0, epoch_visits),
        totals=model.base.observe(state.totals, ids, successes, counts, axis_name),
    )
