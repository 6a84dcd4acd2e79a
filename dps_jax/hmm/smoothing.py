"""Filter, smoother and exact likelihood of logged traces under a fixed transition matrix.

`filtering` learns a transition matrix per prompt during training. Here the matrix is given, and the functions compute
the likelihood of whole traces under it. All models of `dps_jax.priors` except `online` are fitted by this likelihood
and its gradient.

* Probabilities are not stored as logarithms; they are rescaled in every round. Sums over states are unrolled on arrays
  of shape [N]. The likelihood of a round is divided by its largest value among the states with a positive predicted
  probability, so the evidence is 0 only if the observation is impossible under the model.
* Probabilities below the smallest normal float (1e-38 in float32, 1e-308 in float64) count as 0. If the matrix has no
  zeros, this has no effect. If the matrix has zeros, and an outcome favours a state that earlier outcomes made less
  probable than this limit, the computed evidence is a lower bound.
* The derivative of the log evidence is computed by the smoother (Fisher's identity). It divides neither by an entry of
  the matrix nor by a likelihood, so matrix entries of 0 and log likelihoods of -inf need no special treatment.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax._documented import documented
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


@documented
class FilteredTrace(NamedTuple):
    """Filtered and predicted beliefs of a trace of T rounds, K states and N prompts, the result of `forward`.

    Attributes:
      filtered_probs: p(state of round t | rounds 0 .. t), [T, K, N].
      predicted_probs: p(state of round t | rounds 0 .. t - 1), [T, K, N]; the initial belief in round 0.
      log_evidence: log p(all observations of a prompt), nats, [N]; -inf for prompts with an impossible observation.
      num_impossible: number of rounds in which the observation had probability 0 under the model, int32 [N].

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from dps_jax.hmm import smoothing
      >>> matrix = [[0.9, 0.1], [0.2, 0.8]]
      >>> trace = smoothing.forward([0.5, 0.5], matrix, jnp.zeros((3, 2, 1)))  # no observation in three rounds
      >>> print(np.asarray(trace.predicted_probs[:, 0, 0]).round(3))
      [0.5   0.55  0.585]
    """

    filtered_probs: jax.Array
    predicted_probs: jax.Array
    log_evidence: jax.Array
    num_impossible: jax.Array


@documented
class SmoothedTrace(NamedTuple):
    """Smoothed beliefs of a trace of T rounds, and expected transition counts; the result of `smooth`.

    Attributes:
      smoothed_probs: p(state of round t | all rounds), [T, K, N].
      transition_counts: expected number of transitions from state i to state j in all rounds, [K, K, N]; the sum for
        each prompt is T - 1. With `trained_matrix`, only the transitions out of rounds without training.
      trained_counts: expected number of transitions out of rounds with training, [K, K, N]; None without
        `trained_matrix`.
      forward: result of `forward`, a `FilteredTrace`.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from dps_jax.hmm import smoothing
      >>> matrix = [[0.9, 0.1], [0.2, 0.8]]
      >>> trace = smoothing.smooth([0.5, 0.5], matrix, jnp.zeros((4, 2, 1)))
      >>> print(np.asarray(trace.transition_counts.sum()).round(3))  # three transitions of one prompt in four rounds
      3.0
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
    """Returns the filtered and the predicted beliefs of every round, and the log evidence.

    If an observation is impossible under the model, the filtered belief is the normalised likelihood (or the predicted
    belief, if the outcome is impossible in every state). The round is counted in `num_impossible`, the log evidence of
    the prompt is -inf, and the filter continues from this belief.

    Args:
      initial_probs: belief about the state of round 0, [K] or [K, N].
      transition_matrix: row-stochastic matrix, A[i, j] = p(state j in the next round | state i), [K, K] or [K, K, N].
      log_likelihood: log p(observation | state), nats, [T, K, N] for T rounds, K states and N prompts, as
        `trace_log_likelihood` returns it; zeros in rounds without an observation, -inf for states in which the
        observation is impossible.
      trained_matrix: matrix of transitions out of rounds with `is_trained`, where it replaces `transition_matrix`,
        [K, K] or [K, K, N]; None uses `transition_matrix` for all rounds.
      is_trained: whether the prompt was trained on in the round, bool [T, N]; required with `trained_matrix`.

    Raises:
      ValueError: if the shapes do not match.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from dps_jax import hmm
      >>> successes, counts = jnp.array([[0], [0]]), jnp.array([[8], [0]])  # unsolved in round 0, no visit in round 1
      >>> logs = hmm.smoothing.trace_log_likelihood(hmm.exact(3), successes, counts)
      >>> matrix = [[0.8, 0.2, 0.0], [0.1, 0.7, 0.2], [0.0, 0.1, 0.9]]
      >>> trace = hmm.smoothing.forward([0.4, 0.3, 0.3], matrix, logs)
      >>> print(np.asarray(trace.filtered_probs[:, :, 0]).round(2))
      [[1.  0.  0. ]
       [0.8 0.2 0. ]]

    Source: docs/concepts/method.md, "One round", for a known transition matrix.
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
    """Returns log p(all observations of each prompt) in nats, [N]; -inf for prompts with an impossible observation.

    The arguments are the same as for `forward`. The function has reverse derivatives with respect to all arguments but
    `is_trained`, also where probabilities are 0 or log likelihoods -inf, and forward-over-reverse derivatives
    (`jax.hessian`). The derivative is 0 where the evidence is 0, and is clipped where it would overflow.

    Args:
      initial_probs: belief about the state of round 0, [K] or [K, N].
      transition_matrix: row-stochastic matrix, [K, K] or [K, K, N].
      log_likelihood: log p(observation | state), nats, [T, K, N] for T rounds, K states and N prompts.
      trained_matrix: matrix of transitions out of rounds with `is_trained`, or None.
      is_trained: whether the prompt was trained on in the round, bool [T, N], or None.

    Raises:
      ValueError: if the shapes do not match.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from dps_jax import hmm
      >>> emission = hmm.binomial([0.2, 0.8])
      >>> logs = hmm.smoothing.trace_log_likelihood(emission, jnp.array([[1], [7]]), jnp.array([[8], [8]]))
      >>> matrix = [[0.9, 0.1], [0.2, 0.8]]
      >>> print(np.asarray(hmm.smoothing.log_evidence([0.5, 0.5], matrix, logs)).round(2))
      [-9.33]
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

    The arguments are the same as for `forward`. An impossible observation splits the trace: the rounds before the
    observation are smoothed as if the trace ended there, and the expected transition into its round is the outer
    product of the beliefs before and after.

    Args:
      initial_probs: belief about the state of round 0, [K] or [K, N].
      transition_matrix: row-stochastic matrix, [K, K] or [K, K, N].
      log_likelihood: log p(observation | state), nats, [T, K, N] for T rounds, K states and N prompts.
      trained_matrix: matrix of transitions out of rounds with `is_trained`, or None.
      is_trained: whether the prompt was trained on in the round, bool [T, N], or None.

    Raises:
      ValueError: if the shapes do not match.

    Example:
      >>> import jax.numpy as jnp
      >>> from dps_jax import hmm
      >>> successes, counts = jnp.array([[0], [0], [8]]), jnp.array([[8], [0], [8]])  # no visit in round 1
      >>> logs = hmm.smoothing.trace_log_likelihood(hmm.exact(3), successes, counts)
      >>> matrix = [[0.8, 0.2, 0.0], [0.0, 0.8, 0.2], [0.0, 0.0, 1.0]]
      >>> trace = hmm.smoothing.smooth([1.0, 0.0, 0.0], matrix, logs)
      >>> print(trace.smoothed_probs[1, :, 0])  # certainly partially solved in round 1
      [0. 1. 0.]
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
    """Returns the log likelihood of the outcomes of a trace in each state, nats, [T, K, N] for T rounds and K states.

    Args:
      emission: observation model.
      successes: number of correct completions in each round, int [T, N].
      counts: number of completions in each round, int [T, N]; 0 in rounds without a visit.
      dtype: dtype of the result; None stands for float32, or for float64 if `jax_enable_x64` is set.

    Example:
      >>> import numpy as np
      >>> from dps_jax import hmm
      >>> successes, counts = np.array([[0, 3], [8, 0]]), np.array([[8, 8], [8, 0]])
      >>> hmm.smoothing.trace_log_likelihood(hmm.exact(3), successes, counts).shape
      (2, 3, 2)
    """
    successes, counts = jnp.asarray(successes), jnp.asarray(counts)
    dtype = jnp.result_type(float) if dtype is None else dtype
    return jnp.moveaxis(emissions.log_likelihood(emission, successes, counts, dtype), 0, 1)


def _as_arrays(
    initial_probs: Any, transition_matrix: Any, log_likelihood: Any, trained_matrix: Any, is_trained: Any
) -> tuple[jax.Array, tuple[jax.Array, ...], jax.Array, jax.Array | None]:
    """Returns initial_probs, matrices, logs and is_trained as arrays of the dtype of logs, with checked shapes.

    There is one matrix for all transitions, or one for idle rounds and one for trained rounds.
    """
    logs = jnp.asarray(log_likelihood)
    if logs.ndim != 3 or 0 in logs.shape[:2] or not jnp.issubdtype(logs.dtype, jnp.floating):
        raise ValueError(f"log_likelihood: expected floats of shape [T, K, N], got {logs.dtype} {list(logs.shape)}")
    num_rounds, num_states, num_prompts = logs.shape
    if (trained_matrix is None) != (is_trained is None):
        missing = "trained_matrix" if trained_matrix is None else "is_trained"
        given = "is_trained" if trained_matrix is None else "trained_matrix"
        raise ValueError(f"{missing}: expected an array, since {given} is given, got None")

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
    """Returns belief @ A, [K, N], with the matrix of the transition out of the round."""
    moved = [sum_of(belief[i : i + 1] * matrix[i] for i in range(len(belief))) for matrix in matrices]
    return moved[0] if is_trained is None else jnp.where(is_trained > 0, moved[1], moved[0])


def _pull(matrices: tuple[jax.Array, ...], weights: jax.Array, is_trained: jax.Array | None) -> jax.Array:
    """Returns A @ weights, [K, N], with the matrix of the transition out of the round."""
    pulled = [sum_of(matrix[:, j] * weights[j : j + 1] for j in range(len(weights))) for matrix in matrices]
    return pulled[0] if is_trained is None else jnp.where(is_trained > 0, pulled[1], pulled[0])


def _likelihood(logs: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns exp(logs - shift), limited to the largest float, because a log likelihood may be far above `shift`."""
    largest_log = float(np.log(float(jnp.finfo(logs.dtype).max))) - 1
    return jnp.exp(jnp.minimum(logs - shift, largest_log))


def _condition(
    predicted: jax.Array, logs: jax.Array, logs_of_states: Sequence[jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Conditions the belief of one round on the log likelihood of the observation.

    Args:
      predicted: predicted belief, [K, N].
      logs: log likelihood, [K, N].
      logs_of_states: the rows of `logs`, K arrays [N].

    Returns:
      The filtered belief, [K, N]; the log evidence, [N], inf if the observation is impossible; is_possible, bool [N].
    """
    tiny = jnp.finfo(logs.dtype).tiny
    pairs = zip(predicted, logs_of_states, strict=True)
    best = functools.reduce(jnp.maximum, [jnp.where(q >= tiny, log, -jnp.inf) for q, log in pairs])
    best = jnp.where(best > -jnp.inf, best, functools.reduce(jnp.maximum, logs_of_states))
    # The results do not depend on this factor, so its derivative is omitted.
    shift = lax.stop_gradient(jnp.where(jnp.isfinite(best), best, 0))
    likelihood = _likelihood(logs, shift)
    joint = predicted * likelihood
    evidence, total = sum_of(joint), sum_of(likelihood)
    is_possible = evidence >= tiny
    # An impossible observation overrides the prediction if any state allows it; see docs/concepts/method.md,
    # "Impossible observations".
    inverse = 1 / jnp.where(is_possible, evidence, jnp.where(total > 0, total, 1))
    filtered = jnp.where(is_possible, joint, jnp.where(total > 0, likelihood, predicted)) * inverse
    log_evidence = jnp.where(is_possible, shift + jnp.log(jnp.where(is_possible, evidence, 1)), jnp.inf)
    return filtered, log_evidence, is_possible


class _Forward(NamedTuple):
    """The results of the forward pass; fields with an axis of rounds are empty unless `is_kept` is True."""

    log_evidence: jax.Array  # [N]
    num_impossible: jax.Array  # [N]
    predicted: Leaves  # K arrays [T, N]
    filtered: Leaves  # K arrays [T, N]
    log_gains: Any  # log evidence of each round, [T, N]; inf if the observation is impossible


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
        # Not the rows of `logs`: XLA for CPU does not vectorise a slice of a slice.
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
    """Returns the mask as 0 and 1: XLA for CPU does not vectorise loops that read booleans."""
    return None if is_trained is None else is_trained.astype(dtype)


def _backward_scan(
    matrices: tuple[jax.Array, ...],
    log_likelihood: jax.Array,
    is_trained: jax.Array | None,
    trace: _Forward,
    *,
    is_expectation: bool,
) -> tuple[Leaves, tuple[jax.Array, ...], jax.Array]:
    """Computes the backward pass.

    The weight `w_t[j] = p(rounds t .. T - 1 | state j in round t) / p(rounds t .. T - 1 | rounds 0 .. t - 1)` is the
    derivative of the log evidence with respect to the prediction of round t. The backward message is `A @ w_{t+1}`, and
    `filtered_t[i] * A[i, j] * w_{t+1}[j]` is the posterior of the pair of states i in round t and j in round t + 1.

    Returns:
      The smoothed beliefs, K arrays [T, N]; for each matrix, a sum over rounds, [K, K, N]; and w_0, [K, N]. If
      `is_expectation`, the sum is of the posteriors of pairs; otherwise, of derivatives with respect to the matrix.
    """
    _, num_states, num_prompts = log_likelihood.shape
    dtype, wide = log_likelihood.dtype, _wide(matrices)
    # Only weights of states with tiny beliefs come near these limits; the second limit leaves room for sums.
    largest = float(jnp.finfo(dtype).max) / 256
    largest_summed = float(jnp.finfo(dtype).max) ** 0.75

    def step(carry, inputs):
        # The message is 0 for all states at the end of the trace and before an impossible round.
        weights, message, smoothed_next, sums = carry
        filtered, log_gain, logs, is_trained, was_trained = inputs
        total = sum_of(f * m for f, m in zip(filtered, message, strict=True))
        # The total is 1 up to rounding errors, which must not accumulate over many rounds. The division comes last: XLA
        # for CPU stores its result, and recomputes cheaper operations wherever they are used.
        inverse = (total > 0).astype(dtype) / jnp.where(total > 0, total, 1)
        gain = jnp.minimum(weights * inverse, largest_summed)
        # Across an impossible round, the posterior of a pair is the product of the beliefs before and after.
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
    # Parameters that all prompts share have no prompt axis.
    return *jax.tree.map(lambda x, y: x if x.ndim == y.ndim else x.sum(axis=-1), scaled, arguments), None


_log_evidence.defvjp(_log_evidence_fwd, _log_evidence_bwd)
