import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax.hmm import emissions, smoothing
from tests.reference import loop_filter

NUM_ROUNDS = 4


def random_model(seed, num_states):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(num_states)), rng.dirichlet(np.full(num_states, 0.7), num_states)


def random_logs(seed, num_rounds, num_states, num_prompts):
    """Some rounds missing, G different from visit to visit."""
    rng = np.random.default_rng(seed)
    emission = emissions.binomial(np.linspace(0.05, 0.9, num_states))
    counts = rng.integers(0, 9, (num_rounds, num_prompts)) * (rng.random((num_rounds, num_prompts)) < 0.7)
    successes = rng.integers(0, counts + 1)
    return np.asarray(smoothing.trace_log_likelihood(emission, successes, counts), np.float64)


def enumerate_paths(initial_probs, matrix, logs):
    """Returns smoothed [T, K], filtered [T, K], pair counts [K, K], log evidence of one prompt, over all K^T paths."""
    num_rounds, num_states = logs.shape
    smoothed, filtered = np.zeros((num_rounds, num_states)), np.zeros((num_rounds, num_states))
    pairs, evidence = np.zeros((num_states, num_states)), 0.0
    for path in itertools.product(range(num_states), repeat=num_rounds):
        prob = initial_probs[path[0]]
        for t, state in enumerate(path):
            prob *= matrix[path[t - 1], state] if t else 1.0
            prob *= np.exp(logs[t, state])
            # Over all continuations the prefix counts once per suffix: weigh those uniformly.
            filtered[t, state] += prob / num_states ** (num_rounds - 1 - t)
        evidence += prob
        for t, state in enumerate(path):
            smoothed[t, state] += prob
            if t:
                pairs[path[t - 1], state] += prob
    return smoothed / evidence, filtered / filtered.sum(axis=1, keepdims=True), pairs / evidence, np.log(evidence)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("num_states", [2, 3, 5, 7])
def test_smoother_matches_path_enumeration(num_states, transform):
    initial_probs, matrix = random_model(num_states, num_states)
    logs = random_logs(1, NUM_ROUNDS, num_states, 3)
    arguments = [jnp.asarray(array, jnp.float32) for array in (initial_probs, matrix, logs)]
    trace = transform(smoothing.smooth)(*arguments)
    forward = transform(smoothing.forward)(*arguments)
    for n in range(3):
        smoothed, filtered, pairs, evidence = enumerate_paths(initial_probs, matrix, logs[:, :, n])
        np.testing.assert_allclose(trace.smoothed_probs[:, :, n], smoothed, atol=1e-5)
        np.testing.assert_allclose(trace.transition_counts[:, :, n], pairs, atol=1e-5)
        np.testing.assert_allclose(forward.filtered_probs[:, :, n], filtered, atol=1e-5)
        np.testing.assert_allclose(forward.log_evidence[n], evidence, rtol=1e-5)
    np.testing.assert_allclose(smoothing.log_evidence(*arguments), forward.log_evidence, rtol=1e-5)


@pytest.mark.parametrize("num_states", [3, 5])
def test_exact_emission_pins_the_states_that_were_seen(num_states):
    initial_probs, matrix = random_model(9, num_states)
    successes = np.array([[0], [0], [8], [3]])
    counts = np.array([[8], [0], [8], [8]])
    logs = smoothing.trace_log_likelihood(emissions.exact(num_states), successes, counts)
    outcomes = zip(successes[:, 0].tolist(), counts[:, 0].tolist(), strict=True)
    likelihood = [loop_filter.exact_likelihood(num_states, m, g) for m, g in outcomes]
    likelihood[1] = [1.0] * num_states
    with np.errstate(divide="ignore"):
        smoothed, _, pairs, evidence = enumerate_paths(initial_probs, matrix, np.log(np.array(likelihood)))
    trace = smoothing.smooth(initial_probs, matrix, logs)
    np.testing.assert_allclose(trace.smoothed_probs[:, :, 0], smoothed, atol=1e-6)
    np.testing.assert_allclose(trace.transition_counts[:, :, 0], pairs, atol=1e-6)
    np.testing.assert_allclose(smoothing.log_evidence(initial_probs, matrix, logs)[0], evidence, rtol=1e-5)


def test_matrices_per_prompt_equal_one_prompt_at_a_time():
    models = [random_model(seed, 3) for seed in range(4)]
    initial_probs = np.stack([model[0] for model in models], axis=-1)
    matrix = np.stack([model[1] for model in models], axis=-1)
    logs = jnp.asarray(random_logs(2, 6, 3, 4), jnp.float32)
    together = smoothing.smooth(initial_probs, matrix, logs)
    for n in range(4):
        alone = smoothing.smooth(*models[n], logs[:, :, n : n + 1])
        np.testing.assert_allclose(together.smoothed_probs[..., n], alone.smoothed_probs[..., 0], atol=1e-6)
        np.testing.assert_allclose(together.transition_counts[..., n], alone.transition_counts[..., 0], atol=1e-5)


def test_invariants_of_a_long_trace():
    initial_probs, matrix = random_model(4, 3)
    logs = jnp.asarray(random_logs(5, 300, 3, 20), jnp.float32)
    trace, forward = smoothing.smooth(initial_probs, matrix, logs), smoothing.forward(initial_probs, matrix, logs)
    np.testing.assert_allclose(trace.smoothed_probs.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(trace.transition_counts.sum(axis=(0, 1)), 299, rtol=1e-5)
    np.testing.assert_allclose(trace.smoothed_probs[-1], forward.filtered_probs[-1], atol=1e-6)
    np.testing.assert_allclose(forward.predicted_probs[0], np.tile(initial_probs[:, None], 20), atol=1e-6)
    moved = np.einsum("tin,ij->tjn", forward.filtered_probs[:-1], matrix)
    np.testing.assert_allclose(forward.predicted_probs[1:], moved, atol=1e-5)


def test_gradient_matches_finite_differences():
    initial_probs, matrix = random_model(6, 3)
    logs = random_logs(7, 5, 3, 2)
    logs[2, 1, 0] = -np.inf
    with jax.enable_x64(True):
        arguments = [jnp.asarray(array, jnp.float64) for array in (initial_probs, matrix, logs)]
        total = jax.jit(lambda *arrays: smoothing.log_evidence(*arrays).sum())
        grads = jax.grad(total, argnums=(0, 1, 2))(*arguments)
        for position, (argument, grad) in enumerate(zip(arguments, grads, strict=True)):
            assert np.all(np.isfinite(grad))
            for index in np.ndindex(*argument.shape):
                if not np.isfinite(argument[index]):
                    assert grad[index] == 0
                    continue
                shifted = [[*arguments], [*arguments]]
                for sign, copy in zip((1, -1), shifted, strict=True):
                    copy[position] = argument.at[index].add(sign * 1e-6)
                difference = (total(*shifted[0]) - total(*shifted[1])) / 2e-6
                np.testing.assert_allclose(grad[index], difference, rtol=1e-5, atol=1e-7)


def test_impossible_observations_stand_and_are_counted():
    matrix = np.array([[0.5, 0.5, 0.0], [0.3, 0.4, 0.3], [0.0, 0.6, 0.4]])
    successes, counts = np.array([[0], [8], [0]]), np.full((3, 1), 8)
    logs = smoothing.trace_log_likelihood(emissions.exact(3), successes, counts)
    with jax.debug_nans(True):
        forward = smoothing.forward(np.full(3, 1 / 3), matrix, logs)
        trace = smoothing.smooth(np.full(3, 1 / 3), matrix, logs)
        grad = jax.grad(lambda matrix: smoothing.log_evidence(np.full(3, 1 / 3), matrix, logs).sum())(matrix)
    assert int(forward.num_impossible[0]) == 2
    assert float(forward.log_evidence[0]) == -np.inf
    np.testing.assert_array_equal(forward.filtered_probs[:, :, 0], [[1, 0, 0], [0, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(trace.smoothed_probs[:, :, 0], [[1, 0, 0], [0, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(grad, 0)


def test_one_round_of_one_prompt():
    logs = jnp.log(jnp.array([0.2, 0.7]))[None, :, None]
    trace = smoothing.smooth([0.5, 0.5], np.array([[0.9, 0.1], [0.2, 0.8]]), logs)
    np.testing.assert_allclose(trace.smoothed_probs[0, :, 0], [2 / 9, 7 / 9], rtol=1e-6)
    np.testing.assert_array_equal(trace.transition_counts, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: smoothing.forward([0.5, 0.5], np.eye(2), np.zeros((3, 2))),
            "log_likelihood: expected floats of shape",
        ),
        (lambda: smoothing.forward([1.0], np.eye(2), np.zeros((3, 2, 1))), "initial_probs: expected shape"),
        (lambda: smoothing.forward([0.5, 0.5], np.eye(3), np.zeros((3, 2, 1))), "transition_matrix: expected shape"),
    ],
)
def test_bad_traces_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def random_kinds(seed, num_rounds, num_states, num_prompts):
    """Returns two models, and which rounds are trained."""
    initial_probs, idle = random_model(seed, num_states)
    _, trained = random_model(seed + 1, num_states)
    is_trained = np.random.default_rng(seed).random((num_rounds, num_prompts)) < 0.5
    return initial_probs, idle, trained, is_trained


def enumerate_two_kinds(initial_probs, matrices, logs):
    """Returns the log evidence, and expected moves of each kind, [2, K, K]; matrices: (kind, [K, K]) of every move."""
    num_rounds, num_states = logs.shape
    pairs, evidence = np.zeros((2, num_states, num_states)), 0.0
    for path in itertools.product(range(num_states), repeat=num_rounds):
        prob = initial_probs[path[0]] * np.exp(sum(logs[t, state] for t, state in enumerate(path)))
        for (_, matrix), now, after in zip(matrices, path, path[1:], strict=False):
            prob *= matrix[now, after]
        evidence += prob
        for (kind, _), now, after in zip(matrices, path, path[1:], strict=False):
            pairs[kind, now, after] += prob
    return np.log(evidence), pairs / evidence


@pytest.mark.parametrize("num_states", [2, 3, 5])
def test_two_matrices_match_path_enumeration(num_states):
    initial_probs, idle, trained, is_trained = random_kinds(3, NUM_ROUNDS, num_states, 3)
    logs = random_logs(2, NUM_ROUNDS, num_states, 3)
    kinds = {"trained_matrix": trained, "is_trained": is_trained}
    trace = smoothing.smooth(initial_probs, idle, jnp.asarray(logs, jnp.float32), **kinds)
    for n in range(3):
        matrices = [(int(flag), trained if flag else idle) for flag in is_trained[:, n]]
        evidence, pairs = enumerate_two_kinds(initial_probs, matrices, logs[:, :, n])
        np.testing.assert_allclose(trace.forward.log_evidence[n], evidence, rtol=1e-5)
        np.testing.assert_allclose(trace.transition_counts[:, :, n], pairs[0], atol=1e-5)
        np.testing.assert_allclose(trace.trained_counts[:, :, n], pairs[1], atol=1e-5)


@pytest.mark.parametrize("is_of_prompts", [False, True], ids=["shared", "of prompts"])
def test_gradient_with_two_matrices_matches_differences(is_of_prompts):
    initial_probs, idle, trained, is_trained = random_kinds(5, NUM_ROUNDS, 3, 2)
    logs = random_logs(4, NUM_ROUNDS, 3, 2)
    if is_of_prompts:
        idle, trained = (np.stack([matrix, matrix**2], axis=-1) for matrix in (idle, trained))

    def total(idle, trained):
        kinds = {"trained_matrix": trained, "is_trained": is_trained}
        return smoothing.log_evidence(initial_probs, idle, jnp.asarray(logs, jnp.float32), **kinds).sum()

    def by_paths(idle, trained):
        value = 0.0
        for n in range(2):
            of = lambda matrix, n=n: matrix[..., n] if is_of_prompts else matrix
            matrices = [(int(flag), of(trained if flag else idle)) for flag in is_trained[:, n]]
            value += enumerate_two_kinds(initial_probs, matrices, logs[:, :, n])[0]
        return value

    grads = jax.jit(jax.grad(total, argnums=(0, 1)))(jnp.asarray(idle, jnp.float32), jnp.asarray(trained, jnp.float32))
    for place, grad in enumerate(grads):
        for index in np.ndindex(grad.shape):
            moved = [[idle.copy(), trained.copy()] for _ in range(2)]
            for sign, pair in zip((1, -1), moved, strict=True):
                pair[place][index] += sign * 1e-6
            expected = (by_paths(*moved[0]) - by_paths(*moved[1])) / 2e-6
            np.testing.assert_allclose(grad[index], expected, rtol=1e-3, atol=1e-3)


def test_equal_matrices_of_both_kinds_are_one_matrix():
    initial_probs, matrix, _, is_trained = random_kinds(7, NUM_ROUNDS, 3, 4)
    logs = jnp.asarray(random_logs(6, NUM_ROUNDS, 3, 4), jnp.float32)
    one = smoothing.smooth(initial_probs, matrix, logs)
    two = smoothing.smooth(initial_probs, matrix, logs, trained_matrix=matrix, is_trained=is_trained)
    np.testing.assert_allclose(two.smoothed_probs, one.smoothed_probs, atol=1e-6)
    np.testing.assert_allclose(two.transition_counts + two.trained_counts, one.transition_counts, atol=1e-5)
    assert one.trained_counts is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_trained": None}, "is_trained: expected an array, since trained_matrix is given"),
        ({"trained_matrix": None}, "trained_matrix: expected an array, since is_trained is given"),
        ({"is_trained": np.zeros((3, 4), bool)}, r"is_trained: expected bool of shape \[4, 4\]"),
        ({"is_trained": np.zeros((4, 4))}, r"is_trained: expected bool of shape \[4, 4\] .* got float32"),
        ({"trained_matrix": np.eye(2)}, r"trained_matrix: expected shape \[3, 3\]"),
    ],
)
def test_bad_kinds_of_moves_are_refused(changes, message):
    initial_probs, idle, trained, is_trained = random_kinds(7, NUM_ROUNDS, 3, 4)
    kinds = {"trained_matrix": trained, "is_trained": is_trained} | changes
    with pytest.raises(ValueError, match=message):
        smoothing.log_evidence(initial_probs, idle, jnp.zeros((NUM_ROUNDS, 3, 4)), **kinds)
