"""The base rate: every prompt is predicted to behave like the average completion group so far."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dps_jax.predictors import _outcomes
from dps_jax.types import Predictor


class ConstantState(NamedTuple):
    """Totals over all prompts.

    Attributes:
      histogram: completion groups by the outcome they had, float32 [G + 1].
    """

    histogram: jax.Array


def constant(*, group_size: int = 8) -> Predictor:
    """Returns the predictor of the base rate, under a uniform Dirichlet prior; its predictions are scalars.

    Args:
      group_size: G of the completion groups that are predicted; outcomes of another size count as the nearest.
    """

    def init(num_prompts: int, first_id: Any = 0) -> ConstantState:
        del num_prompts, first_id
        return ConstantState(jnp.zeros(group_size + 1, jnp.float32))

    def probs(state: ConstantState) -> jax.Array:
        counts = state.histogram + 1
        return counts / counts.sum()

    def observe(
        state: ConstantState, ids: jax.Array, successes: jax.Array, counts: jax.Array, axis_name: str | None = None
    ) -> ConstantState:
        # Under a mesh every shard is given all outcomes, so there is nothing to exchange.
        del ids, axis_name
        return ConstantState(state.histogram + _outcomes.histogram(successes, counts, group_size))

    return Predictor(
        init=init,
        predict=lambda state: _outcomes.summarise(probs(state)),
        observe=observe,
        outcome_probs=lambda state, positions: jnp.broadcast_to(
            probs(state)[:, None], (group_size + 1, positions.shape[0])
        ),
    )
