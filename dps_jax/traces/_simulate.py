"""Traces whose truth is known: of a hidden Markov model, and of simulated learners, which are none.

Written apart from the filters, in NumPy and float64, so that a mistake in one is not repeated in the other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dps_jax import _checks
from dps_jax.hmm import emissions
from dps_jax.traces._format import Trace
from dps_jax.traces._learners import REGIMES, Learners

# Rounds x prompts up to which `simulate_learners` keeps every success rate: 256 MiB.
_MAX_CELLS = 2**25


class SimulatedHMM(NamedTuple):
    """A trace of a hidden Markov model.

    Attributes:
      trace: what was seen, one row per visit.
      states: the state of every prompt while round t was rolled out, int32 [T, N].
    """

    trace: Trace
    states: np.ndarray


class SimulatedLearners(NamedTuple):
    """A trace of simulated learners.

    Attributes:
      trace: what was seen, one row per visit.
      success_rates: probability of a correct completion while round t was rolled out, float64 [T, N], inside (0, 1);
        None if T x N > 2**25: `Learners` has the rates of one round after another.
      groups: of every prompt, int32 [N], 0 the easiest.
      visited_rates: the success rates of the prompts that were visited, in the order of the trace, float64 [T, B].
      features: of every prompt, float32 [N, 4]; see `Learners`.
    """

    trace: Trace
    success_rates: np.ndarray | None
    groups: np.ndarray
    visited_rates: np.ndarray
    features: np.ndarray


def simulate_hmm(
    rng: np.random.Generator,
    initial_probs: Any,
    transition_matrix: Any,
    emission: emissions.Emission,
    *,
    num_rounds: int,
    num_prompts: int,
    batch_size: int,
    group_size: int = 8,
    trained_matrix: Any = None,
) -> SimulatedHMM:
    """Returns the trace of a hidden Markov model; every round visits distinct prompts, chosen uniformly.

    Args:
      rng: the source of randomness.
      initial_probs: of the states in round 0, [K] or [K, N].
      transition_matrix: row-stochastic, [K, K] or [K, K, N]: the move from a round to the next.
      emission: what a visit shows; where it is exact, every outcome of the state's class is equally likely.
      num_rounds: T.
      num_prompts: N.
      batch_size: B, prompts visited in a round.
      group_size: G, completions in a visit.
      trained_matrix: moves prompts out of a round that visited them, in place of `transition_matrix`.

    Raises:
      ValueError: for an array of another shape or that is no distribution, sizes out of range, or an exact emission
        with a state that no outcome of G completions belongs to.
    """
    _check_sizes(rng, num_rounds, num_prompts, batch_size, group_size)
    if not isinstance(emission, emissions.Emission):
        raise ValueError(f"emission: expected an Emission, got {emission!r}")
    shape = (emission.num_states, emission.num_states, num_prompts)
    initial = _distributions("initial_probs", initial_probs, shape[1:])
    idle = _distributions("transition_matrix", transition_matrix, shape)
    trained = idle if trained_matrix is None else _distributions("trained_matrix", trained_matrix, shape)
    outcomes = _exact_outcomes(emission.num_states, group_size) if emission.kind == "exact" else []

    visits = _uniform_visits(rng, num_rounds, num_prompts, batch_size)
    states = np.empty((num_rounds, num_prompts), np.int32)
    successes = np.empty((num_rounds, batch_size), np.int32)
    prompts = np.arange(num_prompts)
    probs = initial
    for t, ids in enumerate(visits):
        states[t] = _draw_states(rng, probs)
        seen = states[t, ids]
        successes[t] = _draw_exact(rng, outcomes, seen) if outcomes else _draw_binomial(rng, emission, seen, group_size)
        # Two advanced indices with a slice between them: the prompts come first, [N, K].
        rows = idle[states[t], :, prompts]
        rows[ids] = trained[seen, :, ids]
        probs = rows.T
    return SimulatedHMM(trace=_trace(visits, successes, group_size), states=states)


def simulate_learners(
    rng: np.random.Generator,
    regime: str = "mixed",
    *,
    num_prompts: int = 2000,
    num_rounds: int = 100,
    batch_size: int = 64,
    group_size: int = 8,
) -> SimulatedLearners:
    """Returns the trace of `Learners` that are visited in open loop: distinct prompts in a round, chosen uniformly.

    Args:
      rng: the source of randomness.
      regime: a name in `REGIMES`. "mixed" has prompts of all difficulties; in "hard" most are never solved at first;
        "fast_drift" moves fast; "forgetting" loses what is not repeated; in "grouped" the group says nearly all about
        the difficulty; in "cold" groups and features say much about it, for more prompts than visits
        (N >> T x B), so that most are seen once or never.
      num_prompts: N; a million are no problem, see `success_rates`.
      num_rounds: T.
      batch_size: B, prompts visited in a round.
      group_size: G, completions in a visit.

    Raises:
      ValueError: for an unknown regime, with the known ones, or sizes out of range.
    """
    _check_sizes(rng, num_rounds, num_prompts, batch_size, group_size)
    _checks.check_choice("regime", regime, REGIMES)
    visits = _uniform_visits(rng, num_rounds, num_prompts, batch_size)
    learners = Learners(rng, regime, num_prompts=num_prompts)
    success_rates = np.empty((num_rounds, num_prompts)) if num_rounds * num_prompts <= _MAX_CELLS else None
    visited_rates = np.empty((num_rounds, batch_size))
    successes = np.empty((num_rounds, batch_size), np.int32)
    for t, ids in enumerate(visits):
        if success_rates is not None:
            success_rates[t] = learners.rates()
        visited_rates[t] = learners.rates(ids)
        successes[t] = learners.rollout(ids, group_size)
        learners.step(ids, successes[t], group_size)
    return SimulatedLearners(
        trace=_trace(visits, successes, group_size),
        success_rates=success_rates,
        groups=learners.groups,
        visited_rates=visited_rates,
        features=learners.features,
    )


def _check_sizes(rng: Any, num_rounds: Any, num_prompts: Any, batch_size: Any, group_size: Any) -> None:
    if not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng: expected a numpy.random.Generator, got {rng!r}")
    _checks.check_int("num_rounds", num_rounds, at_least=1)
    _checks.check_int("num_prompts", num_prompts, at_least=1)
    _checks.check_int("batch_size", batch_size, at_least=1, at_most=num_prompts)
    _checks.check_int("group_size", group_size, at_least=1)


def _distributions(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Returns distributions over the last axis but one as float64 of a shape [..., K, N]; N may lack in `value`."""
    array = np.asarray(value, np.float64)
    if array.shape not in (shape[:-1], shape):
        raise ValueError(
            f"{name}: expected shape {list(shape[:-1])} or {list(shape)}, got {list(array.shape)}; prompts come last"
        )
    array = array.reshape((*shape[:-1], -1))
    sums = array.sum(axis=-2, keepdims=True)
    if not np.all(np.isfinite(array)) or np.any(array < 0) or np.any(np.abs(sums - 1) > 1e-5):
        what = "rows of " if len(shape) == 3 else ""
        raise ValueError(f"{name}: expected {what}non-negative probabilities that sum to 1, got {value!r}")
    return np.broadcast_to(array / sums, shape)


def _uniform_visits(rng: np.random.Generator, num_rounds: int, num_prompts: int, batch_size: int) -> np.ndarray:
    """Returns the ids of the prompts that each round visits, distinct within a round, int64 [T, B]."""
    return np.stack([rng.choice(num_prompts, batch_size, replace=False) for _ in range(num_rounds)])


def _draw_states(rng: np.random.Generator, probs: np.ndarray) -> np.ndarray:
    """Returns one state per prompt, int64 [N], from distributions [K, N]; never one of probability 0."""
    cumulative = np.cumsum(probs, axis=0)
    # Divided by the last, which is then 1 and above every draw, whatever the rounding.
    return np.sum(rng.random(probs.shape[1]) >= cumulative / cumulative[-1], axis=0)


def _exact_outcomes(num_states: int, group_size: int) -> list[np.ndarray]:
    """Returns for each state the counts of successes that belong to it, K arrays of integers."""
    successes = np.arange(group_size + 1)
    classes = np.asarray(emissions.observed_states(num_states, jnp.asarray(successes), jnp.asarray(group_size)))
    outcomes = [successes[classes == state] for state in range(num_states)]
    without = [state for state, of_state in enumerate(outcomes) if of_state.size == 0]
    if without:
        raise ValueError(
            f"group_size: expected outcomes for each of the {num_states} states of the exact emission, got "
            f"{group_size}, which leaves state {without[0]} without one"
        )
    return outcomes


def _draw_exact(rng: np.random.Generator, outcomes: list[np.ndarray], states: np.ndarray) -> np.ndarray:
    """Returns successes [B], uniformly among the outcomes of each state."""
    sizes = np.array([of_state.size for of_state in outcomes])
    starts = np.cumsum(sizes) - sizes
    return np.concatenate(outcomes)[starts[states] + rng.integers(sizes[states])]


def _draw_binomial(
    rng: np.random.Generator, emission: emissions.Emission, states: np.ndarray, group_size: int
) -> np.ndarray:
    """Returns successes [B]; a beta-binomial visit has a rate of its own."""
    rates = np.asarray(emission.success_rates, np.float64)[states]
    if emission.precision is not None:
        rates = rng.beta(rates * emission.precision, (1 - rates) * emission.precision)
    return rng.binomial(group_size, rates)


def _trace(visits: np.ndarray, successes: np.ndarray, group_size: int) -> Trace:
    """Returns the rows of visits and successes, [T, B] each."""
    rounds = np.repeat(np.arange(visits.shape[0]), visits.shape[1])
    columns = (rounds, visits.ravel(), successes.ravel(), np.full(visits.size, group_size))
    return Trace(*(column.astype(np.int32) for column in columns))
