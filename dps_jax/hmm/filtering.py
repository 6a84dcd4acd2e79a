"""The filter: beliefs about solve states and transition counts of all prompts, advanced together, round by round.

The state is stored so that a round rewrites little memory; docs/concepts/method.md has the mathematics ("One round" and
"Two identities that make it fast"):

* The learned counts `D = C - C_0` decay in every round, `D <- decay * D + xi`, with one decay for all prompts; `xi` is
  the expected transition. The state therefore holds `D / scale` with a single scalar `scale`, and only this scalar is
  multiplied by the decay. A round rewrites only the counts of the few observed prompts; once in many rounds, when the
  scalar has become small, all counts are rescaled.
* A belief over K states is stored as K - 1 odds relative to a reference state. Unlike K - 1 probabilities, odds keep
  the relative precision of small probabilities, and rounding errors of their sum cannot accumulate.
* The expected value in the next round, by which prompts are ranked, is computed in the pass that advances the beliefs,
  since that pass reads the counts anyway.

With K = 3, this is 12 numbers per prompt: 48 bytes in float32, or 30 bytes with counts stored in 16 bits
(`is_compact`).

The prior is part of the state: after `with_prior` has replaced it, functions of the state need not be compiled again. A
prior with groups adds the group of each prompt to the state. A prior with `trained_concentration` adds a flag for the
prompts that were rolled out in the last round; transitions out of rounds with and without a visit have different prior
counts but share the learned counts D.
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
    """Returns the counts at scale 1 if the scale has become small, which happens once in many rounds.

    Positive counts stay positive, since they mark the prompts that were observed.
    """

    def to_one(carry):
        scaled_counts, scale = carry
        smallest = jnp.asarray(jnp.finfo(scale.dtype).tiny, scale.dtype)

        def rescale(leaf):
            counts = unpack(leaf)
            rescaled = jnp.where(counts > 0, jnp.maximum(counts * scale, smallest), jnp.zeros_like(counts))
            return pack(rescaled, leaf.dtype)

        return jax.tree.map(rescale, scaled_counts), jnp.ones_like(scale)

    # A loop of at most one step: unlike `lax.cond`, it updates the arrays in place.
    return lax.while_loop(lambda carry: carry[1] < _SMALLEST_SCALE, to_one, (scaled_counts, scale))


def _drift(
    state: FilterState, scaled_counts: tuple[Leaves, ...], scale: jax.Array, next_scale: jax.Array, value: np.ndarray
) -> tuple[Leaves, jax.Array, jax.Array | None]:
    """Advances all prompts by one round as if none were observed.

    Args:
      state: state before the round.
      scaled_counts: scaled counts including those of this round, K x K arrays [N], as rescaled by `_rescale`.
      scale: scale of the counts in the round before.
      next_scale: scale of the counts in this round.
      value: value of each state, [K].

    Returns:
      The belief odds, K - 1 arrays [N]; the expected value in the next round, [N]; is_trained, bool [N] or None.
    """
    # The predicted belief of the first round is the initial belief: no transition precedes it.
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
    """Returns the state after a round with the given outcomes.

    For every prompt, `observe` conditions the belief on the outcome (if there is one), adds the expected transition to
    the counts, lets earlier counts decay, and predicts the next round.

    If `state` is donated (`jax.jit(..., donate_argnums=0)`), it is updated in place; on a CPU, temporary memory stops
    growing with N at N = 200,000.

    The function has forward and reverse derivatives with respect to the floats of the state, which include the decay
    and the prior counts. Derivatives allocate memory, and with counts stored in 16 bits (`is_compact`) they raise
    NotImplementedError. One derivative is wrong: the derivative with respect to the prior count of a transition to the
    middle state is returned as 0 if this count is 0 and the state before the transition is known with certainty. The
    state stores beliefs as odds, which cannot represent this derivative. For the likelihood of a whole trace,
    `dps_jax.hmm.online` is faster.

    Args:
      state: state of N prompts.
      emission: emission of the prior.
      ids: ids of the observed prompts, int [P], distinct; ids outside [0, N) are ignored.
      successes: number of correct completions of each observed prompt, int [P].
      counts: number of completions of each observed prompt, int [P]; entries with a count of 0 are ignored.
      value: value of each state, [K], as passed to `init`.
      axis_name: name of the mesh axis that the prompts are sharded along, under `shard_map`; None without a mesh.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from dps_jax import hmm
      >>> prior = hmm.resolve_prior("uniform", decay=0.7)
      >>> state = hmm.filtering.init(3, prior)
      >>> visits = jnp.array([0, 2]), jnp.array([3, 8]), jnp.array([8, 8])  # ids, successes, counts
      >>> state = hmm.filtering.observe(state, prior.emission, *visits)
      >>> print(np.asarray(state.predicted_value).round(2))
      [0.4  0.33 0.3 ]

    Source: docs/concepts/method.md, "One round"; DPS (arXiv 2603.10887), which uses the transposed matrices. Departure:
    if `trained_concentration` of the prior is set, the prior counts of a transition depend on whether the prompt was
    observed in the round before the transition.
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
    """Computes `observe`, in place if the state was donated."""
    num_prompts = state.predicted_value.shape[0]
    dtype = state.predicted_value.dtype
    is_observed = (ids >= 0) & (ids < num_prompts) & (counts > 0)
    ids = jnp.where(is_observed, ids, num_prompts)
    pick = lambda leaf: leaf.at[ids].get(mode="clip")
    put = lambda leaf, values: leaf.at[ids].set(values.astype(leaf.dtype), mode="drop")
    scaled_counts, scale = _rescale(state.scaled_counts, state.scale)
    next_scale = jnp.maximum(scale * state.decay, SMALLEST_BELIEF)
    concentration_of = functools.partial(concentration_entries, state.prior_counts)

    # Every step below depends on the step before it, so that XLA can write all arrays in place: read the observed
    # prompts, add to their counts, advance all beliefs, write the beliefs of the observed prompts.
    # Without the barrier, XLA for GPU would read the observed prompts again for each of these writes, from copies of
    # the old arrays.
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
