import json

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dps_jax.hmm import emissions
from tests.reference import loop_filter


@pytest.mark.parametrize("num_states", [2, 3, 5, 7])
def test_exact_emission_matches_loop(num_states, strict):
    pairs = [(m, g) for g in range(1, 13) for m in range(g + 1)]
    successes, counts = np.array(pairs, np.int32).T
    logs = emissions.log_likelihood(emissions.exact(num_states), successes, counts)
    expected = [loop_filter.exact_likelihood(num_states, m, g) for m, g in pairs]
    np.testing.assert_array_equal(np.exp(logs).T, expected)


@pytest.mark.parametrize("precision", [None, 6.0])
def test_binomial_emission_matches_scipy(precision, strict):
    rates = [0.02, 0.5, 0.9]
    emission = emissions.binomial(rates, precision)
    successes, counts = np.arange(9, dtype=np.int32), np.full(9, 8, np.int32)
    logs = np.asarray(emissions.log_likelihood(emission, successes, counts))
    for k, rate in enumerate(rates):
        distribution = stats.binom(8, rate) if precision is None else stats.betabinom(8, rate * 6, (1 - rate) * 6)
        np.testing.assert_allclose(
            np.diff(logs[k]), np.diff(distribution.logpmf(successes) - stats.binom(8, 0.5).logpmf(successes)), atol=1e-4
        )
    informative = emissions.informative_probs(emission, 8)
    distribution = [stats.binom(8, r) if precision is None else stats.betabinom(8, r * 6, (1 - r) * 6) for r in rates]
    np.testing.assert_allclose(informative, [1 - one.pmf(0) - one.pmf(8) for one in distribution], rtol=1e-9)


def test_nothing_seen_says_nothing():
    for emission in (emissions.exact(5), emissions.binomial([0.1, 0.2, 0.3, 0.4, 0.9])):
        logs = emissions.log_likelihood(emission, jnp.zeros(2, jnp.int32), jnp.array([0, 4], jnp.int32))
        np.testing.assert_array_equal(logs[:, 0], 0)


def test_values_of_states():
    np.testing.assert_array_equal(emissions.informative_probs(emissions.exact(2)), [0, 1])
    np.testing.assert_array_equal(emissions.informative_probs(emissions.exact(3)), [0, 1, 0])
    np.testing.assert_array_equal(emissions.informative_probs(emissions.exact(5)), [0, 1, 1, 1, 0])
    np.testing.assert_allclose(emissions.mean_success_rates(emissions.exact(5)), [0, 1 / 6, 1 / 2, 5 / 6, 1])
    np.testing.assert_allclose(emissions.mean_success_rates(emissions.binomial([0.2, 0.7])), [0.2, 0.7])


@pytest.mark.parametrize("emission", [emissions.exact(7), emissions.binomial([0.1, 0.9], 12.0)])
def test_emission_survives_its_dictionary(emission):
    fields = emission.to_dict()
    assert json.loads(json.dumps(fields)) == fields
    assert emissions.Emission.from_dict(fields) == emission


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: emissions.exact(4), "num_states: expected one of 2, 3, 5, 7, got 4"),
        (lambda: emissions.binomial([0.5]), "success_rates: expected at least two rates"),
        (lambda: emissions.binomial([0.0, 0.5]), "success_rates: .* inside"),
        (lambda: emissions.binomial([0.1, float("nan")]), "success_rates: .* inside"),
        (lambda: emissions.binomial([0.1, 0.5], -1), "precision: expected a positive number or None, got -1"),
        (
            lambda: emissions.Emission.from_dict({"kind": "poisson"}),
            "emission.kind: expected one of 'exact', 'binomial'",
        ),
    ],
)
def test_bad_emissions_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
