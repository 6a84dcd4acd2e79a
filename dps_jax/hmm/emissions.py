"""What a completion group says about a prompt's hidden solve state: p(m successes of G | state)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlog1py, xlogy

from dps_jax import _checks

__all__ = [
    "EXACT_NUM_STATES",
    "Emission",
    "binomial",
    "binomial_log_likelihood",
    "binomial_outcome_probs",
    "exact",
    "informative_probs",
    "log_coefficients",
    "log_likelihood",
    "mean_success_rates",
    "observed_states",
    "outcome_probs",
    "reward_variances",
]

EXACT_NUM_STATES = (2, 3, 5, 7)


@dataclasses.dataclass(frozen=True)
class Emission:
    """The observation model, as data.

    Attributes:
      kind: "exact" (the state *is* the class of m/G) or "binomial" (state k succeeds at `success_rates[k]`).
      num_states: K.
      success_rates: binomial only, K rates inside (0, 1).
      precision: beta-binomial only, the a + b of every state's beta distribution; None is the plain binomial.
    """

    kind: str
    num_states: int
    success_rates: tuple[float, ...] | None = None
    precision: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain Python values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Emission:
        """Returns the emission that `to_dict` described.

        Raises:
          ValueError: for an unknown kind or bad parameters.
        """
        _checks.check_choice("emission.kind", fields.get("kind"), ("exact", "binomial"))
        if fields["kind"] == "exact":
            return exact(fields["num_states"])
        return binomial(fields["success_rates"], fields.get("precision"))


def exact(num_states: int = 3) -> Emission:
    """Returns the emission in which m/G names the state.

    K = 3 is DPS: unsolved (m = 0), partially solved, solved (m = G). K = 5 and 7 cut the open interval (0, 1) into
    K - 2 equal parts, a success rate on a cut going to the upper part. K = 2 only tells uninformative (0) from
    informative (1) groups.

    Raises:
      ValueError: if `num_states` is not 2, 3, 5 or 7.

    Source: DPS (arXiv 2603.10887), section on the solve state and its ablation; which part a rate on a cut belongs
    to, and what K = 2 merges, are our readings.
    """
    _checks.check_choice("num_states", num_states, EXACT_NUM_STATES)
    return Emission("exact", num_states)


def binomial(success_rates: Sequence[float], precision: float | None = None) -> Emission:
    """Returns the emission in which every completion in state k succeeds with probability `success_rates[k]`.

    Args:
      success_rates: K rates inside (0, 1), K >= 2.
      precision: if given, the rate itself is beta distributed with mean `success_rates[k]` and a + b = precision.

    Raises:
      ValueError: for fewer than two rates, a rate outside (0, 1), or a precision that is not positive.
    """
    rates = np.asarray(success_rates, np.float64)
    if rates.ndim != 1 or rates.size < 2 or not np.all((rates > 0) & (rates < 1)):
        raise ValueError(f"success_rates: expected at least two rates inside (0, 1), got {success_rates!r}")
    if precision is not None and not (np.isfinite(precision) and precision > 0):
        raise ValueError(f"precision: expected a positive number or None, got {precision!r}")
    return Emission("binomial", rates.size, tuple(rates.tolist()), None if precision is None else float(precision))


def observed_states(num_states: int, successes: jax.Array, counts: jax.Array) -> jax.Array:
    """Returns the class of every outcome under the exact emission, int32 [P], by integer arithmetic.

    Args:
      num_states: K.
      successes: completions that were correct, int [P], in [0, counts].
      counts: completions of the visit, int [P], >= 1.
    """
    is_inside = (successes > 0) & (successes < counts)
    if num_states == 2:
        return is_inside.astype(jnp.int32)
    inside = 1 + (successes * (num_states - 2)) // jnp.maximum(counts, 1)
    state = jnp.where(is_inside, inside, jnp.where(successes > 0, num_states - 1, 0))
    return state.astype(jnp.int32)


def log_likelihood(emission: Emission, successes: jax.Array, counts: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """Returns log p(successes | state, counts) for every state, up to a term that no state depends on.

    The binomial coefficient is left out. A count of 0 gives a row of zeros: nothing was seen.

    Args:
      emission: the observation model.
      successes: int [...].
      counts: int [...], may differ from entry to entry.
      dtype: of the result.

    Returns:
      [K, ...], in nats; -inf where the state excludes the outcome.
    """
    successes, counts = jnp.asarray(successes)[None], jnp.asarray(counts)[None]
    over_states = (emission.num_states,) + (1,) * (successes.ndim - 1)
    if emission.kind == "exact":
        states = observed_states(emission.num_states, successes, counts)
        is_state = jnp.arange(emission.num_states, dtype=jnp.int32).reshape(over_states) == states
        return jnp.where(is_state | (counts <= 0), jnp.zeros((), dtype), jnp.asarray(-jnp.inf, dtype))
    rates = jnp.asarray(emission.success_rates, dtype).reshape(over_states)
    return binomial_log_likelihood(rates, emission.precision, successes.astype(dtype), counts.astype(dtype))


def binomial_log_likelihood(
    success_rates: jax.Array, precision: jax.Array | float | None, successes: jax.Array, counts: jax.Array
) -> jax.Array:
    """Returns log p(successes | success rate, counts), nats, without the binomial coefficient; has derivatives.

    Args:
      success_rates: floats in (0, 1), of any shape that broadcasts with the others.
      precision: a + b of the beta distribution of the rate; None is the plain binomial.
      successes: floats.
      counts: floats.
    """
    failures = counts - successes
    if precision is None:
        return xlogy(successes, success_rates) + xlog1py(failures, -success_rates)
    a, b = success_rates * precision, (1 - success_rates) * precision
    return _log_rising(a, successes) + _log_rising(b, failures) - _log_rising(a + b, counts)


def _log_rising(x: jax.Array, steps: jax.Array) -> jax.Array:
    """Returns log(x (x + 1) ... (x + steps - 1)) for x > 0 and steps >= 0.

    The difference of two log gamma functions, which are far larger than it: at a precision of 100 each would be off by
    a float32 unit of 1e-5, the same for every outcome of a kind, and a trace holds many. So by Stirling's series, in
    which the large terms cancel on paper, after a shift to where three of its terms are enough.
    """
    shift = 8
    first = x + shift
    last = first + steps
    series = steps * (jnp.log(last) - 1) + (first - 0.5) * jnp.log1p(steps / first)
    inverse_first, inverse_last = 1 / first, 1 / last
    series += (inverse_last - inverse_first) / 12 - (inverse_last**3 - inverse_first**3) / 360
    return series - sum(jnp.log1p(steps / (x + offset)) for offset in range(shift))


def outcome_probs(emission: Emission, group_size: int = 8) -> np.ndarray:
    """Returns p(m successes | state) for m = 0, ..., G, float64 [G + 1, K].

    The exact emission says which outcomes belong to a state, and nothing about how likely each of them is: they share
    it evenly. A state that no outcome belongs to, as small groups leave some, shares it among all partial outcomes.

    Args:
      emission: the observation model.
      group_size: G.
    """
    # On the host and in float64: this is a constant of the compiled program, not part of it.
    successes = np.arange(group_size + 1)
    if emission.success_rates is not None:
        rates = np.asarray(emission.success_rates, np.float64)
        return binomial_outcome_probs(rates, group_size, emission.precision)
    is_partial = (successes > 0) & (successes < group_size)
    if emission.num_states == 2:
        is_of_state = np.stack([~is_partial, is_partial], axis=1)
    else:
        inside = 1 + successes * (emission.num_states - 2) // group_size
        classes = np.where(is_partial, inside, np.where(successes > 0, emission.num_states - 1, 0))
        is_of_state = classes[:, None] == np.arange(emission.num_states)
    is_empty = ~is_of_state.any(axis=0)
    fallback = is_partial if is_partial.any() else np.ones_like(is_partial)
    is_of_state = np.where(is_empty, fallback[:, None], is_of_state)
    return is_of_state / is_of_state.sum(axis=0)


def log_coefficients(group_size: int) -> np.ndarray:
    """Returns the logs of the binomial coefficients of G over m = 0, ..., G, nats, float64 [G + 1]."""
    return np.array([math.log(math.comb(group_size, successes)) for successes in range(group_size + 1)])


def binomial_outcome_probs(success_rates: np.ndarray, group_size: int, precision: float | None = None) -> np.ndarray:
    """Returns p(m successes | success rate) for m = 0, ..., G, float64 [G + 1, K].

    Without SciPy: importing `scipy.stats` takes longer than importing JAX.

    Args:
      success_rates: float64 [K], inside (0, 1).
      group_size: G.
      precision: a + b of the beta distribution of the rate; None is the plain binomial.
    """
    if precision is None:
        successes = np.arange(group_size + 1)[:, None]
        logs = successes * np.log(success_rates) + (group_size - successes) * np.log1p(-success_rates)
    else:
        steps = np.arange(group_size)[:, None]
        # Logs of a (a + 1) ... (a + m - 1) for m = 0, ..., G, [G + 1, K].
        rising = lambda a: np.concatenate([np.zeros((1, a.size)), np.cumsum(np.log(a + steps), axis=0)])
        a, b = precision * success_rates, precision * (1 - success_rates)
        logs = rising(a) + rising(b)[::-1] - rising(a + b)[-1]
    return np.exp(log_coefficients(group_size)[:, None] + logs)


def informative_probs(emission: Emission, group_size: int = 8) -> np.ndarray:
    """Returns p(0 < m < G | state), float64 [K]: what each state is worth to a group-baseline trainer.

    Args:
      emission: the observation model.
      group_size: G of the next group; the exact emission does not depend on it.
    """
    if emission.kind == "exact":
        states = np.arange(emission.num_states)
        is_informative = states == 1 if emission.num_states == 2 else (states > 0) & (states < emission.num_states - 1)
        return is_informative.astype(np.float64)
    probs = outcome_probs(emission, group_size)
    return 1 - probs[0] - probs[-1]


def reward_variances(emission: Emission, group_size: int = 8) -> np.ndarray:
    """Returns the expected m / G * (1 - m / G) of every state, float64 [K].

    Args:
      emission: the observation model.
      group_size: G.
    """
    rates = np.arange(group_size + 1) / group_size
    return (rates * (1 - rates)) @ outcome_probs(emission, group_size)


def mean_success_rates(emission: Emission) -> np.ndarray:
    """Returns the success rate that each state stands for, float64 [K]; the middle of the class where it is exact."""
    if emission.success_rates is not None:
        return np.asarray(emission.success_rates, np.float64)
    num_states = emission.num_states
    if num_states == 2:
        return np.array([0.5, 0.5])
    inside = (np.arange(num_states - 2) + 0.5) / (num_states - 2)
    return np.concatenate([[0.0], inside, [1.0]])
