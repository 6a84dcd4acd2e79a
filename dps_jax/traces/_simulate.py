"""Simulated traces with known ground truth: of a hidden Markov model, and of simulated learners.

The code is independent of the filters, in NumPy and float64, so that tests can compare the two.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dps_jax import _checks
from dps_jax._documented import documented
from dps_jax.hmm import emissions
from dps_jax.traces._format import Trace
from dps_jax.traces._learners import Learners, Regime, resolved_regime

# Rounds x prompts up to which `simulate_learners` keeps every success rate: 256 MiB.
_MAX_CELLS = 2**25


@documented
class SimulatedHMM(NamedTuple):
    """A trace of a hidden Markov model with its true states.

    Attributes:
      trace: the outcomes, one row per visit.
      states: true state of every prompt during each round, int32 [T, N].

    Example:
      >>> import numpy as np
      >>> from dps_jax import hmm, traces
      >>> matrix = [[0.9, 0.1, 0.0], [0.0, 0.8, 0.2], [0.0, 0.0, 1.0]]
      >>> sizes = {"num_rounds": 20, "num_prompts": 50, "batch_size": 8}
      >>> run = traces.simulate_hmm(np.random.default_rng(0), [0.6, 0.3, 0.1], matrix, hmm.exact(3), **sizes)
      >>> bool(np.all(np.diff(run.states, axis=0) >= 0))  # this matrix never moves a prompt back
      True
    """

    trace: Trace
    states: np.ndarray


@documented
class SimulatedLearners(NamedTuple):
    """A trace of simulated learners with their true success rates.

    Attributes:
      trace: the outcomes, one row per visit.
      success_rates: true success rate of every prompt during the rollouts of each round, float64 [T, N], inside (0, 1).
        None if T x N > 2**25; a loop over `Learners` has the rates of one round at a time.
      groups: prompt group of every prompt, int32 [N]; 0 is the easiest.
      visited_rates: true success rates of the visited prompts, in the order of the trace, float64 [T, B].
      features: features of every prompt, float32 [N, 4]; see `Learners`.

    Example:
      >>> import numpy as np
      >>> from dps_jax import traces
      >>> run = traces.simulate_learners(np.random.default_rng(0), num_prompts=200, num_rounds=20, batch_size=16)
      >>> gap = run.trace.successes / run.trace.counts - run.visited_rates.ravel()
      >>> bool(abs(gap.mean()) < 0.05)  # the observed success rates are unbiased
      True
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
    """Returns a trace simulated from a hidden Markov model; every round visits distinct prompts, chosen uniformly.

    Args:
      rng: source of randomness.
      initial_probs: distribution of the state in round 0, [K], or [K, N] with a distribution for each prompt.
      transition_matrix: transition probabilities from one round to the next, row-stochastic, [K, K] or [K, K, N].
      emission: distribution of the outcome of a visit given the state. With the exact emission, all outcomes that
        belong to the state are equally likely.
      num_rounds: number of rounds, T.
      num_prompts: number of prompts, N.
      batch_size: number of prompts visited in a round, B.
      group_size: number of completions in a visit, G.
      trained_matrix: transition probabilities out of a round in which the prompt was visited, [K, K] or [K, K, N]; None
        uses `transition_matrix` for these transitions as well.

    Raises:
      ValueError: for an array of another shape, for probabilities that are not a distribution, for sizes out of range,
        or for an exact emission with a state to which no outcome of G completions belongs.

    Example:
      >>> import numpy as np
      >>> from dps_jax import hmm, traces
      >>> matrix = [[0.9, 0.1, 0.0], [0.05, 0.8, 0.15], [0.0, 0.1, 0.9]]
      >>> sizes = {"num_rounds": 20, "num_prompts": 50, "batch_size": 8}
      >>> run = traces.simulate_hmm(np.random.default_rng(0), [0.6, 0.3, 0.1], matrix, hmm.exact(3), **sizes)
      >>> run.states.shape, run.trace.successes.shape
      ((20, 50), (160,))
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
    regime: str | Regime = "mixed",
    *,
    num_prompts: int = 2000,
    num_rounds: int = 100,
    batch_size: int = 64,
    group_size: int = 8,
) -> SimulatedLearners:
    """Returns a run of simulated learners in open loop; every round visits distinct prompts, chosen uniformly.

    For a closed loop, in which a selector chooses the prompts, use `Learners`.

    Args:
      rng: source of randomness.
      regime: a `Regime`, or the name of one in `REGIMES`. In "mixed" prompts have all difficulties; in "hard" most are
        unsolved at first; in "fast_drift" success rates change fast; in "forgetting" prompts lose gains without new
        visits; in "grouped" the prompt group nearly determines the difficulty; in "cold" groups and features explain
        much of the difficulty, and the regime is meant for runs with more prompts than visits (N >> T x B).
      num_prompts: number of prompts, N; may be a million, see `SimulatedLearners.success_rates`.
      num_rounds: number of rounds, T.
      batch_size: number of prompts visited in a round, B.
      group_size: number of completions in a visit, G.

    Raises:
      ValueError: for an unknown regime (the message lists the known ones), or sizes out of range.

    Example:
      >>> import numpy as np
      >>> from dps_jax import traces
      >>> rng = np.random.default_rng(0)
      >>> run = traces.simulate_learners(rng, "mixed", num_prompts=200, num_rounds=20, batch_size=16)
      >>> run.trace.successes.shape, run.success_rates.shape, run.features.shape
      ((320,), (20, 200), (200, 4))
    """
    _check_sizes(rng, num_rounds, num_prompts, batch_size, group_size)
    regime = resolved_regime(regime)
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
    """Returns distributions over the second-to-last axis, float64 [..., K, N]; `value` may lack the axis N."""
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
    """Returns one state per prompt, int64 [N], from distributions [K, N]; states of probability 0 are never drawn."""
    cumulative = np.cumsum(probs, axis=0)
    # After the division, the last entry is exactly 1, which is above every draw.
    return np.sum(rng.random(probs.shape[1]) >= cumulative / cumulative[-1], axis=0)


def _exact_outcomes(num_states: int, group_size: int) -> list[np.ndarray]:
    """Returns, for each state, the numbers of successes that belong to it, K arrays of integers."""
    successes = np.arange(group_size + 1)
    classes = np.asarray(emissions.observed_states(num_states, jnp.asarray(successes), jnp.asarray(group_size)))
    outcomes = [successes[classes == state] for state in range(num_states)]
    without = [state for state, of_state in enumerate(outcomes) if of_state.size == 0]
    if without:
        raise ValueError(
            f"group_size: expected an outcome for each of the {num_states} states of the exact emission, got "
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
    """Returns successes [B]; with a beta-binomial emission each visit draws its own success rate."""
    rates = np.asarray(emission.success_rates, np.float64)[states]
    if emission.precision is not None:
        rates = rng.beta(rates * emission.precision, (1 - rates) * emission.precision)
    return rng.binomial(group_size, rates)


def _trace(visits: np.ndarray, successes: np.ndarray, group_size: int) -> Trace:
    """Returns the trace of visits and successes, [T, B] each."""
    rounds = np.repeat(np.arange(visits.shape[0]), visits.shape[1])
    columns = (rounds, visits.ravel(), successes.ravel(), np.full(visits.size, group_size))
    return Trace(*(column.astype(np.int32) for column in columns))
