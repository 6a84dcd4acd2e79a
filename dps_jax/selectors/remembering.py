"""A predictor that also remembers what picking needs: when prompts were tested last, their groups, what they cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dps_jax.predictors.visits import visits
from dps_jax.selectors.acquisition import Acquisition
from dps_jax.types import Predictor


class RememberingState(NamedTuple):
    """State of a selector that keeps more of its prompts than their predictor does.

    Attributes:
      predictor: state of the predictor.
      last_round: of the last test, int32 [N]; of prompts never tested such that their turns are spread evenly. None
        where nobody waits for a turn.
      group: int32 [N], None without quotas.
      expected_tokens: float32 [N], None where work does not count.
      round: rounds so far, int32 scalar.
    """

    predictor: Any
    last_round: jax.Array | None
    group: jax.Array | None
    expected_tokens: jax.Array | None
    round: jax.Array


def remembering(predictor: Predictor, wanted: Acquisition) -> Predictor:
    """Returns the predictor with a `RememberingState`."""

    def init(num_prompts: int, first_id: Any = 0) -> RememberingState:
        ids = first_id + jnp.arange(num_prompts, dtype=jnp.int32)
        of_mine = lambda values: None if values is None else jnp.asarray(values)[jnp.minimum(ids, values.size - 1)]
        return RememberingState(
            predictor=predictor.init(num_prompts, first_id),
            last_round=None if wanted.max_wait is None else ids % wanted.max_wait - wanted.max_wait,
            group=of_mine(wanted.groups),
            expected_tokens=of_mine(wanted.expected_tokens),
            round=jnp.zeros((), jnp.int32),
        )

    def observe(
        state: RememberingState, ids: jax.Array, successes: jax.Array, counts: jax.Array, axis_name: str | None = None
    ) -> RememberingState:
        last_round = state.last_round
        if last_round is not None:
            targets = visits(last_round.shape[0], ids, successes, counts).targets
            last_round = last_round.at[targets].set(state.round, mode="drop")
        inner = predictor.observe(state.predictor, ids, successes, counts, axis_name)
        return state._replace(predictor=inner, last_round=last_round, round=state.round + 1)

    def inside(fn: Callable[..., Any] | None) -> Any:
        return None if fn is None else lambda state, *arrays: fn(state.predictor, *arrays)

    def with_prior(state: RememberingState, prior: Any) -> RememberingState:
        assert predictor.with_prior is not None
        return state._replace(predictor=predictor.with_prior(state.predictor, prior))

    return Predictor(
        init=init,
        predict=inside(predictor.predict),
        observe=observe,
        outcome_probs=inside(predictor.outcome_probs),
        draw=inside(predictor.draw),
        predicted_probs=inside(predictor.predicted_probs),
        num_impossible=inside(predictor.num_impossible),
        with_prior=None if predictor.with_prior is None else with_prior,
    )
