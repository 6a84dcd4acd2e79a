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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax import _checks
from dps_jax.hmm import emissions

# One entry per state: arrays [N], or scalars that all prompts share.
Leaves = tuple[jax.Array, ...]


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
    log_evidence, num_impossible, predicted, filtered = _forward_scan(*arguments, is_kept=True)
    return FilteredTrace(
        filtered_probs=jnp.stack(filtered, axis=1),
        predicted_probs=jnp.stack(predicted, axis=1),
        log_evidence=log_evidence,
        num_impossible=num_impossible,
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
    kinds = {"trained_matrix": trained_matrix, "is_trained": is_trained}
    arguments = _as_arrays(initial_probs, transition_matrix, log_likelihood, **kinds)
    trace = forward(initial_probs, transition_matrix, log_likelihood, **kinds)
    predicted = tuple(jnp.moveaxis(trace.predicted_probs, 1, 0))
    smoothed, counts, _ = _backward_scan(*arguments[1:], predicted, is_expectation=True)
    idle, *trained = (_stack_rows(kind) for kind in counts)
    return SmoothedTrace(
        smoothed_probs=jnp.stack(smoothed, axis=1),
        transition_counts=idle,
        trained_counts=trained[0] if trained else None,
        forward=trace,
    )


def dense_outcomes(
    rounds: Any,
    prompt_ids: Any,
    successes: Any,
    counts: Any,
    *,
    num_rounds: int | None = None,
    num_prompts: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns successes and counts of every prompt in every round, int32 [T, N] each; count 0 where nothing was seen.

    Args:
      rounds: column `round` of a trace, int [R], >= 0.
      prompt_ids: column `prompt_id`, int [R], >= 0; a prompt at most once per round.
      successes: column `successes`, int [R], in [0, count].
      counts: column `count`, int [R] or one int, >= 1.
      num_rounds: T; the last round plus one by default.
      num_prompts: N; the largest id plus one by default.

    Raises:
      ValueError: for columns of different lengths, an entry out of range, or a prompt twice in a round.
    """
    rounds = _checks.check_integer_array("rounds", rounds)
    prompt_ids = _checks.check_integer_array("prompt_ids", prompt_ids)
    if prompt_ids.size != rounds.size:
        raise ValueError(f"prompt_ids: expected {rounds.size} values, one per entry of rounds, got {prompt_ids.size}")
    successes, counts = _checks.check_outcomes(successes, counts, rounds.size)
    shape = []
    for name, column, size_name, size in (
        ("rounds", rounds, "num_rounds", num_rounds),
        ("prompt_ids", prompt_ids, "num_prompts", num_prompts),
    ):
        is_given = size is not None
        shape.append(_checks.check_int(size_name, size, at_least=1) if is_given else int(column.max(initial=-1)) + 1)
        _checks.check_ids(name, column, shape[-1])
    cells, num_rows = np.unique(rounds * shape[1] + prompt_ids, return_counts=True)
    if cells.size != rounds.size:
        round_index, prompt_id = divmod(int(cells[np.argmax(num_rows)]), shape[1])
        raise ValueError(
            f"prompt_ids: expected a prompt at most once per round, got {prompt_id} more than once in round "
            f"{round_index}; add up its successes and counts first"
        )
    dense = np.zeros((2, *shape), np.int32)
    dense[:, rounds, prompt_ids] = successes, counts
    return dense[0], dense[1]


def trace_log_likelihood(emission: emissions.Emission, successes: Any, counts: Any, dtype: Any = None) -> jax.Array:
    """Returns what `forward` takes, nats, [T, K, N], from the int [T, N] arrays of `dense_outcomes`."""
    successes, counts = jnp.asarray(successes), jnp.asarray(counts)
    return jnp.moveaxis(emissions.log_likelihood(emission, successes, counts, dtype or jnp.float32), 0, 1)


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


def _rows(matrix: jax.Array) -> tuple[Leaves, ...]:
    return tuple(tuple(row) for row in matrix)


def _stack_rows(rows: tuple[Leaves, ...]) -> jax.Array:
    return jnp.stack([jnp.stack(row) for row in rows])


def _out_of_round(matrices: tuple[jax.Array, ...], is_trained: jax.Array | None) -> tuple[Leaves, ...]:
    """Returns the rows of the matrix that governs the move out of one round."""
    if is_trained is None:
        return _rows(matrices[0])
    idle, trained = map(_rows, matrices)
    pairs = [zip(*rows, strict=True) for rows in zip(idle, trained, strict=True)]
    return tuple(tuple(jnp.where(is_trained, after, left) for left, after in row) for row in pairs)


def _condition(predicted: Leaves, logs: Leaves) -> tuple[Leaves, Leaves, jax.Array, jax.Array, jax.Array]:
    """Conditions one round's belief on the log likelihood of what was seen.

    Returns:
      filtered belief, K arrays [N]; likelihood up to a factor, K arrays [N]; evidence times that factor, [N] (1 where
      impossible); log evidence without the factor, [N]; is_possible, bool [N].
    """
    limits = jnp.finfo(logs[0].dtype)
    pairs = list(zip(predicted, logs, strict=True))
    best = functools.reduce(jnp.maximum, [jnp.where(q >= limits.tiny, log, -jnp.inf) for q, log in pairs])
    best = jnp.where(jnp.isfinite(best), best, functools.reduce(jnp.maximum, logs))
    # No result depends on this factor, so its derivative is left out.
    shift = lax.stop_gradient(jnp.where(jnp.isfinite(best), best, 0))
    # A state that the model excludes may explain the outcome far better than the others: it must not overflow.
    largest_log = float(np.log(float(limits.max))) - 1
    likelihood = tuple(jnp.exp(jnp.minimum(log - shift, largest_log)) for log in logs)
    joint = [q * factor for q, factor in zip(predicted, likelihood, strict=True)]
    evidence, total = functools.reduce(jnp.add, joint), functools.reduce(jnp.add, likelihood)
    is_possible = evidence >= limits.tiny
    evidence = jnp.where(is_possible, evidence, 1)
    # Impossible data: what was seen stands (METHOD section 1, step 2), if any state allows it.
    stands = [jnp.where(total > 0, factor, q) for q, factor in zip(predicted, likelihood, strict=True)]
    inverse = 1 / jnp.where(is_possible, evidence, jnp.where(total > 0, total, 1))
    filtered = tuple(jnp.where(is_possible, *pair) * inverse for pair in zip(joint, stands, strict=True))
    log_evidence = jnp.where(is_possible, shift + jnp.log(evidence), -jnp.inf)
    return filtered, likelihood, evidence, log_evidence, is_possible


def _forward_scan(
    initial_probs: jax.Array,
    matrices: tuple[jax.Array, ...],
    log_likelihood: jax.Array,
    is_trained: jax.Array | None,
    *,
    is_kept: bool,
) -> tuple[jax.Array, jax.Array, Leaves, Leaves]:
    """Returns log evidence [N], impossible rounds [N] and, if kept, predicted and filtered beliefs, K arrays [T, N]."""
    _, num_states, num_prompts = log_likelihood.shape
    states = range(num_states)

    def step(carry, inputs):
        logs, is_trained = inputs
        predicted, log_evidence, num_impossible = carry
        matrix = _out_of_round(matrices, is_trained)
        filtered, _, _, log_gain, is_possible = _condition(predicted, tuple(logs))
        moved = tuple(sum(filtered[i] * matrix[i][j] for i in states) for j in states)
        carry = (moved, log_evidence + log_gain, num_impossible + (~is_possible).astype(jnp.int32))
        return carry, (predicted, filtered) if is_kept else ((), ())

    start = tuple(jnp.broadcast_to(entry, (num_prompts,)) for entry in initial_probs)
    carry = (start, jnp.zeros(num_prompts, log_likelihood.dtype), jnp.zeros(num_prompts, jnp.int32))
    (_, log_evidence, num_impossible), (predicted, filtered) = lax.scan(step, carry, (log_likelihood, is_trained))
    return log_evidence, num_impossible, predicted, filtered


def _backward_scan(
    matrices: tuple[jax.Array, ...],
    log_likelihood: jax.Array,
    is_trained: jax.Array | None,
    predicted: Leaves,
    *,
    is_expectation: bool,
) -> tuple[Leaves, tuple[tuple[Leaves, ...], ...], Leaves]:
    """Goes back through the rounds.

    Let `w_t[j] = p(rounds t .. T - 1 | state j in round t) / p(rounds t .. T - 1 | rounds 0 .. t - 1)`: the derivative
    of the log evidence with respect to the prediction of round t. Then `A @ w_{t+1}` is the backward message, and
    `filtered_t[i] * A[i, j] * w_{t+1}[j]` the posterior of a pair of states.

    Returns:
      smoothed beliefs, K arrays [T, N]; sums over rounds of the posterior of pairs if `is_expectation`, else of the
      derivative with respect to each of the matrices, K x K arrays [N]; and w_0, K arrays [N].
    """
    _, num_states, num_prompts = log_likelihood.shape
    dtype = log_likelihood.dtype
    states = range(num_states)
    # Only the weights of states with next to no belief come near these; the second leaves room for sums.
    largest = float(jnp.finfo(dtype).max) / 256
    largest_summed = float(jnp.finfo(dtype).max) ** 0.75

    def step(carry, inputs):
        # `restart` is 1 where nothing comes back: at the end, and in the round before an impossible one.
        weights, smoothed_next, restart, sums = carry
        predicted, logs, is_trained = inputs
        filtered, likelihood, evidence, _, is_possible = _condition(predicted, tuple(logs))
        matrix = _out_of_round(matrices, is_trained)
        if is_expectation:
            gain = lambda i, j: matrix[i][j] * weights[j] + restart * smoothed_next[j]
        else:
            gain = lambda i, j: jnp.minimum(weights[j], largest_summed)
        is_used = (None,) if is_trained is None else (~is_trained, is_trained)
        sums = tuple(
            tuple(tuple(_add(kind[i][j], filtered[i] * gain(i, j), is_mine) for j in states) for i in states)
            for kind, is_mine in zip(sums, is_used, strict=True)
        )
        message = [restart + sum(matrix[i][j] * weights[j] for j in states) for i in states]
        smoothed = [filtered[i] * message[i] for i in states]
        # The sum is 1 but for rounding, which must not add up over many rounds.
        total = sum(smoothed)
        message, smoothed = [entry / total for entry in message], tuple(entry / total for entry in smoothed)
        ratio = [jnp.minimum(factor / evidence, largest) for factor in likelihood]
        weights = tuple(jnp.where(is_possible, jnp.minimum(ratio[j] * message[j], largest), 0) for j in states)
        return (weights, smoothed, (~is_possible).astype(dtype), sums), smoothed

    zeros = (jnp.zeros(num_prompts, dtype),) * num_states
    carry = (zeros, zeros, jnp.ones(num_prompts, dtype), ((zeros,) * num_states,) * len(matrices))
    inputs = (predicted, log_likelihood, is_trained)
    (weights, _, _, sums), smoothed = lax.scan(step, carry, inputs, reverse=True)
    return smoothed, sums, tuple(jnp.minimum(weight, largest_summed) for weight in weights)


def _add(total: jax.Array, extra: jax.Array, is_counted: jax.Array | None) -> jax.Array:
    return total + (extra if is_counted is None else jnp.where(is_counted, extra, 0))


@jax.custom_vjp
def _log_evidence(
    initial_probs: jax.Array,
    matrices: tuple[jax.Array, ...],
    log_likelihood: jax.Array,
    is_trained: jax.Array | None,
) -> jax.Array:
    return _forward_scan(initial_probs, matrices, log_likelihood, is_trained, is_kept=False)[0]


def _log_evidence_fwd(initial_probs, matrices, log_likelihood, is_trained):
    arguments = (initial_probs, matrices, log_likelihood)
    log_evidence, num_impossible, predicted, _ = _forward_scan(*arguments, is_trained, is_kept=True)
    return log_evidence, (arguments, is_trained, predicted, num_impossible)


def _log_evidence_bwd(residuals, cotangent):
    arguments, is_trained, predicted, num_impossible = residuals
    _, matrices, log_likelihood = arguments
    smoothed, sums, weights = _backward_scan(matrices, log_likelihood, is_trained, predicted, is_expectation=False)
    cotangent = jnp.where(num_impossible == 0, cotangent, 0)
    grads = (jnp.stack(weights), tuple(_stack_rows(kind) for kind in sums), jnp.stack(smoothed, axis=1))
    scaled = jax.tree.map(lambda grad: grad * jnp.expand_dims(cotangent, range(grad.ndim - 1)), grads)
    # What all prompts share has no prompt axis.
    return *jax.tree.map(lambda x, y: x if x.ndim == y.ndim else x.sum(axis=-1), scaled, arguments), None


_log_evidence.defvjp(_log_evidence_fwd, _log_evidence_bwd)
