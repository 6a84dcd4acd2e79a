"""The same prediction for every prompt: the distribution of all outcomes so far."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dps_jax import _checks
from dps_jax.predictors import _outcomes
from dps_jax.types import Predictor


class ConstantState(NamedTuple):
    """Totals over all prompts.

    Attributes:
      histogram: number of completion groups with each outcome m, float32 [G + 1].
    """

    histogram: jax.Array


def constant(*, group_size: int = 8) -> Predictor:
    r"""Returns the predictor whose prediction for every prompt is the distribution of all outcomes so far.

    The outcome m of a visit is its number of correct completions. The outcomes of all prompts have one categorical
    distribution with a uniform Dirichlet prior, $p(m) \propto 1 + \text{number of visits with outcome } m$. All fields
    of the predictions are scalars. `observe` counts every outcome with a count above 0, whatever its position.

    Args:
      group_size: number of completions of a predicted completion group, G; visits with other counts are mapped to the
        nearest outcome out of G.

    Raises:
      ValueError: if `group_size` is not a whole number >= 1.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from dps_jax import predictors
      >>> predictor = predictors.constant(group_size=2)
      >>> state = predictor.observe(predictor.init(3), jnp.array([0]), jnp.array([1]), jnp.array([2]))
      >>> print(np.asarray(predictor.outcome_probs(state, jnp.array([2]))[:, 0]).round(2))  # m = 0, 1, 2
      [0.25 0.5  0.25]
    """
    _checks.check_group_size(group_size)

    def init(num_prompts: int, first_id: Any = 0) -> ConstantState:
        del num_prompts, first_id
        return ConstantState(jnp.zeros(group_size + 1, jnp.float32))

    def probs(state: ConstantState) -> jax.Array:
        counts = state.histogram + 1
        return counts / counts.sum()

    def observe(
        state: ConstantState, ids: jax.Array, successes: jax.Array, counts: jax.Array, axis_name: str | None = None
    ) -> ConstantState:
        # Under a mesh, every shard gets all outcomes, so no communication is needed.
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
