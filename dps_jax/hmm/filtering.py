"""The filter: solve-state beliefs and transition counts of all prompts, advanced together, round by round.

What is stored per prompt and why (METHOD sections 1 and 2):

* The forgetting step is `D <- decay * D + xi` for the learned counts `D = C - C_0`, with one decay for all prompts. So
  the state holds `D / scale` with a single scalar `scale`, which takes the decay: only the counts of the few prompts
  that were observed are rewritten.
* A belief over K states is held as K - 1 odds against a reference state. Unlike K - 1 probabilities, odds keep the
  relative precision of small beliefs and cannot drift away from summing to one.
* The expected value of the next round, which selection ranks, is computed in the pass that advances the beliefs,
  where the counts are at hand.

With K = 3 this is 12 numbers, 48 bytes in float32, and 30 bytes with `compact` counts in 16 bits.

The prior is data too: `with_prior` puts another one under the same state, and nothing is compiled again. A prior with
groups adds the group of each prompt to the state, and one that tells moves of trained prompts from moves of idle ones
adds which prompts were rolled out in the last round. Both kinds of move share the learned counts D.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax.hmm import _in_place, emissions
from dps_jax.hmm._beliefs import (
    SMALLEST_BELIEF,
    Leaves,
    condition,
    expected_value,
    propagate,
    sum_of,
    to_odds,
    with_reference,
)
from dps_jax.hmm._derivative import tangent_of_round
from dps_jax.hmm._state import (
    FilterState,
    Kind,
    concentration,
    concentration_entries,
    expected_transition_matrix,
    filtered_probs,
    init,
    of_some,
    pack,
    predicted_probs,
    state_bytes,
    unpack,
)
from dps_jax.hmm._with_prior import with_prior

__all__ = [
    "FilterState",
    "concentration",
    "expected_transition_matrix",
    "filtered_probs",
    "init",
    "observe",
    "of_some",
    "predicted_probs",
    "state_bytes",
    "with_prior",
]

# The stored counts grow as `scale` shrinks; they are rescaled long before float32 overflows.
_SMALLEST_SCALE = 2.0**-40


def _rescale(scaled_counts: tuple[Leaves, ...], scale: jax.Array) -> tuple[tuple[Leaves, ...], jax.Array]:
    """Returns the same counts at scale 1 if the scale has become small, which is once in many rounds.

    Counts that were ever positive stay so: that tells the prompts that were seen from the others.
    """

    def to_one(carry):
        scaled_counts, scale = carry
        smallest = jnp.asarray(jnp.finfo(scale.dtype).tiny, scale.dtype)

        def rescale(leaf):
            counts = unpack(leaf)
            rescaled = jnp.where(counts > 0, jnp.maximum(counts * scale, smallest), jnp.zeros_like(counts))
            return pack(rescaled, leaf.dtype)

        return jax.tree.map(rescale, scaled_counts), jnp.ones_like(scale)

    # A loop of at most one step: unlike a branch, it is compiled in place.
    return lax.while_loop(lambda carry: carry[1] < _SMALLEST_SCALE, to_one, (scaled_counts, scale))


def _drift(
    state: FilterState, scaled_counts: tuple[Leaves, ...], scale: jax.Array, next_scale: jax.Array, value: np.ndarray
) -> tuple[Leaves, jax.Array, jax.Array | None]:
    """Moves all prompts by one round as if none were observed.

    Args:
      state: before the round.
      scaled_counts: with those of this round, K x K arrays [N], at a scale that is not small.
      scale: of the counts in the round before.
      next_scale: of the counts in this round.
      value: worth of each state, [K].

    Returns:
      belief odds, K - 1 arrays [N]; value of the round after, [N]; is_trained, bool [N] or None.
    """
    # q of the first round is the initial belief itself: no transition leads to it.
    is_first = state.round_index == 0
    concentration_of = functools.partial(concentration_entries, state.prior_counts)

    def drift(updated, read_only):
        old_odds, _, was_trained = updated
        scaled_counts, group_id = read_only
        last_concentration = concentration_of(Kind(group_id, was_trained), scaled_counts, scale)
        moved = to_odds(propagate(with_reference(old_odds), last_concentration))
        odds = tuple(jnp.where(is_first, *pair) for pair in zip(old_odds, moved, strict=True))
        next_concentration = concentration_of(Kind(group_id), scaled_counts, next_scale)
        next_value = expected_value(with_reference(odds), next_concentration, value)
        return odds, next_value, jax.tree.map(jnp.zeros_like, was_trained)

    updated = (state.belief_odds, state.predicted_value, state.is_trained)
    return _in_place.map_in_place(jax.vmap(drift), updated, (scaled_counts, state.group_ids))


def observe(
    state: FilterState,
    emission: emissions.Emission,
    ids: jax.Array,
    successes: jax.Array,
    counts: jax.Array,
    value: np.ndarray | None = None,
    *,
    axis_name: str | None = None,
) -> FilterState:
    """Returns the state one round later: condition, count, forget and predict, for every prompt.

    Donate `state` (`jax.jit(..., donate_argnums=0)`) and nothing of size [N] is allocated.

    Has forward and reverse derivatives with respect to the floats of the state, the decay and the prior counts among
    them; they allocate. In a state with compact counts it raises NotImplementedError instead. Prior counts that are 0
    and lead to the middle state from a state that is certain have a derivative of 0, as the stored odds cannot hold it.
    For the likelihood of a whole trace, `online` is faster.

    Args:
      state: of N prompts.
      emission: that of the prior.
      ids: the prompts that were observed, int [P], distinct; an id outside [0, N) is left out.
      successes: correct completions, int [P].
      counts: completions, int [P]; an entry of 0 is left out.
      value: as given to `init`.
      axis_name: of the mesh axis that shards the prompts, under `shard_map`.

    Source: METHOD section 1; DPS (arXiv 2603.10887), there columns, here rows. Departure: with a prior for trained
    prompts, the move out of a round starts from the C_0 of those who were observed in it, or of those who were not.
    """
    value = emissions.informative_probs(emission) if value is None else np.asarray(value, np.float64)
    return _advance(state, emission, ids, successes, counts, value, axis_name)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 5, 6))
def _advance(
    state: FilterState,
    emission: emissions.Emission,
    ids: jax.Array,
    successes: jax.Array,
    counts: jax.Array,
    value: np.ndarray,
    axis_name: str | None,
) -> FilterState:
    """Does what `observe` says, in place where the state was donated."""
    num_prompts = state.predicted_value.shape[0]
    dtype = state.predicted_value.dtype
    is_observed = (ids >= 0) & (ids < num_prompts) & (counts > 0)
    ids = jnp.where(is_observed, ids, num_prompts)
    pick = lambda leaf: leaf.at[ids].get(mode="clip")
    put = lambda leaf, values: leaf.at[ids].set(values.astype(leaf.dtype), mode="drop")
    scaled_counts, scale = _rescale(state.scaled_counts, state.scale)
    next_scale = jnp.maximum(scale * state.decay, SMALLEST_BELIEF)
    concentration_of = functools.partial(concentration_entries, state.prior_counts)

    # Every step below needs the one before it, so that XLA can write all arrays in place: reading the observed
    # prompts, adding to their counts, moving all beliefs, putting back those of the observed.
    # The barrier is for XLA for GPU, which would read the observed prompts anew in every write that needs them, from
    # copies of the arrays as they were.
    before = (state.belief_odds, state.is_trained)
    (observed_odds, was_trained), before = lax.optimization_barrier((jax.tree.map(pick, before), before))
    state = state._replace(belief_odds=before[0], is_trained=before[1])
    belief = with_reference(observed_odds, jnp.ones(ids.shape, dtype))
    mass = sum_of(belief)
    belief = [entry / mass for entry in belief]
    kind = Kind(jax.tree.map(pick, state.group_ids), was_trained)
    last_concentration = concentration_of(kind, jax.tree.map(pick, scaled_counts), scale)
    moved = propagate(belief, last_concentration)
    predicted = [jnp.where(state.round_index == 0, *pair) for pair in zip(belief, moved, strict=True)]
    log_likelihood = emissions.log_likelihood(emission, successes, counts, dtype)
    filtered, soft_counts, is_possible = condition(belief, predicted, last_concentration, log_likelihood)

    add = lambda leaf, extra: put(leaf, pack(unpack(pick(leaf)) + extra / next_scale, leaf.dtype))
    scaled_counts = jax.tree.map(add, scaled_counts, soft_counts)
    kind = kind._replace(is_trained=jax.tree.map(jnp.ones_like, kind.is_trained))
    next_concentration = concentration_of(kind, jax.tree.map(pick, scaled_counts), next_scale)
    observed_value = expected_value(filtered, next_concentration, value)

    odds, predicted_value, is_trained = _drift(state, scaled_counts, scale, next_scale, value)
    num_impossible = jnp.sum(is_observed & ~is_possible, dtype=jnp.int32)
    if axis_name is not None:
        num_impossible = lax.psum(num_impossible, axis_name)
    return state._replace(
        belief_odds=jax.tree.map(put, odds, to_odds(filtered)),
        scaled_counts=scaled_counts,
        predicted_value=put(predicted_value, observed_value),
        scale=next_scale,
        round_index=state.round_index + 1,
        num_impossible=state.num_impossible + num_impossible,
        is_trained=None if is_trained is None else put(is_trained, is_observed),
    )


@_advance.defjvp
def _advance_jvp(
    emission: emissions.Emission,
    value: np.ndarray,
    axis_name: str | None,
    primals: tuple[FilterState, jax.Array, jax.Array, jax.Array],
    tangents: tuple[FilterState, Any, Any, Any],
) -> tuple[FilterState, FilterState]:
    state, ids, successes, counts = primals
    later = _advance(state, emission, ids, successes, counts, value, axis_name)
    return later, tangent_of_round(emission, value, state, tangents[0], (ids, successes, counts), later.scale)
