"""Predictions of a round beside its outcomes, against the same in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax import selectors
from dps_jax.selectors._judgement import judged


@pytest.mark.parametrize("method", ["dps", "arcsine"])
def test_a_judgement_is_that_of_the_groups_that_were_seen(method):
    selector = selectors.build(method, 20)
    state = selector.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    for _ in range(3):
        state = selector.observe(state, jnp.arange(20), rng.integers(0, 9, 20), np.full(20, 8))
    ids, successes, counts = np.array([3, -1, 7, 19, 0]), np.array([0, 0, 8, 5, 3]), np.array([8, 0, 8, 8, 4])
    found = jax.jit(lambda *arrays: judged(selector, *arrays))(state, ids, successes, counts)
    predicted = np.asarray(selector.predict(state).p_informative, np.float64)[[3, 7, 19, 0]]
    is_informative = np.array([0, 0, 1, 1])
    assert found.effective_sample_ratio == 0.5
    np.testing.assert_allclose(found.predicted_informative, predicted.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.brier, np.mean((predicted - is_informative) ** 2), rtol=1e-4)
    expected = np.zeros((3, 3), int)
    if method == "dps":
        states = np.asarray(selector.predicted_probs(state)).argmax(axis=0)[[3, 7, 19, 0]]
        np.add.at(expected, (states, [0, 2, 1, 1]), 1)
    np.testing.assert_array_equal(found.confusion, expected)


def test_a_round_without_groups_is_judged_0():
    selector = selectors.build("dps", 5)
    nothing = judged(selector, selector.init(jax.random.key(0)), jnp.full(4, -1), jnp.zeros(4, int), jnp.zeros(4, int))
    assert not any(np.any(field) for field in nothing)
