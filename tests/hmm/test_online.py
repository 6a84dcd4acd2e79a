import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax.hmm import emissions, filtering, online, smoothing
from dps_jax.hmm._transitions import TransitionPrior
from tests.reference import loop_filter

IDLE = np.array([[0.3, 1.2, 0.1], [2.0, 0.4, 0.7], [0.05, 0.9, 3.0]])
TRAINED = np.array([[0.6, 2.0, 0.2], [0.1, 0.5, 1.4], [0.3, 0.1, 1.0]])
INITIAL = np.array([0.5, 0.2, 0.3])
RATES = (0.1, 0.45, 0.9)
LIKELIHOODS = {
    "exact": (emissions.exact(3), functools.partial(loop_filter.exact_likelihood, 3)),
    "binomial": (emissions.binomial(RATES), functools.partial(loop_filter.binomial_likelihood, RATES)),
}


def random_outcomes(seed, num_rounds, num_prompts):
    """Returns successes and counts, int [T, N]; some rounds missing, G different from visit to visit."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 9, (num_rounds, num_prompts)) * (rng.random((num_rounds, num_prompts)) < 0.6)
    ends = rng.integers(0, 2, counts.shape) * counts
    return np.where(rng.random(counts.shape) < 0.6, ends, rng.integers(0, counts + 1)), counts


def loop_log_predictive(likelihood, decay, trained, successes, counts):
    """Returns [T, N] by the float64 loop over prompts, and its predictions [T, K, N]."""
    num_rounds, num_prompts = counts.shape
    oracle = loop_filter.LoopFilter(num_prompts, INITIAL, IDLE, decay, likelihood, trained)
    logs, predictions = np.zeros((num_rounds, num_prompts)), []
    for t in range(num_rounds):
        predicted = oracle.predicted_probs()
        predictions.append(predicted)
        outcomes = {n: (int(successes[t, n]), int(counts[t, n])) for n in range(num_prompts) if counts[t, n]}
        for n, outcome in outcomes.items():
            logs[t, n] = np.log(predicted[:, n] @ np.array(likelihood(*outcome)))
        oracle.observe(outcomes)
    return logs, np.stack(predictions)


@pytest.mark.parametrize("trained", [None, TRAINED], ids=["one matrix", "two"])
@pytest.mark.parametrize("decay", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_predictions_match_the_float64_loop(name, decay, trained):
    emission, likelihood = LIKELIHOODS[name]
    successes, counts = random_outcomes(1, 30, 5)
    logs = smoothing.trace_log_likelihood(emission, successes, counts)
    given = (INITIAL, IDLE, decay, logs, jnp.asarray(counts > 0), trained)
    expected, predictions = loop_log_predictive(likelihood, decay, trained, successes, counts)
    np.testing.assert_allclose(jax.jit(online.log_predictive_probs)(*given), expected, atol=2e-5)
    np.testing.assert_allclose(jax.jit(online.predicted_probs)(*given), predictions, atol=1e-5)


def test_predictions_are_those_of_the_filter_in_training():
    emission = emissions.exact(3)
    prior = TransitionPrior(INITIAL, IDLE, 0.7, emission, TRAINED)
    successes, counts = random_outcomes(2, 12, 6)
    logs = smoothing.trace_log_likelihood(emission, successes, counts)
    predicted = online.predicted_probs(INITIAL, IDLE, 0.7, logs, jnp.asarray(counts > 0), TRAINED)
    state = filtering.init(6, prior)
    for t in range(12):
        np.testing.assert_allclose(filtering.predicted_probs(state), predicted[t], atol=1e-6)
        state = filtering.observe(state, emission, jnp.arange(6), jnp.asarray(successes[t]), jnp.asarray(counts[t]))


def test_prompts_may_have_priors_of_their_own():
    emission = emissions.exact(3)
    successes, counts = random_outcomes(3, 10, 2)
    logs = smoothing.trace_log_likelihood(emission, successes, counts)
    is_seen = jnp.asarray(counts > 0)
    together = online.log_predictive_probs(
        np.stack([INITIAL, INITIAL[::-1]], axis=-1), np.stack([IDLE, TRAINED], axis=-1), 0.8, logs, is_seen
    )
    for n, (initial, prior) in enumerate([(INITIAL, IDLE), (INITIAL[::-1], TRAINED)]):
        alone = online.log_predictive_probs(initial, prior, 0.8, logs[..., n : n + 1], is_seen[:, n : n + 1])
        np.testing.assert_allclose(together[:, n : n + 1], alone, atol=1e-6)


@pytest.mark.parametrize("trained", [None, TRAINED], ids=["one matrix", "two"])
def test_gradient_matches_differences_of_the_float64_loop(trained):
    emission, likelihood = LIKELIHOODS["binomial"]
    successes, counts = random_outcomes(4, 8, 3)
    logs = smoothing.trace_log_likelihood(emission, successes, counts)

    def total(initial, idle, decay, trained):
        return online.log_predictive_probs(initial, idle, decay, logs, jnp.asarray(counts > 0), trained).sum()

    places = (0, 1, 2) if trained is None else (0, 1, 2, 3)
    grads = jax.jit(jax.grad(total, argnums=places))(INITIAL, IDLE, 0.6, trained)

    def loop_total(initial, idle, decay, after):
        oracle = loop_filter.LoopFilter(3, initial, idle, decay, likelihood, after)
        value = 0.0
        for t in range(8):
            predicted = oracle.predicted_probs()
            outcomes = {n: (int(successes[t, n]), int(counts[t, n])) for n in range(3) if counts[t, n]}
            value += sum(np.log(predicted[:, n] @ np.array(likelihood(*seen))) for n, seen in outcomes.items())
            oracle.observe(outcomes)
        return value

    step = 1e-5
    base = [INITIAL, IDLE, np.array(0.6), trained]
    for place, grad in zip(places, grads, strict=True):
        for index in np.ndindex(base[place].shape):
            values = []
            for sign in (1, -1):
                moved = [None if array is None else array.copy() for array in base]
                moved[place][index] += sign * step
                values.append(loop_total(*moved))
            expected = (values[0] - values[1]) / (2 * step)
            np.testing.assert_allclose(np.asarray(grad)[index], expected, rtol=2e-3, atol=2e-3)


def test_impossible_outcomes_have_a_finite_loss_and_no_nan():
    local = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    logs = smoothing.trace_log_likelihood(emissions.exact(3), np.array([[8], [0]]), np.array([[8], [8]]))
    is_seen = jnp.ones((2, 1), bool)
    with jax.debug_nans(True):
        total = lambda prior: online.log_predictive_probs(np.array([1.0, 0.0, 0.0]), prior, 0.5, logs, is_seen).sum()
        value, grad = jax.value_and_grad(total)(jnp.asarray(local))
    np.testing.assert_allclose(value, 2 * np.log(1e-25), rtol=1e-5)
    assert np.all(np.isfinite(grad))
