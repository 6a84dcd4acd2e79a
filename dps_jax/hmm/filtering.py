"""The filter: solve-state beliefs and transition counts of all prompts, advanced together, round by round.

What is stored per prompt and why (METHOD sections 1 and 2):

* The forgetting step is `D <- decay * D + xi` for the learned counts `D = C - C_0`, with one decay for everybody. So
  the state holds `D / scale` with a single scalar `scale`, which takes the decay: nobody's counts are rewritten but
  those of the few prompts that were observed.
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
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax.hmm import emissions, in_place
from dps_jax.hmm.transitions import TransitionPrior, prior_table

Leaves = tuple[jax.Array, ...]

# Beliefs below this share of one stand for zero (odds must stay finite), as does a decay; evidence below the second is
# impossible.
_SMALLEST_BELIEF = 1e-30
_SMALLEST_EVIDENCE = 1e-25
# The stored counts grow as `scale` shrinks; they are rescaled long before float32 overflows.
_SMALLEST_SCALE = 2.0**-40
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
      prior_counts: C_0, as in `PriorTable.concentration`: [K, K, 1 or 2, M + 1].
      decay: share of the learned counts that survives a round, scalar.
      group_ids: of a prior with M groups, unsigned; M is the population. None without groups.
      is_trained: who was rolled out in the last round, bool; None where that makes no difference.
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


class _Kind(NamedTuple):
    """What decides which prior counts govern a prompt's move; None where there is one kind only, or the first is meant.

    The fields are those of `FilterState`, of all prompts or of some.
    """

    group_ids: Any
    is_trained: Any = None


def _total(entries: Sequence[jax.Array]) -> jax.Array:
    """Returns the sum over states, written out: XLA for CPU fuses that, and not a reduction over a short axis."""
    return functools.reduce(operator.add, entries)


def _reference_state(num_states: int) -> int:
    return num_states // 2


def _with_reference(odds: Leaves, one: Any = 1.0) -> list[Any]:
    """Returns the unnormalised belief, K entries, from its odds."""
    reference = _reference_state(len(odds) + 1)
    return [*odds[:reference], one, *odds[reference:]]


def _to_odds(belief: list[Any]) -> Leaves:
    """Returns the odds of an unnormalised belief against the reference state."""
    reference = _reference_state(len(belief))
    floor = _SMALLEST_BELIEF * _total(belief)
    inverse = 1 / jnp.maximum(belief[reference], floor)
    return tuple(mass * inverse for state, mass in enumerate(belief) if state != reference)


def _unpack(counts: jax.Array) -> jax.Array:
    """Returns counts as floats; the compact form is the upper half of a float32.

    Bit operations rather than bfloat16, which XLA for CPU converts some five times more slowly.
    """
    if counts.dtype != jnp.uint16:
        return counts
    return lax.bitcast_convert_type(counts.astype(jnp.uint32) << 16, jnp.float32)


def _pack(values: jax.Array, dtype: Any) -> jax.Array:
    """Returns floats in the stored dtype, rounded to nearest, ties to even."""
    if dtype != jnp.uint16:
        return values.astype(dtype)
    bits = lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(jnp.uint16)


def _by_group(table: jax.Array) -> list[jax.Array]:
    """Returns the entries of a table [..., M + 1] in order, each an array [M + 1], or a scalar where M is 0."""
    num_columns = table.shape[-1]
    return list(table.reshape(-1, num_columns) if num_columns > 1 else table.reshape(-1))


def _of_group(entries: jax.Array, group_ids: Any) -> Any:
    """Returns each prompt's entry of [M + 1], or the only one."""
    if group_ids is None:
        return entries
    if entries.size > _MOST_SELECTED:
        return entries.at[group_ids].get(mode="promise_in_bounds")
    select = lambda rest, group: jnp.where(group_ids == group, entries[group], rest)
    return functools.reduce(select, range(1, entries.size), entries[0])


def _concentration(
    prior_counts: jax.Array, kind: _Kind, scaled_counts: tuple[Leaves, ...], scale: Any
) -> list[list[Any]]:
    """Returns C = C_0 + scale * counts, K x K entries of the shape of one leaf."""
    num_states, _, num_matrices, _ = prior_counts.shape
    entries = _by_group(prior_counts)

    def prior_count(i, j):
        first = (i * num_states + j) * num_matrices
        idle = _of_group(entries[first], kind.group_ids)
        if kind.is_trained is None:
            return idle
        return jnp.where(kind.is_trained, _of_group(entries[first + 1], kind.group_ids), idle)

    return [
        [prior_count(i, j) + scale * _unpack(count) for j, count in enumerate(row)]
        for i, row in enumerate(scaled_counts)
    ]


def _propagate(belief: list[Any], concentration: list[list[Any]]) -> list[Any]:
    """Returns belief @ A(C), with A the posterior-mean transition matrix; any common factor of `belief` survives."""
    num_states = len(belief)
    weights = [belief[i] / _total(concentration[i]) for i in range(num_states)]
    return [_total([weights[i] * concentration[i][j] for i in range(num_states)]) for j in range(num_states)]


def _expected_value(belief: list[Any], concentration: list[list[Any]], value: np.ndarray) -> Any:
    """Returns sum_j (belief @ A(C))[j] * value[j] for a normalised version of `belief`."""
    valued = [(j, weight) for j, weight in enumerate(value.tolist()) if weight != 0]
    total = 0.0
    for i, mass in enumerate(belief):
        row = concentration[i]
        gain = _total([row[j] if weight == 1 else row[j] * weight for j, weight in valued])
        total = total + mass * (gain / _total(row))
    return total / _total(belief)


def _current_value(belief: list[Any], value: np.ndarray) -> Any:
    """Returns sum_j belief[j] * value[j] for a normalised version of `belief`."""
    return _total([mass * weight for mass, weight in zip(belief, value.tolist(), strict=True)]) / _total(belief)


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
      group_ids: int [N]; an id outside [0, M), or None, is the population. Of no effect if the prior has no groups.
      is_compact: keep counts in 16 bits (8 significant bits): 30 instead of 48 bytes per prompt at K = 3.
      dtype: of beliefs and counts.

    Raises:
      ValueError: for group ids of another shape.
    """
    value = emissions.informative_probs(prior.emission) if value is None else np.asarray(value, np.float64)
    num_states, num_groups = prior.num_states, len(prior.groups)
    table = prior_table(prior, dtype)
    initial_probs = _by_group(table.initial_probs)
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
    spread = lambda entries: jnp.broadcast_to(_of_group(entries, group_ids), (num_prompts,))
    counts_dtype = jnp.uint16 if is_compact else dtype
    return FilterState(
        belief_odds=tuple(spread(entries) for entries in _to_odds(initial_probs)),
        scaled_counts=tuple(
            tuple(jnp.zeros(num_prompts, counts_dtype) for _ in range(num_states)) for _ in range(num_states)
        ),
        predicted_value=spread(_current_value(initial_probs, value)),
        scale=jnp.ones((), dtype),
        round_index=jnp.zeros((), jnp.int32),
        num_impossible=jnp.zeros((), jnp.int32),
        prior_counts=table.concentration,
        decay=table.decay,
        group_ids=group_ids,
        is_trained=None if prior.trained_concentration is None else jnp.zeros(num_prompts, bool),
    )


def _condition(
    belief: list[jax.Array],
    predicted: list[jax.Array],
    concentration: list[list[jax.Array]],
    log_likelihood: jax.Array,
) -> tuple[list[jax.Array], tuple[Leaves, ...], jax.Array]:
    """Conditions some prompts on what was seen of them.

    Args:
      belief: normalised, K arrays of shape [P].
      predicted: this round's belief, normalised, K arrays [P].
      concentration: C of the previous round, K x K arrays [P].
      log_likelihood: [K, P].

    Returns:
      the filtered belief, K arrays [P]; the soft transition counts, K x K arrays [P]; is_possible, bool [P].
    """
    states = range(len(belief))
    likelihood = jnp.exp(log_likelihood - log_likelihood.max(axis=0, keepdims=True))
    weights = [belief[i] / _total(concentration[i]) for i in states]
    joint = [[weights[i] * concentration[i][j] * likelihood[j] for j in states] for i in states]
    evidence = _total([_total(row) for row in joint])
    is_possible = evidence > _SMALLEST_EVIDENCE
    # Impossible data: what was seen stands (METHOD section 1, step 2).
    seen = likelihood / likelihood.sum(axis=0, keepdims=True)
    counts = [
        [jnp.where(is_possible, joint[i][j] / jnp.where(is_possible, evidence, 1), belief[i] * seen[j]) for j in states]
        for i in states
    ]
    # After the first round this is the same question again; in the first, no transition leads to `predicted`.
    posterior = [predicted[j] * likelihood[j] for j in states]
    mass = _total(posterior)
    is_expected = mass > _SMALLEST_EVIDENCE
    filtered = [jnp.where(is_expected, posterior[j] / jnp.where(is_expected, mass, 1), seen[j]) for j in states]
    return filtered, tuple(tuple(row) for row in counts), is_possible


def _rescale(scaled_counts: tuple[Leaves, ...], scale: jax.Array) -> tuple[tuple[Leaves, ...], jax.Array]:
    """Returns the same counts at scale 1 if the scale has become small, which is once in many rounds.

    Counts that were ever positive stay so: that tells the prompts that were seen from the others.
    """

    def to_one(carry):
        scaled_counts, scale = carry
        smallest = jnp.asarray(jnp.finfo(scale.dtype).tiny, scale.dtype)

        def rescale(leaf):
            counts = _unpack(leaf)
            rescaled = jnp.where(counts > 0, jnp.maximum(counts * scale, smallest), jnp.zeros_like(counts))
            return _pack(rescaled, leaf.dtype)

        return jax.tree.map(rescale, scaled_counts), jnp.ones_like(scale)

    # A loop of at most one step: unlike a branch, it is compiled in place.
    return lax.while_loop(lambda carry: carry[1] < _SMALLEST_SCALE, to_one, (scaled_counts, scale))


def _drift(
    state: FilterState, scaled_counts: tuple[Leaves, ...], scale: jax.Array, next_scale: jax.Array, value: np.ndarray
) -> tuple[Leaves, jax.Array, jax.Array | None]:
    """Moves everybody by one round in which nobody is observed; the counts are rescaled, and those of this round.

    Returns:
      belief odds, K - 1 arrays [N]; value of the round after, [N]; is_trained, bool [N] or None.
    """
    # q of the first round is the initial belief itself: no transition leads to it.
    is_first = state.round_index == 0
    concentration_of = functools.partial(_concentration, state.prior_counts)

    def drift(updated, read_only):
        old_odds, _, was_trained = updated
        scaled_counts, group_id = read_only
        last_concentration = concentration_of(_Kind(group_id, was_trained), scaled_counts, scale)
        moved = _to_odds(_propagate(_with_reference(old_odds), last_concentration))
        odds = tuple(jnp.where(is_first, *pair) for pair in zip(old_odds, moved, strict=True))
        next_concentration = concentration_of(_Kind(group_id), scaled_counts, next_scale)
        next_value = _expected_value(_with_reference(odds), next_concentration, value)
        return odds, next_value, jax.tree.map(jnp.zeros_like, was_trained)

    updated = (state.belief_odds, state.predicted_value, state.is_trained)
    return in_place.map_in_place(jax.vmap(drift), updated, (scaled_counts, state.group_ids))


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
    num_prompts = state.predicted_value.shape[0]
    dtype = state.predicted_value.dtype
    is_observed = (ids >= 0) & (ids < num_prompts) & (counts > 0)
    ids = jnp.where(is_observed, ids, num_prompts)
    pick = lambda leaf: leaf.at[ids].get(mode="clip")
    put = lambda leaf, values: leaf.at[ids].set(values.astype(leaf.dtype), mode="drop")
    scaled_counts, scale = _rescale(state.scaled_counts, state.scale)
    next_scale = jnp.maximum(scale * state.decay, _SMALLEST_BELIEF)
    concentration_of = functools.partial(_concentration, state.prior_counts)

    # Every step below needs the one before it, so that XLA can write all arrays in place: reading the observed
    # prompts, adding to their counts, moving everybody's belief, putting back those of the observed.
    # The barrier is for XLA for GPU, which would read the observed prompts anew in every write that needs them, from
    # copies of the arrays as they were.
    before = (state.belief_odds, state.is_trained)
    (observed_odds, was_trained), before = lax.optimization_barrier((jax.tree.map(pick, before), before))
    state = state._replace(belief_odds=before[0], is_trained=before[1])
    belief = _with_reference(observed_odds, jnp.ones(ids.shape, dtype))
    mass = _total(belief)
    belief = [entry / mass for entry in belief]
    kind = _Kind(jax.tree.map(pick, state.group_ids), was_trained)
    last_concentration = concentration_of(kind, jax.tree.map(pick, scaled_counts), scale)
    moved = _propagate(belief, last_concentration)
    predicted = [jnp.where(state.round_index == 0, *pair) for pair in zip(belief, moved, strict=True)]
    log_likelihood = emissions.log_likelihood(emission, successes, counts, dtype)
    filtered, soft_counts, is_possible = _condition(belief, predicted, last_concentration, log_likelihood)

    add = lambda leaf, extra: put(leaf, _pack(_unpack(pick(leaf)) + extra / next_scale, leaf.dtype))
    scaled_counts = jax.tree.map(add, scaled_counts, soft_counts)
    kind = kind._replace(is_trained=jax.tree.map(jnp.ones_like, kind.is_trained))
    next_concentration = concentration_of(kind, jax.tree.map(pick, scaled_counts), next_scale)
    observed_value = _expected_value(filtered, next_concentration, value)

    odds, predicted_value, is_trained = _drift(state, scaled_counts, scale, next_scale, value)
    num_impossible = jnp.sum(is_observed & ~is_possible, dtype=jnp.int32)
    if axis_name is not None:
        num_impossible = lax.psum(num_impossible, axis_name)
    return state._replace(
        belief_odds=jax.tree.map(put, odds, _to_odds(filtered)),
        scaled_counts=scaled_counts,
        predicted_value=put(predicted_value, observed_value),
        scale=next_scale,
        round_index=state.round_index + 1,
        num_impossible=state.num_impossible + num_impossible,
        is_trained=None if is_trained is None else put(is_trained, is_observed),
    )


def with_prior(state: FilterState, prior: TransitionPrior, value: np.ndarray | None = None) -> FilterState:
    """Returns the state under another prior.

    Prompts that were seen keep their belief and their learned counts D = C - C_0. All others get the belief that they
    would have under this prior from round 0 on. Predictions are those of the new prior for everybody. Can be compiled
    with the prior as an argument, and `state` may be donated.

    Args:
      state: of N prompts.
      prior: of the same emission, with as many groups, and with trained_concentration exactly if the state has it.
      value: as given to `init`.

    Raises:
      ValueError: for a prior that is not built like that of the state.
    """
    value = emissions.informative_probs(prior.emission) if value is None else np.asarray(value, np.float64)
    table = prior_table(prior, state.predicted_value.dtype)
    if table.concentration.shape != state.prior_counts.shape:
        expected, found = (_structure(array.shape) for array in (state.prior_counts, table.concentration))
        raise ValueError(f"prior: expected {expected}, got {found}")
    is_first = state.round_index == 0
    idle_concentration = [[_by_group(entry)[0] for entry in row] for row in table.concentration]

    def move(_, odds):
        """One round of a prompt that is never seen, for every group: as in `observe`."""
        return _to_odds(_propagate(_with_reference(odds), idle_concentration))

    unseen_odds = lax.fori_loop(
        0, jnp.maximum(state.round_index - 1, 0), move, _to_odds(_by_group(table.initial_probs))
    )

    def change(updated, read_only):
        """One prompt: its belief if it was never seen, and its value."""
        old_odds, _ = updated
        scaled_counts, kind = read_only
        is_seen = functools.reduce(operator.or_, [count > 0 for row in scaled_counts for count in row])
        odds = tuple(
            jnp.where(is_seen, old, _of_group(entries, kind.group_ids))
            for old, entries in zip(old_odds, unseen_odds, strict=True)
        )
        belief = _with_reference(odds)
        next_value = _expected_value(
            belief, _concentration(table.concentration, kind, scaled_counts, state.scale), value
        )
        return odds, jnp.where(is_first, _current_value(belief, value), next_value)

    kind = _Kind(state.group_ids, state.is_trained)
    updated = (state.belief_odds, state.predicted_value)
    odds, predicted_value = in_place.map_in_place(jax.vmap(change), updated, (state.scaled_counts, kind))
    return state._replace(
        belief_odds=odds, predicted_value=predicted_value, prior_counts=table.concentration, decay=table.decay
    )


def _structure(shape: tuple[int, ...]) -> str:
    """Returns in words how a prior is built, from the shape of its counts."""
    num_states, _, num_matrices, num_columns = shape
    trained = "with" if num_matrices == 2 else "without"
    return f"{num_states} states, {num_columns - 1} groups, {trained} trained_concentration"


def filtered_probs(state: FilterState) -> jax.Array:
    """Returns the belief after the last round, [K, N]."""
    belief = jnp.stack(_with_reference(state.belief_odds, jnp.ones_like(state.predicted_value)))
    return belief / belief.sum(axis=0, keepdims=True)


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
    kind = _Kind(state.group_ids, state.is_trained)
    moved = _propagate(belief, _concentration(state.prior_counts, kind, state.scaled_counts, state.scale))
    probs = jnp.where(state.round_index == 0, jnp.stack(belief), jnp.stack(moved))
    return probs / probs.sum(axis=0, keepdims=True)


def concentration(state: FilterState) -> jax.Array:
    """Returns the Dirichlet parameters of every prompt's next move, row i for transitions out of state i, [K, K, N]."""
    kind = _Kind(state.group_ids, state.is_trained)
    rows = _concentration(state.prior_counts, kind, state.scaled_counts, state.scale)
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
