"""How well the filter predicts a logged trace: the probability of every outcome given those before it.

`filtering` advances a state in place, round by round, in the training loop; here the same filter goes over a whole
trace at once, with derivatives with respect to its prior, so that priors can be fitted to what it will be used for.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dps_jax.hmm import filtering

Leaves = tuple[jax.Array, ...]


def _rows(entries: jax.Array, num_prompts: int) -> list[list[jax.Array]]:
    return [[jnp.broadcast_to(entry, (num_prompts,)) for entry in row] for row in entries]


def log_predictive_probs(
    initial_probs: Any,
    concentration: Any,
    decay: Any,
    log_likelihood: jax.Array,
    is_observed: jax.Array,
    trained_concentration: Any = None,
) -> jax.Array:
    """Returns log p(what was seen in round t | rounds 0 .. t - 1) by the filter of `filtering`, nats, [T, N].

    Zeros where nothing was seen. What the filter calls impossible has the log of its smallest evidence, and no
    derivative.

    Args:
      initial_probs: belief about the state of round 0, [K] or [K, N].
      concentration: Dirichlet parameters C_0, row i for transitions out of state i, [K, K] or [K, K, N].
      decay: share of the learned counts that survives a round, lambda.
      log_likelihood: log p(what was seen | state), [T, K, N]; zeros where nothing was.
      is_observed: bool [T, N].
      trained_concentration: C_0 of the move out of a round in which the prompt was observed; None: as the others.

    Source: METHOD section 1; the product over a trace is the prequential likelihood.
    """
    given = (initial_probs, concentration, decay, log_likelihood, is_observed, trained_concentration)
    return _filter(*given)[0]


def predicted_probs(
    initial_probs: Any,
    concentration: Any,
    decay: Any,
    log_likelihood: jax.Array,
    is_observed: jax.Array,
    trained_concentration: Any = None,
) -> jax.Array:
    """Returns the belief about the state of round t given rounds 0 .. t - 1, [T, K, N]; takes what the other takes."""
    given = (initial_probs, concentration, decay, log_likelihood, is_observed, trained_concentration)
    return jnp.stack(_filter(*given)[1], axis=1)


def _filter(initial_probs, concentration, decay, log_likelihood, is_observed, trained_concentration):
    """Returns log predictive probabilities [T, N] and predicted beliefs, K arrays [T, N]."""
    _, num_states, num_prompts = log_likelihood.shape
    dtype, states = log_likelihood.dtype, range(num_states)
    idle = _rows(jnp.asarray(concentration, dtype), num_prompts)
    trained = None if trained_concentration is None else _rows(jnp.asarray(trained_concentration, dtype), num_prompts)
    initial = jnp.asarray(initial_probs, dtype)

    def prior_counts(was_observed: jax.Array) -> list[list[jax.Array]]:
        if trained is None:
            return idle
        return [[jnp.where(was_observed, trained[i][j], idle[i][j]) for j in states] for i in states]

    def step(carry, inputs):
        belief, learned, was_observed, is_first = carry
        logs, is_seen = inputs
        base = prior_counts(was_observed)
        counts = [[base[i][j] + learned[i][j] for j in states] for i in states]
        moved = filtering._propagate(belief, counts)
        predicted = [jnp.where(is_first, *pair) for pair in zip(belief, moved, strict=True)]
        filtered, soft_counts, log_evidence = _condition(belief, predicted, counts, logs)
        belief = tuple(jnp.where(is_seen, *pair) for pair in zip(filtered, predicted, strict=True))
        learned = tuple(
            tuple(decay * learned[i][j] + jnp.where(is_seen, soft_counts[i][j], 0) for j in states) for i in states
        )
        carry = (belief, learned, is_seen, jnp.zeros_like(is_first))
        return carry, (jnp.where(is_seen, log_evidence, 0), tuple(predicted))

    zeros = jnp.zeros(num_prompts, dtype)
    start = (
        tuple(jnp.broadcast_to(entry, (num_prompts,)) for entry in initial),
        ((zeros,) * num_states,) * num_states,
        jnp.zeros(num_prompts, bool),
        jnp.ones((), bool),
    )
    # The arithmetic of a round is cheaper than keeping it for the way back.
    return lax.scan(jax.checkpoint(step), start, (log_likelihood, is_observed))[1]


def _condition(belief, predicted, counts, logs):
    filtered, soft_counts, _ = filtering._condition(belief, predicted, counts, logs)
    best = logs.max(axis=0)
    evidence = filtering._total([q * jnp.exp(log - best) for q, log in zip(predicted, logs, strict=True)])
    is_possible = evidence > filtering._SMALLEST_EVIDENCE
    log_evidence = best + jnp.log(jnp.where(is_possible, evidence, filtering._SMALLEST_EVIDENCE))
    return filtered, soft_counts, log_evidence
