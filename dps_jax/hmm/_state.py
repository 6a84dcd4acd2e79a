"""The state of the filter: its representation, its initial value, and the quantities that follow from it."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax._documented import documented
from dps_jax.hmm import emissions
from dps_jax.hmm._beliefs import Leaves, current_value, normalised, propagate, to_odds, with_reference
from dps_jax.hmm._transitions import TransitionPrior, prior_table

# A table of up to this many entries is read by comparisons, which XLA for CPU vectorises, unlike a gather.
_MOST_SELECTED = 8


@documented
class FilterState(NamedTuple):
    """The state of the filter between two rounds, for N prompts with K solve states each.

    Attributes:
      belief_odds: filtered belief of the last round as odds of each state against a reference state, K - 1 arrays [N];
        `filtered_probs` returns it as probabilities.
      scaled_counts: learned transition counts divided by `scale`, K x K arrays [N], row i for transitions out of state
        i; floats, or, if stored in 16 bits (`is_compact`), the upper half of a float32 as uint16.
      predicted_value: expectation of the argument `value` of `init` for every prompt in the next round, [N]; by
        default, this is the predicted P(0 < m < G) for G = 8 completions, m of them correct.
      scale: factor by which all `scaled_counts` are multiplied to get the learned counts, scalar.
      round_index: number of rounds so far, int32 scalar.
      num_impossible: number of observations so far that had probability 0 under the model, int32 scalar.
      prior_counts: Dirichlet parameters C_0 of the prior for L prompt groups and, at index L, the population;
        [K, K, 1, L + 1], or [K, K, 2, L + 1] if `trained_concentration` of the prior is set.
      decay: share of the learned counts that survives a round, scalar.
      group_ids: index of the prompt group of each prompt, unsigned integer [N]; L for prompts with the prior of the
        population; None for a prior without groups.
      is_trained: whether each prompt was rolled out in the last round, bool [N]; None for a prior without
        `trained_concentration`.

    Example:
      >>> import numpy as np
      >>> from dps_jax import hmm
      >>> state = hmm.filtering.init(4, hmm.resolve_prior("uniform"))
      >>> print(np.asarray(state.predicted_value).round(2))
      [0.33 0.33 0.33 0.33]
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
    """The fields of `FilterState` that select the prior counts of a prompt's transition, for all prompts or for some.

    A field is None if the prior does not depend on it; `is_trained=None` also selects the counts of idle prompts.
    """

    group_ids: Any
    is_trained: Any = None


def unpack(counts: jax.Array) -> jax.Array:
    """Returns counts as floats; with `is_compact`, they are stored as the upper half of a float32.

    Bit operations are used because XLA for CPU converts bfloat16 about five times more slowly.
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
    """Returns the entries of a table [..., L + 1] in order, each an array [L + 1], or a scalar if L is 0."""
    num_columns = table.shape[-1]
    return list(table.reshape(-1, num_columns) if num_columns > 1 else table.reshape(-1))


def of_group(entries: jax.Array, group_ids: Any) -> Any:
    """Returns the entry of each prompt's group from an array [L + 1], or the only entry if there are no groups."""
    if group_ids is None:
        return entries
    if entries.size > _MOST_SELECTED:
        return entries.at[group_ids].get(mode="promise_in_bounds")
    select = lambda rest, group: jnp.where(group_ids == group, entries[group], rest)
    return functools.reduce(select, range(1, entries.size), entries[0])


def concentration_entries(
    prior_counts: jax.Array, kind: Kind, scaled_counts: tuple[Leaves, ...], scale: Any
) -> list[list[Any]]:
    """Returns C = C_0 + scale * counts, K x K entries with the shape of one leaf."""
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
      num_prompts: number of prompts, N.
      prior: prior over initial states and transitions, with its decay and emission.
      value: value of each state to the trainer, float [K]; `FilterState.predicted_value` is its expectation. None
        stands for p(0 < m < G | state) with G = 8.
      group_ids: index of the group of each prompt in `prior.groups`, int [N]. Prompts with any other integer have the
        prior of the population; None gives this prior to all prompts. Group ids have no effect if the prior has no
        groups.
      is_compact: whether to store counts in 16 bits (8 significant bits), so that with K = 3 and float32 a prompt takes
        30 bytes instead of 48.
      dtype: dtype of beliefs, and of counts unless `is_compact` is set.

    Raises:
      ValueError: if `group_ids` does not have the shape [N].

    Example:
      >>> from dps_jax import hmm
      >>> state = hmm.filtering.init(4, hmm.resolve_prior("progress", initial=[0.5, 0.25, 0.25]), is_compact=True)
      >>> print(hmm.filtering.predicted_probs(state)[:, 0])
      [0.5  0.25 0.25]
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
    """Returns the belief about the state of the last round, given all rounds so far, [K, N].

    Args:
      state: state of N prompts.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from dps_jax import hmm
      >>> prior = hmm.resolve_prior("uniform")
      >>> visit = jnp.array([0]), jnp.array([8]), jnp.array([8])  # ids, successes, counts: prompt 0 was solved
      >>> state = hmm.filtering.observe(hmm.filtering.init(2, prior), prior.emission, *visit)
      >>> print(np.asarray(hmm.filtering.filtered_probs(state)).round(2).T)
      [[0.   0.   1.  ]
       [0.33 0.33 0.33]]
    """
    belief = jnp.stack(with_reference(state.belief_odds, jnp.ones_like(state.predicted_value)))
    return normalised(belief)


def of_some(state: FilterState, positions: jax.Array) -> FilterState:
    """Returns the state of some of the prompts, in the given order.

    Args:
      state: state of N prompts.
      positions: positions of the prompts, int [P], in [0, N).

    Example:
      >>> import jax.numpy as jnp
      >>> from dps_jax import hmm
      >>> state = hmm.filtering.init(4, hmm.resolve_prior("uniform"))
      >>> hmm.filtering.of_some(state, jnp.array([3, 1])).predicted_value.shape
      (2,)
    """
    per_prompt = (state.belief_odds, state.scaled_counts, state.predicted_value, state.group_ids, state.is_trained)
    odds, counts, value, group_ids, is_trained = jax.tree.map(lambda leaf: leaf[positions], per_prompt)
    return state._replace(
        belief_odds=odds, scaled_counts=counts, predicted_value=value, group_ids=group_ids, is_trained=is_trained
    )


def predicted_probs(state: FilterState) -> jax.Array:
    """Returns the belief about the state of the next round, given all rounds so far, [K, N].

    Args:
      state: state of N prompts.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from dps_jax import hmm
      >>> prior = hmm.resolve_prior("uniform")
      >>> visit = jnp.array([0]), jnp.array([8]), jnp.array([8])  # ids, successes, counts: prompt 0 was solved
      >>> state = hmm.filtering.observe(hmm.filtering.init(2, prior), prior.emission, *visit)
      >>> print(np.asarray(hmm.filtering.predicted_probs(state)[:, 0]).round(2))
      [0.3 0.3 0.4]
    """
    belief = list(filtered_probs(state))
    kind = Kind(state.group_ids, state.is_trained)
    moved = propagate(belief, concentration_entries(state.prior_counts, kind, state.scaled_counts, state.scale))
    probs = jnp.where(state.round_index == 0, jnp.stack(belief), jnp.stack(moved))
    return normalised(probs)


def concentration(state: FilterState) -> jax.Array:
    """Returns the Dirichlet parameters of each prompt's next transition, [K, K, N], row i for transitions from state i.

    Args:
      state: state of N prompts.

    Example:
      >>> from dps_jax import hmm
      >>> state = hmm.filtering.init(4, hmm.resolve_prior("progress"))
      >>> print(hmm.filtering.concentration(state)[:, :, 0])
      [[1.  1.  1. ]
       [0.5 1.  1. ]
       [0.5 0.5 1. ]]
    """
    kind = Kind(state.group_ids, state.is_trained)
    rows = concentration_entries(state.prior_counts, kind, state.scaled_counts, state.scale)
    return jnp.stack([jnp.stack(row) for row in rows])


def expected_transition_matrix(concentration: jax.Array) -> jax.Array:
    """Returns the posterior mean of every prompt's transition matrix.

    Args:
      concentration: Dirichlet parameters, row i for transitions out of state i, [K, K, ...]; every row sum is > 0.

    Returns:
      Row-stochastic matrices, [K, K, ...].

    Example:
      >>> import jax.numpy as jnp
      >>> from dps_jax import hmm
      >>> print(hmm.filtering.expected_transition_matrix(jnp.array([[3.0, 1.0], [1.0, 1.0]])))
      [[0.75 0.25]
       [0.5  0.5 ]]

    Source: DPS (arXiv 2603.10887), which uses the transposed matrices: there, column i is for transitions from state i.
    """
    return concentration / concentration.sum(axis=1, keepdims=True)


def state_bytes(state: FilterState) -> int:
    """Returns the size of the state in bytes.

    Args:
      state: state of N prompts.

    Example:
      >>> from dps_jax import hmm
      >>> state = hmm.filtering.init(1000, hmm.resolve_prior("uniform"))
      >>> hmm.filtering.state_bytes(state) // 1000
      48
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
