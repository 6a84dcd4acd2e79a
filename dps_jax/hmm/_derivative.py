"""Derivatives of a round of the filter.

`filtering.observe` is written for speed. It updates arrays in place inside loops, which have no reverse derivatives,
and stores counts relative to a shrinking scale, which makes derivatives inaccurate. This module computes the same round
with plain probabilities and counts, as in docs/concepts/method.md ("One round"), and JAX differentiates it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax.hmm import emissions
from dps_jax.hmm._beliefs import (
    SMALLEST_EVIDENCE,
    Leaves,
    expected_value,
    normalised,
    propagate,
    sum_of,
    to_odds,
    with_reference,
)
from dps_jax.hmm._state import FilterState, Kind, concentration_entries

Outcome = tuple[jax.Array, jax.Array, jax.Array]


class _Stored(NamedTuple):
    """The part of a `FilterState` that has derivatives."""

    belief_odds: Leaves
    scaled_counts: tuple[Leaves, ...]
    scale: jax.Array
    prior_counts: jax.Array
    decay: jax.Array


def _stored(state: FilterState) -> _Stored:
    return _Stored(*(getattr(state, name) for name in _Stored._fields))


def tangent_of_round(
    emission: emissions.Emission,
    value: np.ndarray,
    before: FilterState,
    tangent: FilterState,
    outcome: Outcome,
    scale: Any,
) -> FilterState:
    """Returns the tangent of the state after a round.

    Args:
      emission: emission of the prior.
      value: value of each state, [K].
      before: state before the round.
      tangent: tangent of that state, from `jax.custom_jvp`.
      outcome: ids, successes and counts, int [P] each, the arguments of `filtering.observe`.
      scale: scale of the counts after the round.

    Raises:
      NotImplementedError: for counts in 16 bits, which are integers without derivatives.
    """
    if before.scaled_counts[0][0].dtype == jnp.uint16:
        raise NotImplementedError(
            "observe: expected float counts to differentiate, got compact 16-bit counts; use filtering.init(..., "
            "is_compact=False)"
        )
    plain = lambda stored: _round(emission, value, before, stored, outcome)
    _, (odds, learned, predicted_value) = jax.jvp(plain, (_stored(before),), (_stored(tangent),))
    # The tangent of the learned counts, scale * scaled_counts, is represented by the second factor alone.
    return tangent._replace(
        belief_odds=odds,
        scaled_counts=jax.tree.map(lambda leaf: leaf / scale, learned),
        predicted_value=predicted_value,
        scale=jnp.zeros_like(tangent.scale),
    )


def _round(
    emission: emissions.Emission, value: np.ndarray, state: FilterState, stored: _Stored, outcome: Outcome
) -> tuple[Leaves, tuple[Leaves, ...], jax.Array]:
    """Returns belief odds, learned counts and the expected value after a round, arrays [N] in the form of the state.

    Args:
      emission: emission of the prior.
      value: value of each state, [K].
      state: state before the round, from which the fields without derivatives are read.
      stored: fields of the state that have derivatives.
      outcome: ids, successes and counts, int [P] each.
    """
    ids, successes, counts = outcome
    num_prompts, dtype = state.predicted_value.shape[0], state.predicted_value.dtype
    is_observed = (ids >= 0) & (ids < num_prompts) & (counts > 0)
    places = jnp.where(is_observed, ids, num_prompts)
    is_seen = jnp.zeros(num_prompts, bool).at[places].set(True, mode="drop")
    logs = emissions.log_likelihood(emission, successes, counts, dtype)
    logs = jnp.zeros((emission.num_states, num_prompts), dtype).at[:, places].set(logs, mode="drop")
    likelihood = list(jnp.exp(logs - logs.max(axis=0, keepdims=True)))
    # An impossible observation overrides the prediction; see docs/concepts/method.md, "Impossible observations".
    seen = [entry / sum_of(likelihood) for entry in likelihood]

    belief = list(normalised(jnp.stack(with_reference(stored.belief_odds, jnp.ones(num_prompts, dtype)))))
    learned = jax.tree.map(lambda leaf: stored.scale * leaf, stored.scaled_counts)
    one, states = jnp.ones((), dtype), range(emission.num_states)
    last = concentration_entries(stored.prior_counts, Kind(state.group_ids, state.is_trained), learned, one)
    predicted = [jnp.where(state.round_index == 0, *pair) for pair in zip(belief, propagate(belief, last), strict=True)]
    filtered = _shares([predicted[j] * likelihood[j] for j in states], seen)
    moves = [belief[i] / sum_of(last[i]) * last[i][j] * likelihood[j] for i in states for j in states]
    moves = _shares(moves, [belief[i] * seen[j] for i in states for j in states])
    learned = tuple(
        tuple(
            stored.decay * leaf + jnp.where(is_seen, moves[i * len(row) + j], jnp.zeros((), dtype))
            for j, leaf in enumerate(row)
        )
        for i, row in enumerate(learned)
    )
    kind = Kind(state.group_ids, None if state.is_trained is None else is_seen)
    next_value = expected_value(filtered, concentration_entries(stored.prior_counts, kind, learned, one), value)
    return to_odds(filtered), learned, next_value


def _shares(masses: list[jax.Array], otherwise: list[jax.Array]) -> list[jax.Array]:
    """Returns masses [N] divided by their sum, or `otherwise` where the observation is impossible.

    The masses are first divided by the sum without its derivative, so that derivatives never contain the square of a
    small sum.
    """
    total = lax.stop_gradient(sum_of(masses))
    is_possible = total > SMALLEST_EVIDENCE
    safe = [jnp.where(is_possible, mass, other) for mass, other in zip(masses, otherwise, strict=True)]
    scaled = [mass / jnp.where(is_possible, total, jnp.ones_like(total)) for mass in safe]
    return [mass / sum_of(scaled) for mass in scaled]
