"""No product of matrices is left to the default precision, which on GPUs and TPUs has three digits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax import priors, selectors, traces
from dps_jax.priors import _variational
from dps_jax.priors._density import density

NUM_PROMPTS, BATCH_SIZE = 300, 4
METHODS = sorted(selectors.SELECTORS)


def products(function, *arguments):
    """Returns the lines of the program of a function in which arrays are multiplied."""
    text = jax.jit(function).lower(*arguments).as_text()
    return [line for line in text.splitlines() if re.search(r"stablehlo\.(dot|dot_general|convolution)\b", line)]


def assert_exact(function, *arguments):
    assert [line for line in products(function, *arguments) if "precision = [HIGHEST, HIGHEST]" not in line] == []


def test_the_default_precision_is_found():
    assert products(jnp.matmul, jnp.ones((2, 2)), jnp.ones((2, 2)))
    with pytest.raises(AssertionError):
        assert_exact(jnp.matmul, jnp.ones((2, 2)), jnp.ones((2, 2)))


@pytest.mark.parametrize("method", METHODS)
def test_methods_multiply_in_full_precision(method):
    selector = selectors.build(method, NUM_PROMPTS)
    key, ids = jax.random.key(0), jnp.arange(BATCH_SIZE, dtype=jnp.int32)
    state = selector.init(key)
    assert_exact(selector.init, key)
    assert_exact(lambda state: selector.select(state, key, BATCH_SIZE), state)
    assert_exact(selector.observe, state, ids, ids, np.full(BATCH_SIZE, 8, np.int32))
    assert_exact(selector.predict, state)
    assert_exact(selector.predict, state, ids)


def test_fits_of_priors_multiply_in_full_precision():
    rng, num_rounds, num_prompts = np.random.default_rng(0), 6, 5
    rounds, ids = np.indices((num_rounds, num_prompts)).reshape(2, -1).astype(np.int32)
    successes = rng.integers(0, 9, rounds.size, np.int32)
    trace = traces.Trace(rounds, ids, successes, np.full_like(successes, 8))
    outcomes = priors.prepare(trace, features=rng.normal(size=(num_prompts, 2)))
    model = priors.covariates(2)
    problem = _variational.problem(model, density(model, outcomes), is_point=False)
    values = jnp.zeros(problem.size)
    approximation = jax.jit(lambda values: _variational.init(problem, values, outcomes))(values)
    assert products(jax.grad(lambda values: _variational.loss_at(problem, values, outcomes)), values)
    assert_exact(jax.grad(lambda values: _variational.loss_at(problem, values, outcomes)), values)
    assert_exact(lambda key: _variational.draw(problem, approximation, key)[0], jax.random.key(0))
