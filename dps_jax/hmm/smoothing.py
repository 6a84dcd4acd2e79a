"""Filter, smoother and exact likelihood of logged traces under a transition matrix that does not change.

`filtering` learns a matrix per prompt as rounds go by; here the matrix is given, and the question is how likely whole
traces are under it. That likelihood, with its gradient, is what transition priors are fitted by.

* Probabilities are linear and rescaled every round, sums over states are written out on arrays of shape [N]. A round's
  likelihood is scaled by its largest value among the states that the model deems possible, so evidence is 0 only where
  the model excludes what was seen.
* A share of belief below the smallest float (1e-38 in float32, 1e-308 in float64) counts as none. A matrix without
  zeros loses nothing by it. With zeros, and outcomes that contradict each other by more than that, the evidence is a
  lower bound.
* The derivative of the evidence is the smoother (Fisher's identity), written by hand: it divides neither by an entry
  of the matrix nor by a likelihood, so 0 and -inf are ordinary values.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax.hmm import emissions
from dps_jax.hmm._beliefs import Leaves, sum_of

__all__ = [
    "FilteredTrace",
    "SmoothedTrace",
    "forward",
    "log_evidence",
    "smooth",
    "trace_log_likelihood",
]


class FilteredTrace(NamedTuple):
    """What `forward` returns.

    Attributes:
      filtered_probs: p(state of round t | rounds 0 .. t), [T, K, N].
      predicted_probs: p(state of round t | rounds 0 .. t - 1), [T, K, N]; round 0 is the initial belief.
      log_evidence: log p(all that was seen of a prompt), nats, [N]; -inf where something impossible was seen.
      num_impossible: rounds in which the model gave what was seen no chance, int32 [N].
    """

    filtered_probs: jax.Array
    predicted_probs: jax.Array
    log_evidence: jax.Array
    num_impossible: jax.Array


class SmoothedTrace(NamedTuple):
    """What `smooth` returns.

    Attributes:
      smoothed_probs: p(state of round t | all rounds), [T, K, N].
      transition_counts: expected number of moves from state i to state j in all rounds, [K, K, N]; sums to T - 1.
        With `trained_matrix`, the moves out of rounds without training.
      trained_counts: the others, [K, K, N]; None without `trained_matrix`.
      forward: what `forward` returns.
    """

    smoothed_probs: jax.Array
    transition_counts: jax.Array
    trained_counts: jax.Array | None
    forward: FilteredTrace


def forward(
    initial_probs: Any,
    transition_matrix: Any,
    log_likelihood: Any,
    *,
    trained_matrix: Any = None,
    is_trained: Any = None,
) -> FilteredTrace:
    """Returns the filtered and the predicted beliefs of every round, and the evidence.

    If what was seen is impossible under the model, what was seen stands: the filtered belief is the normalised
    likelihood (the prediction, if no state at all allows the outcome), the round is counted in `num_impossible`, the
    log evidence of the prompt is -inf, and the rounds after it go on from there.

    Args:
      initial_probs: belief about the state of round 0, [K] or [K, N].
      transition_matrix: row-stochastic, A[i, j] = p(state j in the next round | state i), [K, K] or [K, K, N].
      log_likelihood: log p(what was seen | state), nats, [T, K, N]; zeros where nothing was, -inf for excluded states.
      trained_matrix: of the moves out of rounds with `is_trained`, instead of `transition_matrix`, [K, K] or [K, K, N].
      is_trained: whether the prompt was trained on in the round, bool [T, N]; given with `trained_matrix`.

    Raises:
      ValueError: for shapes that do not fit together.

    Source: METHOD section 1, steps 1 and 4, for a matrix that is known.
    """
    arguments = _as_arrays(initial_probs, transition_matrix, log_likelihood, trained_matrix, is_trained)
    return _as_trace(_forward_scan(*arguments, is_kept=True))


def _as_trace(trace: _Forward) -> FilteredTrace:
    return FilteredTrace(
        filtered_probs=jnp.stack(trace.filtered, axis=1),
        predicted_probs=jnp.stack(trace.predicted, axis=1),
        log_evidence=trace.log_evidence,
        num_impossible=trace.num_impossible,
    )


def log_evidence(
    initial_probs: Any,
    transition_matrix: Any,
    log_likelihood: Any,
    *,
    trained_matrix: Any = None,
    is_trained: Any = None,
) -> jax.Array:
    """Returns log p(all that was seen of a prompt), nats, [N]; -inf where something impossible was seen.

    Takes and raises what `forward` does. Has reverse derivatives with respect to all arguments but `is_trained`,
    entries of 0 and -inf included, and forward over reverse (`jax.hessian`). Where the evidence is 0 the derivative is
    0; one that would overflow is cut off.
    """
    return _log_evidence(*_as_arrays(initial_probs, transition_matrix, log_likelihood, trained_matrix, is_trained))


def smooth(
    initial_probs: Any,
    transition_matrix: Any,
    log_likelihood: Any,
    *,
    trained_matrix: Any = None,
    is_trained: Any = None,
) -> SmoothedTrace:
    """Returns the beliefs of every round given all rounds, and the expected transition counts.

    Takes and raises what `forward` does. Nothing is learned backwards across an impossible round: the rounds before it
    are smoothed as if the trace ended there, and the move into it counts as the product of the beliefs on its sides.
    """
    arguments = _as_arrays(initial_probs, transition_matrix, log_likelihood, trained_matrix, is_trained)
    trace = _forward_scan(*arguments, is_kept=True)
    smoothed, (idle, *trained), _ = _backward_scan(*arguments[1:], trace, is_expectation=True)
    return SmoothedTrace(
        smoothed_probs=jnp.stack(smoothed, axis=1),
        transition_counts=idle,
        trained_counts=trained[0] if trained else None,
        forward=_as_trace(trace),
    )


def trace_log_likelihood(emission: emissions.Emission, successes: Any, counts: Any, dtype: Any = None) -> jax.Array:
    """Returns what `forward` takes, nats, [T, K, N], from int arrays [T, N]; a count of 0 is no visit.

    Without a dtype it is float32, and float64 where 64-bit numbers are enabled.
    """
    successes, counts = jnp.asarray(successes), jnp.asarray(counts)
    dtype = jnp.result_type(float) if dtype is None else dtype
    return jnp.moveaxis(emissions.log_likelihood(emission, successes, counts, dtype), 0, 1)


def _as_arrays(
    initial_probs: Any, transition_matrix: Any, log_likelihood: Any, trained_matrix: Any, is_trained: Any
) -> tuple[jax.Array, tuple[jax.Array, ...], jax.Array, jax.Array | None]:
    """Returns arrays of the dtype of the likelihood, shapes checked: initial_probs, matrices, logs, is_trained.

    The matrices are one for all moves, or those of idle and of trained rounds.
    """
    logs = jnp.asarray(log_likelihood)
    if logs.ndim != 3 or 0 in logs.shape[:2] or not jnp.issubdtype(logs.dtype, jnp.floating):
        raise ValueError(f"log_likelihood: expected floats of shape [T, K, N], got {logs.dtype} {list(logs.shape)}")
    num_rounds, num_states, num_prompts = logs.shape
    if (trained_matrix is None) != (is_trained is None):
        missing = "trained_matrix" if trained_matrix is None else "is_trained"
        raise ValueError(f"{missing}: expected an array, because the other of trained_matrix and is_trained is given")

    def checked(name: str, value: Any, rank: int) -> jax.Array:
        array = jnp.asarray(value, logs.dtype)
        shared = (num_states,) * rank
        if array.shape not in (shared, (*shared, num_prompts)):
            raise ValueError(
                f"{name}: expected shape {list(shared)} or {[*shared, num_prompts]} to fit log_likelihood [T, K, N] = "
                f"{list(logs.shape)}, got {list(array.shape)}; prompts come last"
            )
        return array

    initial = checked("initial_probs", initial_probs, 1)
    matrices = (checked("transition_matrix", transition_matrix, 2),)
    if trained_matrix is None:
        return initial, matrices, logs, None
    is_trained = jnp.asarray(is_trained)
    if is_trained.shape != (num_rounds, num_prompts) or is_trained.dtype != bool:
        raise ValueError(
            f"is_trained: expected bool of shape {[num_rounds, num_prompts]} to fit log_likelihood [T, K, N] = "
            f"{list(logs.shape)}, got {is_trained.dtype} {list(is_trained.shape)}"
        )
    return initial, (*matrices, checked("trained_matrix", trained_matrix, 2)), logs, is_trained


def _wide(matrices: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Returns matrices with a prompt axis, [K, K, N] or [K, K, 1]."""
    return tuple(matrix.reshape(*matrix.shape[:2], -1) for matrix in matrices)


def _move(matrices: tuple[jax.Array, ...], belief: jax.Array, is_trained: jax.Array | None) -> jax.Array:
    """Returns belief @ A, [K, N], by the matrix that governs the move out of the round."""
    moved = [sum_of(belief[i : i + 1] * matrix[i] for i in range(len(belief))) for matrix in matrices]
    return moved[0] if is_trained is None else jnp.where(is_trained > 0, moved[1], moved[0])


def _pull(matrices: tuple[jax.Array, ...], weights: jax.Array, is_trained: jax.Array | None) -> jax.Array:
    """Returns A @ weights, [K, N], by the matrix that governs the move out of the round."""
    pulled = [sum_of(matrix[:, j] * weights[j : j + 1] for j in range(len(weights))) for matrix in matrices]
    return pulled[0] if is_trained is None else jnp.where(is_trained > 0, pulled[1], pulled[0])


def _likelihood(logs: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns exp(logs - shift); a state that explains the outcome far better than `shift` must not overflow."""
    largest_log = float(np.log(float(jnp.finfo(logs.dtype).max))) - 1
    return jnp.exp(jnp.minimum(logs - shift, largest_log))


def _condition(
    predicted: jax.Array, logs: jax.Array, logs_of_states: Sequence[jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Conditions one round's belief on the log likelihood of what was seen.

    Args:
      predicted: [K, N].
      logs: [K, N].
      logs_of_states: the same, K arrays [N].

    Returns:
      filtered belief, [K, N]; log evidence, [N], inf where impossible; is_possible, bool [N].
    """
    tiny = jnp.finfo(logs.dtype).tiny
    pairs = zip(predicted, logs_of_states, strict=True)
    best = functools.reduce(jnp.maximum, [jnp.where(q >= tiny, log, -jnp.inf) for q, log in pairs])
    best = jnp.where(best > -jnp.inf, best, functools.reduce(jnp.maximum, logs_of_states))
    # No result depends on this factor, so its derivative is left out.
    shift = lax.stop_gradient(jnp.where(jnp.isfinite(best), best, 0))
    likelihood = _likelihood(logs, shift)
    joint = predicted * likelihood
    evidence, total = sum_of(joint), sum_of(likelihood)
    is_possible = evidence >= tiny
    # Impossible data: what was seen stands (METHOD section 1, step 2), if any state allows it.
    inverse = 1 / jnp.where(is_possible, evidence, jnp.where(total > 0, total, 1))
    filtered = jnp.where(is_possible, joint, jnp.where(total > 0, likelihood, predicted)) * inverse
    log_evidence = jnp.where(is_possible, shift + jnp.log(jnp.where(is_possible, evidence, 1)), jnp.inf)
    return filtered, log_evidence, is_possible


class _Forward(NamedTuple):
    """What the way forward leaves; the rounds are there if they were to be kept."""

    log_evidence: jax.Array  # [N]
    num_impossible: jax.Array  # [N]
    predicted: Leaves  # K arrays [T, N]
    filtered: Leaves  # K arrays [T, N]
    log_gains: Any  # of a round, [T, N]; inf where impossible


def _forward_scan(
    initial_probs: jax.Array,
    matrices: tuple[jax.Array, ...],
    log_likelihood: jax.Array,
    is_trained: jax.Array | None,
    *,
    is_kept: bool,
) -> _Forward:
    num_rounds, num_states, num_prompts = log_likelihood.shape
    dtype, wide = log_likelihood.dtype, _wide(matrices)

    def step(carry, inputs):
        index, logs, is_trained = inputs
        predicted, log_evidence, num_impossible = carry
        # Not the rows of `logs`: XLA for CPU does not vectorise what cuts a cut.
        row = lambda state: lax.dynamic_slice(log_likelihood, (index, state, jnp.int32(0)), (1, 1, num_prompts))[0, 0]
        rows = [row(jnp.int32(state)) for state in range(num_states)]
        filtered, log_gain, is_possible = _condition(predicted, logs, rows)
        moved = _move(wide, filtered, is_trained)
        log_evidence = log_evidence + jnp.where(is_possible, log_gain, -jnp.inf)
        carry = (moved, log_evidence, num_impossible + (~is_possible).astype(jnp.int32))
        return carry, (tuple(predicted), tuple(filtered), log_gain) if is_kept else ((), (), ())

    start = jnp.broadcast_to(initial_probs.reshape(num_states, -1), (num_states, num_prompts))
    carry = (start, jnp.zeros(num_prompts, dtype), jnp.zeros(num_prompts, jnp.int32))
    inputs = (jnp.arange(num_rounds, dtype=jnp.int32), log_likelihood, _as_float(is_trained, dtype))
    (_, log_evidence, num_impossible), kept = lax.scan(step, carry, inputs)
    return _Forward(log_evidence, num_impossible, *kept)


def _as_float(is_trained: jax.Array | None, dtype: Any) -> jax.Array | None:
    """Returns the mask as 0 and 1: XLA for CPU does not vectorise what reads booleans."""
    return None if is_trained is None else is_trained.astype(dtype)


def _backward_scan(
    matrices: tuple[jax.Array, ...],
    log_likelihood: jax.Array,
    is_trained: jax.Array | None,
    trace: _Forward,
    *,
    is_expectation: bool,
) -> tuple[Leaves, tuple[jax.Array, ...], jax.Array]:
    """Goes back through the rounds.

    Let `w_t[j] = p(rounds t .. T - 1 | state j in round t) / p(rounds t .. T - 1 | rounds 0 .. t - 1)`: the derivative
    of the log evidence with respect to the prediction of round t. Then `A @ w_{t+1}` is the backward message, and
    `filtered_t[i] * A[i, j] * w_{t+1}[j]` the posterior of a pair of states.

    Returns:
      smoothed beliefs, K arrays [T, N]; sums over rounds of the posterior of pairs if `is_expectation`, else of the
      derivative with respect to each of the matrices, [K, K, N]; and w_0, [K, N].
    """
    _, num_states, num_prompts = log_likelihood.shape
    dtype, wide = log_likelihood.dtype, _wide(matrices)
    # Only the weights of states with next to no belief come near these; the second leaves room for sums.
    largest = float(jnp.finfo(dtype).max) / 256
    largest_summed = float(jnp.finfo(dtype).max) ** 0.75

    def step(carry, inputs):
        # The message is 0 for all states where nothing comes back: at the end, and before an impossible round.
        weights, message, smoothed_next, sums = carry
        filtered, log_gain, logs, is_trained, was_trained = inputs
        total = sum_of(f * m for f, m in zip(filtered, message, strict=True))
        # The total is 1 but for rounding, which must not add up over many rounds. The division comes last: XLA for
        # CPU keeps its result for all that need it, and does what is cheaper over again for each of them.
        inverse = (total > 0).astype(dtype) / jnp.where(total > 0, total, 1)
        gain = jnp.minimum(weights * inverse, largest_summed)
        # Across an impossible round, a pair is the product of the beliefs on its sides.
        across = 1 - (inverse > 0).astype(dtype)
        pair = lambda row: row * gain + across * jnp.stack(smoothed_next)
        shares = (None,) if is_trained is None else (1 - is_trained, is_trained)
        sums = tuple(
            tuple(
                row + (f if share is None else f * share) * (pair(matrix[i]) if is_expectation else gain)
                for i, (row, f) in enumerate(zip(kind, filtered, strict=True))
            )
            for kind, share, matrix in zip(sums, shares, wide, strict=True)
        )
        message = jnp.where(inverse > 0, message * inverse, 1)
        smoothed = tuple(f * m for f, m in zip(filtered, message, strict=True))
        weights = jnp.minimum(_likelihood(logs, log_gain) * message, largest)
        return (weights, _pull(wide, weights, was_trained), smoothed, sums), smoothed

    zeros = jnp.zeros((num_states, num_prompts), dtype)
    leaves = (zeros[0],) * num_states
    carry = (zeros, zeros, leaves, ((zeros,) * num_states,) * len(matrices))
    is_trained = _as_float(is_trained, dtype)
    was_trained = None if is_trained is None else jnp.roll(is_trained, 1, axis=0)
    inputs = (trace.filtered, trace.log_gains, log_likelihood, is_trained, was_trained)
    (weights, _, _, sums), smoothed = lax.scan(step, carry, inputs, reverse=True)
    return smoothed, tuple(jnp.stack(kind) for kind in sums), jnp.minimum(weights, largest_summed)


@jax.custom_vjp
def _log_evidence(
    initial_probs: jax.Array,
    matrices: tuple[jax.Array, ...],
    log_likelihood: jax.Array,
    is_trained: jax.Array | None,
) -> jax.Array:
    return _forward_scan(initial_probs, matrices, log_likelihood, is_trained, is_kept=False).log_evidence


def _log_evidence_fwd(initial_probs, matrices, log_likelihood, is_trained):
    arguments = (initial_probs, matrices, log_likelihood)
    trace = _forward_scan(*arguments, is_trained, is_kept=True)._replace(predicted=())
    return trace.log_evidence, (arguments, is_trained, trace)


def _log_evidence_bwd(residuals, cotangent):
    arguments, is_trained, trace = residuals
    _, matrices, log_likelihood = arguments
    smoothed, sums, weights = _backward_scan(matrices, log_likelihood, is_trained, trace, is_expectation=False)
    cotangent = jnp.where(trace.num_impossible == 0, cotangent, 0)
    grads = (weights, sums, jnp.stack(smoothed, axis=1))
    scaled = jax.tree.map(lambda grad: grad * jnp.expand_dims(cotangent, range(grad.ndim - 1)), grads)
    # What all prompts share has no prompt axis.
    return *jax.tree.map(lambda x, y: x if x.ndim == y.ndim else x.sum(axis=-1), scaled, arguments), None


_log_evidence.defvjp(_log_evidence_fwd, _log_evidence_bwd)
