"""The likelihood of a logged trace under the filter: the probability of every outcome given the outcomes before it.

`filtering` advances a state in place, round by round, in a training loop. The functions here run the same filter over a
whole trace at once. They have reverse derivatives with respect to the prior, so that a prior can be fitted to the
predictive likelihood of the filter that will use it.

The derivative of `log_predictive_probs` is written by hand. Its forward pass stores
`shares[i] = belief[i] / sum_j counts[i, j]` at the start of every round; one backward pass then suffices, without
recomputation. Where the form of an expression helps XLA for CPU to vectorise a loop, a comment explains it.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dps_jax.hmm._beliefs import SMALLEST_EVIDENCE, condition, sum_of

__all__ = ["log_predictive_probs", "predicted_probs"]


class _Prior(NamedTuple):
    """Prior counts of transitions, [K, K, 1 or N], and the decay.

    The counts `idle` are for transitions out of rounds without an observation, and `trained` for transitions out of
    rounds with an observation. If `trained` is None, `idle` applies to all rounds.
    """

    idle: jax.Array
    trained: jax.Array | None
    decay: jax.Array


class _Kept(NamedTuple):
    """The residuals of the backward pass: the values at the start of rounds 1 .. T - 1."""

    shares: jax.Array  # [T - 1, K, N]
    learned: jax.Array  # [T - 1, K, K, N]


def log_predictive_probs(
    initial_probs: Any,
    concentration: Any,
    decay: Any,
    log_likelihood: jax.Array,
    is_observed: jax.Array,
    trained_concentration: Any = None,
) -> jax.Array:
    """Returns log p(outcome of round t | rounds 0 .. t - 1) under the filter of `hmm.filtering`, in nats, [T, N].

    The result is 0 in rounds without an observation. For an impossible observation it is the logarithm of the smallest
    evidence that the filter distinguishes from 0, with a derivative of 0.

    Args:
      initial_probs: belief about the state of round 0, [K] or [K, N].
      concentration: Dirichlet parameters C_0, row i for transitions out of state i, [K, K] or [K, K, N].
      decay: share of the learned counts that survives a round, lambda.
      log_likelihood: log p(outcome | state), nats, [T, K, N] for T rounds, K states and N prompts, as
        `smoothing.trace_log_likelihood` returns it; zeros in rounds without an observation.
      is_observed: whether each prompt was observed in each round, bool [T, N].
      trained_concentration: Dirichlet parameters of transitions out of rounds in which the prompt was observed, in the
        shape of `concentration`; None uses `concentration`.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from dps_jax import hmm
      >>> prior = hmm.resolve_prior("uniform")
      >>> successes, counts = jnp.array([[0], [4], [8]]), jnp.array([[8], [8], [8]])  # [T, N]
      >>> logs = hmm.smoothing.trace_log_likelihood(prior.emission, successes, counts)
      >>> probs = hmm.online.log_predictive_probs(prior.initial_probs, prior.concentration, 0.7, logs, counts > 0)
      >>> print(np.asarray(jnp.exp(probs[:, 0])).round(2))
      [0.33 0.3  0.31]

    Source: docs/concepts/method.md, "One round"; the sum over a trace is the log of the prequential likelihood.
    """
    prior, initial, is_seen = _as_arrays(
        initial_probs, concentration, decay, log_likelihood, is_observed, trained_concentration
    )
    first, belief, learned = _first_round(prior, initial, log_likelihood[0], is_observed[0])
    if len(log_likelihood) == 1:
        return first[None]
    return jnp.concatenate([first[None], _rest(belief, learned, prior, log_likelihood, is_seen)])


def predicted_probs(
    initial_probs: Any,
    concentration: Any,
    decay: Any,
    log_likelihood: jax.Array,
    is_observed: jax.Array,
    trained_concentration: Any = None,
) -> jax.Array:
    """Returns the belief about the state of round t given rounds 0 .. t - 1, [T, K, N].

    The arguments, for T rounds, K states and N prompts, are the same as for `log_predictive_probs`.

    Args:
      initial_probs: belief about the state of round 0.
      concentration: Dirichlet parameters C_0.
      decay: share of the learned counts that survives a round.
      log_likelihood: log p(outcome | state), [T, K, N].
      is_observed: whether each prompt was observed in each round, bool [T, N].
      trained_concentration: Dirichlet parameters of transitions out of rounds with an observation, or None.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from dps_jax import hmm
      >>> prior = hmm.resolve_prior("uniform")
      >>> successes, counts = jnp.array([[0], [4]]), jnp.array([[8], [8]])  # [T, N]
      >>> logs = hmm.smoothing.trace_log_likelihood(prior.emission, successes, counts)
      >>> probs = hmm.online.predicted_probs(prior.initial_probs, prior.concentration, 0.7, logs, counts > 0)
      >>> print(np.asarray(probs[1, :, 0]).round(2))
      [0.4 0.3 0.3]
    """
    prior, initial, is_seen = _as_arrays(
        initial_probs, concentration, decay, log_likelihood, is_observed, trained_concentration
    )
    _, belief, learned = _first_round(prior, initial, log_likelihood[0], is_observed[0])
    if len(log_likelihood) == 1:
        return initial[None]
    kept = _forward(belief, learned, prior, log_likelihood, is_seen)[1]
    counts = jax.vmap(functools.partial(_counts, prior))(kept.learned, is_seen[:-1])
    return jnp.concatenate([initial[None], jax.vmap(_moved)(kept.shares, counts)])


def _as_arrays(initial_probs, concentration, decay, log_likelihood, is_observed, trained_concentration):
    """Returns the prior, the initial belief [K, N], and is_observed as 0 and 1."""
    _, num_states, num_prompts = log_likelihood.shape
    dtype = log_likelihood.dtype
    wide = lambda counts: jnp.asarray(counts, dtype).reshape(num_states, num_states, -1)
    trained = None if trained_concentration is None else wide(trained_concentration)
    initial = jnp.asarray(initial_probs, dtype).reshape(num_states, -1)
    prior = _Prior(wide(concentration), trained, jnp.asarray(decay, dtype))
    # XLA for CPU does not vectorise loops that read booleans.
    return prior, jnp.broadcast_to(initial, (num_states, num_prompts)), is_observed.astype(dtype)


def _first_round(prior, initial, logs, is_observed):
    """Returns log predictive probabilities [N], belief [K, N] and counts [K, K, N] of round 0.

    No transition precedes round 0.
    """
    counts = [list(row) for row in jnp.broadcast_to(prior.idle, (len(initial), *initial.shape))]
    filtered, soft_counts, _ = condition(list(initial), list(initial), counts, logs)
    best = logs.max(axis=0)
    log_prob = _log_evidence(best, sum_of(initial * jnp.exp(logs - best)))
    learned = jnp.stack([jnp.stack(row) for row in soft_counts])
    return (
        jnp.where(is_observed, log_prob, 0),
        jnp.where(is_observed, jnp.stack(filtered), initial),
        jnp.where(is_observed, learned, 0),
    )


def _log_evidence(best, evidence):
    is_possible = evidence > SMALLEST_EVIDENCE
    return best + jnp.log(jnp.where(is_possible, evidence, SMALLEST_EVIDENCE))


def _row_sums(matrix: jax.Array) -> jax.Array:
    return sum_of(matrix[:, j] for j in range(matrix.shape[1]))


def _counts(prior: _Prior, learned: jax.Array, was_seen: jax.Array) -> jax.Array:
    """Returns the Dirichlet parameters C of the transition into a round, [K, K, N]."""
    if prior.trained is None:
        return prior.idle + learned
    return jnp.where(was_seen > 0, prior.trained, prior.idle) + learned


def _moved(shares: jax.Array, counts: jax.Array) -> jax.Array:
    """Returns belief @ A(C), [K, N]."""
    return sum_of(shares[i : i + 1] * counts[i] for i in range(len(shares)))


def _likelihood(logs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the likelihood of the states up to a factor, [K, N], and the log of that factor, [N]."""
    best = functools.reduce(jnp.maximum, list(logs))
    return jnp.exp(logs - best), best


def _at(array: jax.Array, index: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(array, index, keepdims=False)


def _forward(belief, learned, prior, log_likelihood, is_seen):
    """Returns log predictive probabilities of rounds 1 .. T - 1, [T - 1, N], and residuals for the backward pass."""

    def load(index):
        # The carry holds the slices of the next round: XLA for CPU does not vectorise a loop that uses a slice twice.
        return _at(is_seen, index), _at(log_likelihood, index)

    def step(carry, index):
        shares, learned, was_seen, (is_seen, logs) = carry
        counts = _counts(prior, learned, was_seen)
        predicted = _moved(shares, counts)
        likelihood, best = _likelihood(logs)
        evidence, total = sum_of(predicted * likelihood), sum_of(likelihood)
        is_possible = evidence > SMALLEST_EVIDENCE
        scale = 1 / jnp.where(is_seen > 0, jnp.where(is_possible, evidence, total), 1)
        # An impossible observation overrides the prediction; see docs/concepts/method.md, "Impossible observations".
        belief = jnp.where(is_possible, predicted, 1) * (likelihood * scale)
        stands = (shares * _row_sums(counts))[:, None]
        moves = jnp.where(is_possible, shares[:, None] * counts, stands)
        learned_next = prior.decay * learned + moves * (likelihood * scale * is_seen)
        shares_next = belief / _row_sums(_counts(prior, learned_next, is_seen))
        carry = (shares_next, learned_next, is_seen, load(jnp.minimum(index + 1, num_rounds - 1)))
        return carry, (is_seen * _log_evidence(best, evidence), _Kept(shares, learned))

    num_rounds = len(log_likelihood)
    shares = belief / _row_sums(_counts(prior, learned, is_seen[0]))
    carry = (shares, learned, is_seen[0], load(jnp.int32(1)))
    return lax.scan(step, carry, jnp.arange(1, num_rounds, dtype=jnp.int32))[1]


@jax.custom_vjp
def _rest(belief, learned, prior, log_likelihood, is_seen):
    """Returns log predictive probabilities of rounds 1 .. T - 1, [T - 1, N]."""
    return _forward(belief, learned, prior, log_likelihood, is_seen)[0]


def _rest_fwd(belief, learned, prior, log_likelihood, is_seen):
    log_probs, kept = _forward(belief, learned, prior, log_likelihood, is_seen)
    return log_probs, (prior, log_likelihood, is_seen, kept)


def _rest_bwd(residuals, cotangent):
    """Computes the backward pass; `x_bar` is the derivative of the result with respect to `x`."""
    prior, log_likelihood, is_seen, kept = residuals
    num_rounds, num_states, num_prompts = log_likelihood.shape
    dtype = log_likelihood.dtype

    def load(index):
        given = (_at(is_seen, index), _at(is_seen, index - 1), _at(log_likelihood, index), _at(cotangent, index - 1))
        return given, jax.tree.map(lambda array: _at(array, index - 1), kept)

    def step(carry, index):
        (belief_bar, learned_bar, sums, decay_bar), ((is_seen, was_seen, logs, log_prob_bar), kept) = carry
        shares, learned = kept
        counts = _counts(prior, learned, was_seen)
        predicted = _moved(shares, counts)
        likelihood, _ = _likelihood(logs)
        evidence = sum_of(predicted * likelihood)
        is_possible = evidence > SMALLEST_EVIDENCE
        divisor = jnp.where(is_possible & (is_seen > 0), evidence, 1)
        # Divisions come last: XLA for CPU stores their results and recomputes cheaper operations.
        scale = is_possible.astype(dtype) / divisor
        moves_bar = learned_bar * is_seen
        of_state = (sum_of(moves_bar * (shares[:, None] * counts)) + belief_bar * predicted) * likelihood
        # Both the belief and the transitions are divided by the evidence, whose logarithm is the result.
        shared_bar = is_seen * is_possible * (log_prob_bar * divisor - sum_of(of_state)) / divisor
        gain = (moves_bar + (belief_bar + shared_bar)) * (likelihood * scale)
        before_bar = _row_sums(counts * gain) / _row_sums(counts)
        counts_bar = shares[:, None] * (gain - before_bar[:, None])
        shares_of_kinds = (None,) if prior.trained is None else (1 - was_seen, was_seen)
        sums = tuple(
            total + (counts_bar if share is None else counts_bar * share)
            for total, share in zip(sums, shares_of_kinds, strict=True)
        )
        decay_bar = decay_bar + sum_of(_row_sums(learned_bar * learned))
        logs_bar = is_seen * scale * (of_state + predicted * likelihood * shared_bar)
        bars = (before_bar, prior.decay * learned_bar + counts_bar, sums, decay_bar)
        return (bars, load(jnp.maximum(index - 1, 1))), logs_bar

    zeros = jnp.zeros((num_states, num_states, num_prompts), dtype)
    kinds = (prior.idle,) if prior.trained is None else (prior.idle, prior.trained)
    bars = (zeros[0], zeros, (zeros,) * len(kinds), zeros[0, 0])
    rounds = jnp.arange(1, num_rounds, dtype=jnp.int32)
    (bars, _), logs_bar = lax.scan(step, (bars, load(rounds[-1])), rounds, reverse=True)
    belief_bar, learned_bar, sums, decay_bar = bars
    pairs = zip(sums, kinds, strict=True)
    # Parameters that all prompts share have a prompt axis of length 1.
    idle_bar, *trained_bar = [
        total if total.shape == kind.shape else total.sum(-1, keepdims=True) for total, kind in pairs
    ]
    prior_bar = _Prior(idle_bar, trained_bar[0] if trained_bar else None, decay_bar.sum())
    logs_bar = jnp.concatenate([jnp.zeros_like(logs_bar[:1]), logs_bar])
    return belief_bar, learned_bar, prior_bar, logs_bar, jnp.zeros_like(is_seen)


_rest.defvjp(_rest_fwd, _rest_bwd)
