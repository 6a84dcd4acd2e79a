"""The observation model: p(m correct completions out of G | hidden state of the prompt)."""

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
    """The observation model as data, built by `exact` or `binomial`.

    Attributes:
      kind: "exact", if the state is the class of the share m / G of correct completions, or "binomial", if a completion
        of a prompt in state k is correct with probability `success_rates[k]`.
      num_states: number of hidden states, K.
      success_rates: success rate of each state, K numbers inside (0, 1); None with the exact emission.
      precision: sum a + b of the Beta(a, b) distribution from which the success rate of each visit is drawn; None for a
        plain binomial distribution.

    Example:
      >>> from dps_jax import hmm
      >>> emission = hmm.binomial([0.1, 0.5, 0.9])
      >>> emission.kind, emission.num_states
      ('binomial', 3)
    """

    kind: str
    num_states: int
    success_rates: tuple[float, ...] | None = None
    precision: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as values that JSON gives back unchanged."""
        rates = self.success_rates
        return dataclasses.asdict(self) | {"success_rates": None if rates is None else list(rates)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Emission:
        """Returns the emission with the given fields, as returned by `to_dict`.

        Raises:
          ValueError: for an unknown kind or bad parameters.
        """
        _checks.check_choice("emission.kind", fields.get("kind"), ("exact", "binomial"))
        if fields["kind"] == "exact":
            return exact(fields["num_states"])
        return binomial(fields["success_rates"], fields.get("precision"))


def exact(num_states: int = 3) -> Emission:
    """Returns the emission under which the number m of correct completions out of G determines the state.

    With K = 3, the states are those of DPS: unsolved (m = 0), partially solved (0 < m < G) and solved (m = G). With
    K = 5 or 7, the open interval (0, 1) of m / G is divided into K - 2 equal parts, and a value on a boundary belongs
    to the upper part. With K = 2, state 1 is informative (0 < m < G) and state 0 is not (m = 0 or m = G).

    Args:
      num_states: number of states, K: 2, 3, 5 or 7.

    Raises:
      ValueError: if `num_states` is not 2, 3, 5 or 7.

    Example:
      >>> import jax.numpy as jnp
      >>> from dps_jax import hmm
      >>> log_probs = hmm.emissions.log_likelihood(hmm.exact(3), jnp.array([5]), jnp.array([8]))
      >>> print(jnp.exp(log_probs[:, 0]))
      [0. 1. 0.]

    Source: DPS (arXiv 2603.10887), section on the solve state and its ablation. The paper leaves open to which part a
    value on a boundary belongs, and which states K = 2 merges; both are our choices.
    """
    _checks.check_choice("num_states", num_states, EXACT_NUM_STATES)
    return Emission("exact", num_states)


def binomial(success_rates: Sequence[float], precision: float | None = None) -> Emission:
    """Returns the emission under which a completion in state k is correct with probability `success_rates[k]`.

    With the exact emission and K = 3, only whether none, some or all completions are correct matters; this emission
    uses the number of correct completions itself.

    Args:
      success_rates: success rate of each state, K >= 2 numbers inside (0, 1).
      precision: sum a + b > 0 of the Beta(a, b) distribution, with mean `success_rates[k]`, from which the rate of each
        visit in state k is drawn. Outcomes are then beta-binomial. None stands for a plain binomial distribution.

    Raises:
      ValueError: for fewer than two rates, a rate outside (0, 1), or a precision that is not positive.

    Example:
      >>> import numpy as np
      >>> from dps_jax import hmm
      >>> emission = hmm.binomial([0.1, 0.5, 0.9])
      >>> prior = hmm.TransitionPrior(np.full(3, 1 / 3), np.ones((3, 3)), emission=emission)
      >>> hmm.emissions.informative_probs(prior.emission, group_size=8).round(2)
      array([0.57, 0.99, 0.57])
    """
    rates = np.asarray(success_rates, np.float64)
    if rates.ndim != 1 or rates.size < 2 or not np.all((rates > 0) & (rates < 1)):
        raise ValueError(f"success_rates: expected at least two rates inside (0, 1), got {success_rates!r}")
    if precision is not None and not (np.isfinite(precision) and precision > 0):
        raise ValueError(f"precision: expected a positive number or None, got {precision!r}")
    return Emission("binomial", rates.size, tuple(rates.tolist()), None if precision is None else float(precision))


def observed_states(num_states: int, successes: jax.Array, counts: jax.Array) -> jax.Array:
    """Returns the state that each outcome determines under the exact emission, int32 [P], by integer arithmetic.

    Args:
      num_states: number of states, K.
      successes: number of correct completions of each visit, int [P], in [0, counts].
      counts: number of completions of each visit, int [P], >= 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from dps_jax.hmm import emissions
      >>> print(emissions.observed_states(3, jnp.array([0, 5, 8]), jnp.array([8, 8, 8])))
      [0 1 2]
    """
    is_inside = (successes > 0) & (successes < counts)
    if num_states == 2:
        return is_inside.astype(jnp.int32)
    inside = 1 + (successes * (num_states - 2)) // jnp.maximum(counts, 1)
    state = jnp.where(is_inside, inside, jnp.where(successes > 0, num_states - 1, 0))
    return state.astype(jnp.int32)


def log_likelihood(emission: Emission, successes: jax.Array, counts: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """Returns log p(successes | state, counts) for every state, without the binomial coefficient.

    The coefficient does not depend on the state. If the count is 0, nothing was observed, and the result is 0 for every
    state.

    Args:
      emission: observation model.
      successes: number of correct completions of each visit, int [...].
      counts: number of completions of each visit, int [...]; visits may have different counts.
      dtype: dtype of the result.

    Returns:
      Log likelihoods in nats, [K, ...]; -inf where the outcome is impossible in the state.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from dps_jax import hmm
      >>> emission = hmm.binomial([0.25, 0.75])
      >>> log_probs = hmm.emissions.log_likelihood(emission, jnp.array([3, 0]), jnp.array([4, 0]))
      >>> print(np.asarray(jnp.exp(log_probs)).round(3))
      [[0.012 1.   ]
       [0.105 1.   ]]
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
    """Returns log p(successes | success rate, counts) in nats, without the binomial coefficient.

    The function is differentiable in all arguments. The arguments broadcast.

    Args:
      success_rates: success rates, floats in (0, 1).
      precision: sum a + b of the Beta(a, b) distribution of the rate; None for a plain binomial distribution.
      successes: numbers of correct completions, floats.
      counts: numbers of completions, floats.

    Example:
      >>> import jax
      >>> from dps_jax.hmm import emissions
      >>> log_prob = lambda rate: emissions.binomial_log_likelihood(rate, None, 6.0, 8.0)
      >>> round(float(jax.grad(log_prob)(0.75)), 3)  # the maximum is at the rate 6 / 8
      0.0
    """
    failures = counts - successes
    if precision is None:
        return xlogy(successes, success_rates) + xlog1py(failures, -success_rates)
    a, b = success_rates * precision, (1 - success_rates) * precision
    return _log_rising(a, successes) + _log_rising(b, failures) - _log_rising(a + b, counts)


def _log_rising(x: jax.Array, steps: jax.Array) -> jax.Array:
    """Returns log(x (x + 1) ... (x + steps - 1)) for x > 0 and steps >= 0.

    This is a difference of two values of log gamma that are far larger than the difference: at a precision of 100, each
    has a float32 rounding error of 1e-5. The error is the same for all equal outcomes, so the errors of a trace add up.
    Stirling's series is used instead: its large terms cancel analytically, and after a shift of the argument three of
    its terms are accurate enough.
    """
    shift = 8
    first = x + shift
    last = first + steps
    series = steps * (jnp.log(last) - 1) + (first - 0.5) * jnp.log1p(steps / first)
    inverse_first, inverse_last = 1 / first, 1 / last
    series += (inverse_last - inverse_first) / 12 - (inverse_last**3 - inverse_first**3) / 360
    return series - sum(jnp.log1p(steps / (x + offset)) for offset in range(shift))


def outcome_probs(emission: Emission, group_size: int = 8) -> np.ndarray:
    """Returns p(m correct completions | state) for m = 0, ..., G, float64 [G + 1, K].

    The exact emission determines only which outcomes belong to a state. This function gives them equal probabilities.
    If G is so small that no outcome belongs to a state, all outcomes with 0 < m < G have equal probabilities in this
    state, or all outcomes if G = 1.

    Args:
      emission: observation model.
      group_size: number of completions of the group, G.

    Example:
      >>> from dps_jax import hmm
      >>> hmm.emissions.outcome_probs(hmm.exact(3), group_size=3)
      array([[1. , 0. , 0. ],
             [0. , 0.5, 0. ],
             [0. , 0.5, 0. ],
             [0. , 0. , 1. ]])
    """
    # Computed on the host in float64: compiled programs contain the result as a constant.
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
    """Returns the logarithms of the binomial coefficients "G choose m" for m = 0, ..., G, float64 [G + 1].

    Args:
      group_size: number of completions of the group, G.

    Example:
      >>> import numpy as np
      >>> from dps_jax.hmm import emissions
      >>> np.exp(emissions.log_coefficients(4)).round()
      array([1., 4., 6., 4., 1.])
    """
    return np.array([math.log(math.comb(group_size, successes)) for successes in range(group_size + 1)])


def binomial_outcome_probs(success_rates: np.ndarray, group_size: int, precision: float | None = None) -> np.ndarray:
    """Returns p(m correct completions | success rate) for m = 0, ..., G, float64 [G + 1, K].

    SciPy is not used: importing `scipy.stats` takes longer than importing JAX.

    Args:
      success_rates: success rates, float64 [K], inside (0, 1).
      group_size: number of completions of the group, G.
      precision: sum a + b of the Beta(a, b) distribution of the rate; None for a plain binomial distribution.

    Example:
      >>> import numpy as np
      >>> from dps_jax.hmm import emissions
      >>> emissions.binomial_outcome_probs(np.array([0.5]), group_size=2)[:, 0].round(3)
      array([0.25, 0.5 , 0.25])
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
    """Returns the probability that a completion group is informative (0 < m < G correct) in each state, float64 [K].

    Args:
      emission: observation model.
      group_size: number of completions of the group, G; it has no effect with the exact emission.

    Example:
      >>> from dps_jax import hmm
      >>> hmm.emissions.informative_probs(hmm.exact(3))
      array([0., 1., 0.])
    """
    if emission.kind == "exact":
        states = np.arange(emission.num_states)
        is_informative = states == 1 if emission.num_states == 2 else (states > 0) & (states < emission.num_states - 1)
        return is_informative.astype(np.float64)
    probs = outcome_probs(emission, group_size)
    return 1 - probs[0] - probs[-1]


def reward_variances(emission: Emission, group_size: int = 8) -> np.ndarray:
    """Returns the expected variance of correctness within a group in each state, float64 [K].

    With m correct completions of G, the variance is m / G * (1 - m / G).

    Args:
      emission: observation model.
      group_size: number of completions of the group, G.

    Example:
      >>> from dps_jax import hmm
      >>> hmm.emissions.reward_variances(hmm.binomial([0.1, 0.5]), group_size=8).round(3)
      array([0.079, 0.219])
    """
    rates = np.arange(group_size + 1) / group_size
    return (rates * (1 - rates)) @ outcome_probs(emission, group_size)


def mean_success_rates(emission: Emission) -> np.ndarray:
    """Returns the success rate of each state, float64 [K]; for the exact emission, the middle of its interval of m / G.

    With K = 2 and the exact emission, it is 1/2 for both states.

    Args:
      emission: observation model.

    Example:
      >>> from dps_jax import hmm
      >>> hmm.emissions.mean_success_rates(hmm.exact(3))
      array([0. , 0.5, 1. ])
    """
    if emission.success_rates is not None:
        return np.asarray(emission.success_rates, np.float64)
    num_states = emission.num_states
    if num_states == 2:
        return np.array([0.5, 0.5])
    inside = (np.arange(num_states - 2) + 0.5) / (num_states - 2)
    return np.concatenate([[0.0], inside, [1.0]])
