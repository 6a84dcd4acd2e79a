"""Replaces the prior of a filter state that has already learned transition counts."""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax.hmm import _in_place, emissions
from dps_jax.hmm._beliefs import current_value, expected_value, propagate, to_odds, with_reference
from dps_jax.hmm._state import FilterState, Kind, by_group, concentration_entries, of_group
from dps_jax.hmm._transitions import PriorTable, TransitionPrior, prior_table


def with_prior(state: FilterState, prior: TransitionPrior, value: np.ndarray | None = None) -> FilterState:
    """Returns the state with its prior replaced.

    Prompts that were observed keep their beliefs and their learned transition counts. All other prompts get the belief
    that they would have if the filter had run with the new prior from round 0. All predictions use the new prior.
    The prior may be an argument of a jitted function, and `state` may be donated.

    Args:
      state: state of N prompts.
      prior: new prior, with the same emission and number of groups as the prior of the state, and with
        `trained_concentration` set if and only if it is set in the prior of the state.
      value: value of each state, [K], as passed to `init`.

    Raises:
      ValueError: if the structure of the new prior differs from that of the prior of the state.
      NotImplementedError: if the function is differentiated; `filtering.init` and `filtering.observe` have derivatives
        with respect to the prior.

    Example:
      >>> from dps_jax import hmm
      >>> state = hmm.filtering.init(2, hmm.resolve_prior("uniform"))
      >>> state = hmm.filtering.with_prior(state, hmm.resolve_prior("uniform", initial=[0.2, 0.5, 0.3]))
      >>> print(state.predicted_value)
      [0.5 0.5]
    """
    value = emissions.informative_probs(prior.emission) if value is None else np.asarray(value, np.float64)
    table = prior_table(prior, state.predicted_value.dtype)
    if table.concentration.shape != state.prior_counts.shape:
        expected, found = (_structure(array.shape) for array in (state.prior_counts, table.concentration))
        raise ValueError(f"prior: expected {expected}, got {found}")
    return _replaced(state, table, value)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _replaced(state: FilterState, table: PriorTable, value: np.ndarray) -> FilterState:
    """Returns the state under the prior of a table."""
    is_first = state.round_index == 0
    idle_concentration = [[by_group(entry)[0] for entry in row] for row in table.concentration]

    def move(_, odds):
        """Returns the odds of every group one round later for prompts without visits, as `observe` computes them."""
        return to_odds(propagate(with_reference(odds), idle_concentration))

    unseen_odds = lax.fori_loop(0, jnp.maximum(state.round_index - 1, 0), move, to_odds(by_group(table.initial_probs)))

    def change(updated, read_only):
        """Returns the belief and the value of one prompt; the belief changes only if the prompt was never observed."""
        old_odds, _ = updated
        scaled_counts, kind = read_only
        is_seen = functools.reduce(operator.or_, [count > 0 for row in scaled_counts for count in row])
        odds = tuple(
            jnp.where(is_seen, old, of_group(entries, kind.group_ids))
            for old, entries in zip(old_odds, unseen_odds, strict=True)
        )
        belief = with_reference(odds)
        next_value = expected_value(
            belief, concentration_entries(table.concentration, kind, scaled_counts, state.scale), value
        )
        return odds, jnp.where(is_first, current_value(belief, value), next_value)

    kind = Kind(state.group_ids, state.is_trained)
    updated = (state.belief_odds, state.predicted_value)
    odds, predicted_value = _in_place.map_in_place(jax.vmap(change), updated, (state.scaled_counts, kind))
    return state._replace(
        belief_odds=odds, predicted_value=predicted_value, prior_counts=table.concentration, decay=table.decay
    )


@_replaced.defjvp
def _replaced_jvp(value: np.ndarray, primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "with_prior: expected a call without differentiation, got a derivative; filtering.init, filtering.observe and "
        "the functions of hmm.online have derivatives with respect to the prior"
    )


def _structure(shape: tuple[int, ...]) -> str:
    """Returns a description of the structure of a prior, from the shape of its counts."""
    num_states, _, num_matrices, num_columns = shape
    trained = "with" if num_matrices == 2 else "without"
    return f"{num_states} states, {num_columns - 1} groups, {trained} trained_concentration"
