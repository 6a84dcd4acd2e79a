"""The state of the filter: how it is stored, how it starts, and what can be read from it."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax.hmm import emissions
from dps_jax.hmm._beliefs import Leaves, current_value, normalised, propagate, to_odds, with_reference
from dps_jax.hmm._transitions import TransitionPrior, prior_table

# A table of up to this many entries is read by comparing, which XLA for CPU vectorises, unlike a gather.
_MOST_SELECTED = 8


class FilterState(NamedTuple):
    """The filter between two rounds; arrays over prompts have shape [N].

    Attributes:
      belief_odds: filtered belief of the last round, K - 1 arrays: odds of each state against the reference state.
      scaled_counts: K x K arrays, row i for transitions out of state i: learned counts divided by `scale`, float32, or
        the upper half of a float32 as uint16.
      predicted_value: expected value of every prompt in the next round, under the `value` of `init`.
      scale: float32 scalar.
      round_index: number of rounds advanced, int32 scalar.
      num_impossible: observations so far that the model gave no chance, int32 scalar.
      prior_counts: C_0, as in `PriorTable.concentration`: [K, K, 1 or 2, L + 1].
      decay: share of the learned counts that survives a round, scalar.
      group_ids: of a prior with L groups, unsigned; L is the population. None without groups.
      is_trained: whether a prompt was rolled out in the last round, bool; None where that makes no difference.
    """

    belief_odds: Leaves
    scaled_counts: tuple[Leaves, ...]
    predicted_value: jax.Array
    scale: jax.Array
    round_index: jax.Array
    num_impossible: jax.Array
    prior_counts: jax.Array
    decay: jax.Array
    group_ids: jax.Array | None = None
    is_trained: jax.Array | None = None


class Kind(NamedTuple):
    """What decides which prior counts govern a prompt's move; None where there is one kind only, or the first is meant.

    The fields are those of `FilterState`, of all prompts or of some.
    """

    group_ids: Any
    is_trained: Any = None


def unpack(counts: jax.Array) -> jax.Array:
    """Returns counts as floats; the compact form is the upper half of a float32.

    Bit operations rather than bfloat16, which XLA for CPU converts some five times more slowly.
    """
    if counts.dtype != jnp.uint16:
        return counts
    return lax.bitcast_convert_type(counts.astype(jnp.uint32) << 16, jnp.float32)


def pack(values: jax.Array, dtype: Any) -> jax.Array:
    """Returns floats in the stored dtype, rounded to nearest, ties to even."""
    if dtype != jnp.uint16:
        return values.astype(dtype)
    bits = lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(jnp.uint16)


def by_group(table: jax.Array) -> list[jax.Array]:
    """Returns the entries of a table [..., L + 1] in order, each an array [L + 1], or a scalar where L is 0."""
    num_columns = table.shape[-1]
    return list(table.reshape(-1, num_columns) if num_columns > 1 else table.reshape(-1))


def of_group(entries: jax.Array, group_ids: Any) -> Any:
    """Returns each prompt's entry of [L + 1], or the only one."""
    if group_ids is None:
        return entries
    if entries.size > _MOST_SELECTED:
        return entries.at[group_ids].get(mode="promise_in_bounds")
    select = lambda rest, group: jnp.where(group_ids == group, entries[group], rest)
    return functools.reduce(select, range(1, entries.size), entries[0])


def concentration_entries(
    prior_counts: jax.Array, kind: Kind, scaled_counts: tuple[Leaves, ...], scale: Any
) -> list[list[Any]]:
    """Returns C = C_0 + scale * counts, K x K entries of the shape of one leaf."""
    num_states, _, num_matrices, _ = prior_counts.shape
    entries = by_group(prior_counts)

    def prior_count(i, j):
        first = (i * num_states + j) * num_matrices
        idle = of_group(entries[first], kind.group_ids)
        if kind.is_trained is None:
            return idle
        return jnp.where(kind.is_trained, of_group(entries[first + 1], kind.group_ids), idle)

    return [
        [prior_count(i, j) + scale * unpack(count) for j, count in enumerate(row)]
        for i, row in enumerate(scaled_counts)
    ]


def init(
    num_prompts: int,
    prior: TransitionPrior,
    value: np.ndarray | None = None,
    *,
    group_ids: Any = None,
    is_compact: bool = False,
    dtype: Any = jnp.float32,
) -> FilterState:
    """Returns the state before the first round.

    Args:
      num_prompts: N.
      prior: initial belief, prior counts, decay and emission.
      value: worth of each state in the next round, [K]; p(0 < m < G | state) by default.
      group_ids: int [N]; an id outside [0, L), or None, is the population. Of no effect if the prior has no groups.
      is_compact: keep counts in 16 bits (8 significant bits): 30 instead of 48 bytes per prompt at K = 3.
      dtype: of beliefs and counts.

    Raises:
      ValueError: for group ids of another shape.
    """
    value = emissions.informative_probs(prior.emission) if value is None else np.asarray(value, np.float64)
    num_states, num_groups = prior.num_states, len(prior.groups)
    table = prior_table(prior, dtype)
    initial_probs = by_group(table.initial_probs)
    if group_ids is not None:
        group_ids = jnp.asarray(group_ids)
        if group_ids.shape != (num_prompts,):
            raise ValueError(f"group_ids: expected shape [{num_prompts}], got {list(group_ids.shape)}")
    if num_groups == 0:
        group_ids = None
    else:
        group_ids = jnp.full(num_prompts, -1) if group_ids is None else group_ids
        is_known = (group_ids >= 0) & (group_ids < num_groups)
        group_ids = jnp.where(is_known, group_ids, num_groups).astype(np.min_scalar_type(num_groups))
    spread = lambda entries: jnp.broadcast_to(of_group(entries, group_ids), (num_prompts,))
    counts_dtype = jnp.uint16 if is_compact else dtype
    return FilterState(
        belief_odds=tuple(spread(entries) for entries in to_odds(initial_probs)),
        scaled_counts=tuple(
            tuple(jnp.zeros(num_prompts, counts_dtype) for _ in range(num_states)) for _ in range(num_states)
        ),
        predicted_value=spread(current_value(initial_probs, value)),
        scale=jnp.ones((), dtype),
        round_index=jnp.zeros((), jnp.int32),
        num_impossible=jnp.zeros((), jnp.int32),
        prior_counts=table.concentration,
        decay=table.decay,
        group_ids=group_ids,
        is_trained=None if prior.trained_concentration is None else jnp.zeros(num_prompts, bool),
    )


def filtered_probs(state: FilterState) -> jax.Array:
    """Returns the belief after the last round, [K, N]."""
    belief = jnp.stack(with_reference(state.belief_odds, jnp.ones_like(state.predicted_value)))
    return normalised(belief)


def of_some(state: FilterState, positions: jax.Array) -> FilterState:
    """Returns the state of some prompts alone, in this order."""
    per_prompt = (state.belief_odds, state.scaled_counts, state.predicted_value, state.group_ids, state.is_trained)
    odds, counts, value, group_ids, is_trained = jax.tree.map(lambda leaf: leaf[positions], per_prompt)
    return state._replace(
        belief_odds=odds, scaled_counts=counts, predicted_value=value, group_ids=group_ids, is_trained=is_trained
    )


def predicted_probs(state: FilterState) -> jax.Array:
    """Returns the belief for the next round, [K, N]."""
    belief = list(filtered_probs(state))
    kind = Kind(state.group_ids, state.is_trained)
    moved = propagate(belief, concentration_entries(state.prior_counts, kind, state.scaled_counts, state.scale))
    probs = jnp.where(state.round_index == 0, jnp.stack(belief), jnp.stack(moved))
    return normalised(probs)


def concentration(state: FilterState) -> jax.Array:
    """Returns the Dirichlet parameters of every prompt's next move, row i for transitions out of state i, [K, K, N]."""
    kind = Kind(state.group_ids, state.is_trained)
    rows = concentration_entries(state.prior_counts, kind, state.scaled_counts, state.scale)
    return jnp.stack([jnp.stack(row) for row in rows])


def expected_transition_matrix(concentration: jax.Array) -> jax.Array:
    """Returns the posterior mean of every prompt's transition matrix.

    Args:
      concentration: Dirichlet parameters, row i for transitions out of state i, [K, K, ...], every row sum > 0.

    Returns:
      Row-stochastic matrices, [K, K, ...].

    Source: DPS (arXiv 2603.10887); there columns, here rows.
    """
    return concentration / concentration.sum(axis=1, keepdims=True)


def state_bytes(state: FilterState) -> int:
    """Returns the size of the state in bytes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
