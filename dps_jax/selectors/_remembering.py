"""A predictor whose state also has the data for acquisition: rounds of last visits, groups and costs of prompts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dps_jax.predictors._side_information import of_prompts
from dps_jax.predictors._visits import visits
from dps_jax.selectors._acquisition import Acquisition
from dps_jax.types import Predictor


class RememberingState(NamedTuple):
    """The state of the predictor with the arrays that options of acquisition need.

    Attributes:
      predictor: state of the predictor.
      last_round: round of the last visit of each prompt, int32 [N]; negative for prompts without visits, with values
        such that they are due in different rounds. None without `max_wait`.
      group: group of each prompt, int32 [N]; None without quotas.
      expected_tokens: cost of a completion of each prompt, float32 [N]; None without costs.
      round: number of rounds so far, int32 scalar.
    """

    predictor: Any
    last_round: jax.Array | None
    group: jax.Array | None
    expected_tokens: jax.Array | None
    round: jax.Array


class _Memory(NamedTuple):
    """Constants: the predictor, and the options of acquisition."""

    predictor: Predictor
    wanted: Acquisition


def remembering(predictor: Predictor, wanted: Acquisition) -> Predictor:
    """Returns the same predictor with a `RememberingState` as its state."""
    memory = _Memory(predictor, wanted)
    bound = lambda function: functools.partial(function, memory)
    inside = lambda function: None if function is None else functools.partial(_of_inner, function)
    return Predictor(
        init=bound(_init),
        predict=functools.partial(_of_inner, predictor.predict),
        observe=bound(_observe),
        outcome_probs=functools.partial(_of_inner, predictor.outcome_probs),
        draw=inside(predictor.draw),
        predicted_probs=inside(predictor.predicted_probs),
        num_impossible=inside(predictor.num_impossible),
        with_prior=None if predictor.with_prior is None else bound(_with_prior),
    )


def _of_inner(function: Callable[..., Any], state: RememberingState, *arrays: Any) -> Any:
    """Returns the result of a function of the predictor for its part of the state."""
    return function(state.predictor, *arrays)


def _init(memory: _Memory, num_prompts: int, first_id: Any = 0) -> RememberingState:
    wanted = memory.wanted
    ids = first_id + jnp.arange(num_prompts, dtype=jnp.int32)
    of_mine = lambda table: None if table is None else of_prompts(table, num_prompts, first_id)
    return RememberingState(
        predictor=memory.predictor.init(num_prompts, first_id),
        last_round=None if wanted.max_wait is None else ids % wanted.max_wait - wanted.max_wait,
        group=of_mine(wanted.groups),
        expected_tokens=of_mine(wanted.expected_tokens),
        round=jnp.zeros((), jnp.int32),
    )


def _observe(
    memory: _Memory,
    state: RememberingState,
    ids: jax.Array,
    successes: jax.Array,
    counts: jax.Array,
    axis_name: str | None = None,
) -> RememberingState:
    last_round = state.last_round
    if last_round is not None:
        targets = visits(last_round.shape[0], ids, successes, counts).targets
        last_round = last_round.at[targets].set(state.round, mode="drop")
    inner = memory.predictor.observe(state.predictor, ids, successes, counts, axis_name)
    return state._replace(predictor=inner, last_round=last_round, round=state.round + 1)


def _with_prior(memory: _Memory, state: RememberingState, prior: Any) -> RememberingState:
    change = memory.predictor.with_prior
    assert change is not None
    return state._replace(predictor=change(state.predictor, prior))
