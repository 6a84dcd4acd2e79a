"""Tokens that are drawn: as `jax.random.categorical` and `argmax` find them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax.models import _drawing


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_categorical_draws_what_jax_draws(dtype):
    logits = (4 * jax.random.normal(jax.random.key(0), (5, 7, 31))).astype(dtype)
    logits = jnp.where(jnp.arange(31) % 3 == 1, -jnp.inf, logits)
    for seed in range(20):
        key = jax.random.key(seed)
        found = jax.jit(_drawing.categorical)(key, logits)
        assert found.dtype == jnp.int32
        np.testing.assert_array_equal(found, jax.random.categorical(key, logits))


def test_the_first_of_several_highest_is_found():
    values = jnp.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [-jnp.inf, -jnp.inf, -1.0], [-jnp.inf, -jnp.inf, -jnp.inf]])
    np.testing.assert_array_equal(_drawing.highest(values), np.argmax(values, axis=-1))


def test_what_is_no_number_gives_a_token_that_exists():
    assert 0 <= int(_drawing.highest(jnp.full((3,), jnp.nan))) < 3
