"""The base rate: every prompt is predicted to behave like the average group so far."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dps_jax.types import Prediction, Predictor


class ConstantState(NamedTuple):
    """Totals over all prompts, float32 scalars."""

    num_groups: jax.Array
    num_informative: jax.Array
    num_completions: jax.Array
    num_successes: jax.Array


def constant() -> Predictor:
    """Returns the predictor of the base rate, under a uniform Beta prior; its predictions are scalars."""

    def init(num_prompts: int, first_id: Any = 0) -> ConstantState:
        del num_prompts, first_id
        # An array each: a buffer that appears twice cannot be donated.
        return ConstantState(*(jnp.zeros((), jnp.float32) for _ in ConstantState._fields))

    def predict(state: ConstantState) -> Prediction:
        return Prediction(
            p_informative=(state.num_informative + 1) / (state.num_groups + 2),
            success_rate=(state.num_successes + 1) / (state.num_completions + 2),
        )

    def observe(
        state: ConstantState, ids: jax.Array, successes: jax.Array, counts: jax.Array, axis_name: str | None = None
    ) -> ConstantState:
        # Under a mesh every shard is given all outcomes, so there is nothing to exchange.
        del ids, axis_name
        is_informative = (successes > 0) & (successes < counts)
        totals = ConstantState(
            num_groups=jnp.sum(counts > 0),
            num_informative=jnp.sum(is_informative),
            num_completions=jnp.sum(counts),
            num_successes=jnp.sum(jnp.where(counts > 0, successes, 0)),
        )
        return jax.tree.map(lambda total, extra: total + extra.astype(jnp.float32), state, totals)

    return Predictor(init=init, predict=predict, observe=observe)
