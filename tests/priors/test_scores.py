import math

import numpy as np
import pytest
from scipy import stats

from dps_jax import priors
from dps_jax.hmm import emissions
from dps_jax.hmm._transitions import TransitionPrior, resolve_prior
from dps_jax.priors import scores
from tests.priors.test_strength import oracle_of, prior_of, random_trace

RATES = np.array([0.1, 0.5, 0.85])


def rows_of(outcomes):
    """Returns (round, position, successes, count) of every visit, in order."""
    codes = np.asarray(outcomes.codes)
    kinds = np.stack([outcomes.successes, outcomes.counts], axis=1).tolist()
    return [(t, n, *kinds[codes[t, n]]) for t, n in zip(*np.nonzero(codes), strict=True)]


def class_distribution(emission, state, count):
    """Returns p(m = 0), p(0 < m < G), p(m = G) in a state."""
    if emission.kind == "exact":
        return np.eye(3)[{0: 0, emission.num_states - 1: 2}.get(state, 1)]
    if emission.precision is None:
        pmf = stats.binom.pmf(np.arange(count + 1), count, RATES[state])
    else:
        a, b = RATES[state] * emission.precision, (1 - RATES[state]) * emission.precision
        pmf = stats.betabinom.pmf(np.arange(count + 1), count, a, b)
    return np.array([pmf[0], pmf[1:-1].sum(), pmf[-1]])


def mixed_counts(trace):
    """Returns a trace whose groups are of 2 and of 8."""
    is_small = np.arange(trace.counts.size) % 3 == 0
    counts = np.where(is_small, 2, trace.counts).astype(np.int32)
    return trace._replace(counts=counts, successes=np.minimum(trace.successes, counts))


@pytest.mark.parametrize(
    "emission",
    [emissions.exact(3), emissions.binomial(RATES.tolist()), emissions.binomial(RATES.tolist(), 12.0)],
    ids=["exact", "binomial", "beta-binomial"],
)
def test_class_probabilities_are_those_of_the_reference(emission):
    trace = mixed_counts(random_trace())
    outcomes = priors.prepare(trace)
    prior = prior_of(emission, is_split=True)
    probs, seen, positions = scores.class_probs(prior, outcomes)
    _, beliefs = oracle_of(prior, outcomes, trace)
    rows = rows_of(outcomes)
    assert probs.shape == (len(rows), 3)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-12)
    for row, (t, n, successes, count) in enumerate(rows):
        expected = sum(beliefs[t, state, n] * class_distribution(emission, state, count) for state in range(3))
        np.testing.assert_allclose(probs[row], expected, atol=2e-5)
        assert seen[row] == (0 if successes == 0 else 2 if successes == count else 1)
        assert positions[row] == n


@pytest.mark.parametrize("num_states", [5, 7])
def test_inner_states_are_one_class(num_states):
    rng = np.random.default_rng(0)
    prior = TransitionPrior(rng.dirichlet(np.ones(num_states)), rng.gamma(1.0, size=(num_states, num_states)) + 0.1)
    outcomes = priors.prepare(random_trace())
    probs, _, positions = scores.class_probs(prior, outcomes)
    beliefs = np.asarray(priors.predicted_probs(prior, outcomes))
    for row, (t, n, _, _) in enumerate(rows_of(outcomes)):
        expected = beliefs[t, 0, n], beliefs[t, 1:-1, n].sum(), beliefs[t, -1, n]
        np.testing.assert_allclose(probs[row], expected, atol=1e-5)
        assert positions[row] == n


def test_two_exact_states_do_not_tell_classes_apart():
    with pytest.raises(ValueError, match=r"prior: expected at least three states, got 2"):
        scores.class_probs(resolve_prior("uniform", num_states=2), priors.prepare(random_trace()))
    binomial = TransitionPrior([0.4, 0.6], np.ones((2, 2)), emission=emissions.binomial([0.2, 0.7]))
    probs, _, _ = scores.class_probs(binomial, priors.prepare(random_trace()))
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-12)


def test_losses_are_summed_by_prompt():
    outcomes, prior = priors.prepare(random_trace()), prior_of(emissions.exact(3))
    losses = scores.log_losses(prior, outcomes)
    expected = np.zeros((2, outcomes.num_prompts))
    logs = np.asarray(priors.log_predictive_probs(prior, outcomes), np.float64)
    for t, n, _, _ in rows_of(outcomes):
        # Three exact states are the classes.
        expected[:, n] += (-logs[t, n], 1)
    np.testing.assert_allclose(losses, expected, atol=1e-4)


def test_one_surprise_counts_no_more_than_its_limit():
    # Whoever is solved stays solved for sure; here none does.
    prior = TransitionPrior([0, 0, 1], np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1.0]]), decay=0.0)
    trace = random_trace()
    never = trace._replace(successes=np.zeros_like(trace.successes))
    first = priors.prepare(never, last_rounds=1)
    losses = scores.log_losses(prior, first)
    np.testing.assert_allclose(losses[0], -math.log(1e-4), rtol=1e-9)


def test_differences_have_an_interval():
    rng = np.random.default_rng(0)
    visits = rng.integers(1, 9, 50).astype(float)
    one = np.stack([visits * rng.gamma(2.0, 0.3, 50), visits])
    assert scores.difference(one, one, np.random.default_rng(1)) == (0, 0, 0)
    shifted = np.stack([one[0] + 0.25 * visits, visits])
    np.testing.assert_allclose(scores.difference(one, shifted, np.random.default_rng(1)), [0.25] * 3, atol=1e-12)
    np.testing.assert_allclose(scores.difference(shifted, one, np.random.default_rng(1)), [-0.25] * 3, atol=1e-12)
    noise = rng.normal(0, 1, 50)
    mean, low, high = scores.difference(one, np.stack([one[0] + noise, visits]), np.random.default_rng(1), 4000)
    assert low < mean < high
    assert mean == pytest.approx(noise.sum() / visits.sum())
    # Resampled prompts: a ratio of sums, with the error of its numerator given its mean.
    error = np.sqrt(np.sum((noise - mean * visits) ** 2)) / visits.sum()
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
