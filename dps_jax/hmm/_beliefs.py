"""Operations on beliefs about solve states, for arrays over prompts of any shape.

A belief over K states is a list of K arrays, or, in a stored state, K - 1 odds relative to a reference state. Sums over
states are unrolled, because XLA for CPU fuses unrolled sums but not reductions over a short axis.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Leaves = tuple[jax.Array, ...]

# Probabilities and decays below `SMALLEST_BELIEF` count as zero, since odds must stay finite. An observation is
# impossible if its evidence is below `SMALLEST_EVIDENCE`.
SMALLEST_BELIEF = 1e-30
SMALLEST_EVIDENCE = 1e-25


def sum_of(entries: Iterable[jax.Array]) -> jax.Array:
    """Returns the unrolled sum over the first axis, or over a list of arrays."""
    return functools.reduce(operator.add, list(entries))


def _reference_state(num_states: int) -> int:
    return num_states // 2


def with_reference(odds: Leaves, one: Any = 1.0) -> list[Any]:
    """Returns the unnormalised belief, K entries, from its odds."""
    reference = _reference_state(len(odds) + 1)
    return [*odds[:reference], one, *odds[reference:]]


@jax.custom_jvp
def to_odds(belief: list[Any]) -> Leaves:
    """Returns the odds of an unnormalised belief, K entries, against the reference state, K - 1 entries."""
    reference = _reference_state(len(belief))
    floor = SMALLEST_BELIEF * sum_of(belief)
    inverse = 1 / jnp.maximum(belief[reference], floor)
    return tuple(mass * inverse for state, mass in enumerate(belief) if state != reference)


@to_odds.defjvp
def _to_odds_jvp(primals: tuple[list[Any]], tangents: tuple[list[Any]]) -> tuple[Leaves, Leaves]:
    """Returns odds and their derivatives, computed from relative changes: squares of odds would overflow."""
    (belief,), (changes,) = primals, tangents
    odds, reference = to_odds(belief), _reference_state(len(belief))
    floor = SMALLEST_BELIEF * sum_of(belief)
    inverse = 1 / jnp.maximum(belief[reference], floor)
    change = jnp.where(belief[reference] > floor, changes[reference], SMALLEST_BELIEF * sum_of(changes))
    relative = change * inverse
    of_others = [change * inverse for state, change in enumerate(changes) if state != reference]
    return odds, tuple(change - entry * relative for change, entry in zip(of_others, odds, strict=True))


@jax.custom_jvp
def normalised(belief: jax.Array) -> jax.Array:
    """Returns a belief divided by its sum over the first axis, [K, ...]."""
    return belief / belief.sum(axis=0, keepdims=True)


@normalised.defjvp
def _normalised_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Returns the belief and its derivative without the square of a sum, which would overflow for large odds."""
    (belief,), (change,) = primals, tangents
    probs, share = normalised(belief), change / belief.sum(axis=0, keepdims=True)
    return probs, share - probs * share.sum(axis=0, keepdims=True)


def propagate(belief: list[Any], concentration: list[list[Any]]) -> list[Any]:
    """Returns belief @ A(C), with A the posterior-mean transition matrix; `belief` need not be normalised."""
    num_states = len(belief)
    weights = [belief[i] / sum_of(concentration[i]) for i in range(num_states)]
    return [sum_of([weights[i] * concentration[i][j] for i in range(num_states)]) for j in range(num_states)]


def expected_value(belief: list[Any], concentration: list[list[Any]], value: np.ndarray) -> Any:
    """Returns sum_j (belief @ A(C))[j] * value[j] for the normalised version of `belief`; value is [K]."""
    valued = [(j, weight) for j, weight in enumerate(value.tolist()) if weight != 0]
    expected = 0.0
    for mass, row in zip(belief, concentration, strict=True):
        gain = sum_of([row[j] if weight == 1 else row[j] * weight for j, weight in valued])
        expected = expected + mass * (gain / sum_of(row))
    return expected / sum_of(belief)


def current_value(belief: list[Any], value: np.ndarray) -> Any:
    """Returns sum_j belief[j] * value[j] for the normalised version of `belief`; value is [K]."""
    return sum_of([mass * weight for mass, weight in zip(belief, value.tolist(), strict=True)]) / sum_of(belief)


def condition(
    belief: list[jax.Array],
    predicted: list[jax.Array],
    concentration: list[list[jax.Array]],
    log_likelihood: jax.Array,
) -> tuple[list[jax.Array], tuple[Leaves, ...], jax.Array]:
    """Conditions the beliefs about some prompts on their outcomes.

    Args:
      belief: filtered belief of the previous round, normalised, K arrays [P].
      predicted: predicted belief of this round, normalised, K arrays [P].
      concentration: Dirichlet parameters C of the previous round, K x K arrays [P].
      log_likelihood: log likelihood of the outcomes, [K, P].

    Returns:
      The filtered belief, K arrays [P]; the expected transition counts, K x K arrays [P]; is_possible, bool [P].
    """
    states = range(len(belief))
    likelihood = jnp.exp(log_likelihood - log_likelihood.max(axis=0, keepdims=True))
    weights = [belief[i] / sum_of(concentration[i]) for i in states]
    joint = [[weights[i] * concentration[i][j] * likelihood[j] for j in states] for i in states]
    evidence = sum_of([sum_of(row) for row in joint])
    is_possible = evidence > SMALLEST_EVIDENCE
    # An impossible observation overrides the prediction; see docs/concepts/method.md, "Impossible observations".
    seen = likelihood / likelihood.sum(axis=0, keepdims=True)
    counts = [
        [jnp.where(is_possible, joint[i][j] / jnp.where(is_possible, evidence, 1), belief[i] * seen[j]) for j in states]
        for i in states
    ]
    # After the first round, `mass` equals `evidence`. In the first round it does not, since no transition precedes
    # `predicted`.
    posterior = [predicted[j] * likelihood[j] for j in states]
    mass = sum_of(posterior)
    is_expected = mass > SMALLEST_EVIDENCE
    filtered = [jnp.where(is_expected, posterior[j] / jnp.where(is_expected, mass, 1), seen[j]) for j in states]
    return filtered, tuple(tuple(row) for row in counts), is_possible
