"""History resampling: which prompts were fully solved in this epoch, and the base rate for the others."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dps_jax.predictors.constant import ConstantState, constant
from dps_jax.types import Prediction, Predictor


class HistoryState(NamedTuple):
    """The epoch so far.

    Attributes:
      is_solved: prompts whose last group of this epoch was fully solved, bool [N].
      epoch_groups: groups observed in this epoch, int32 scalar.
      totals: over the whole run.
    """

    is_solved: jax.Array
    epoch_groups: jax.Array
    totals: ConstantState


def history(epoch_size: int, *, group_size: int = 8) -> Predictor:
    """Returns the predictor that takes a fully solved prompt to stay solved until the epoch ends.

    Args:
      epoch_size: groups in an epoch; the usual choice is the number of prompts.
      group_size: G of the groups that are predicted.

    Source: the baseline HR of DPS (arXiv 2603.10887), after the history resampling of SRPO (arXiv 2504.14286), where
    the prompts dropped are those of the epoch before; here a prompt is dropped as soon as it was seen solved.
    """
    base = constant(group_size=group_size)

    def init(num_prompts: int, first_id: Any = 0) -> HistoryState:
        return HistoryState(jnp.zeros(num_prompts, bool), jnp.zeros((), jnp.int32), base.init(num_prompts, first_id))

    def predict(state: HistoryState) -> Prediction:
        rates = base.predict(state.totals)
        return Prediction(
            p_informative=jnp.where(state.is_solved, 0.0, rates.p_informative),
            success_rate=jnp.where(state.is_solved, 1.0, rates.success_rate),
            variance=jnp.where(state.is_solved, 0.0, rates.variance),
        )

    def outcome_probs(state: HistoryState, positions: jax.Array) -> jax.Array:
        rates = base.outcome_probs(state.totals, positions)
        return jnp.where(state.is_solved[positions], jnp.eye(group_size + 1, dtype=rates.dtype)[:, -1:], rates)

    def observe(
        state: HistoryState, ids: jax.Array, successes: jax.Array, counts: jax.Array, axis_name: str | None = None
    ) -> HistoryState:
        num_prompts = state.is_solved.shape[0]
        targets = jnp.where((ids >= 0) & (counts > 0), ids, num_prompts)
        is_solved = state.is_solved.at[targets].set(successes == counts, mode="drop")
        epoch_groups = state.epoch_groups + jnp.sum(counts > 0, dtype=jnp.int32)
        is_over = epoch_groups >= epoch_size
        return HistoryState(
            is_solved=is_solved & ~is_over,
            epoch_groups=jnp.where(is_over, 0, epoch_groups),
            totals=base.observe(state.totals, ids, successes, counts, axis_name),
        )

    return Predictor(init=init, predict=predict, observe=observe, outcome_probs=outcome_probs)
