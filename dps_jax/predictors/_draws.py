"""Random numbers for each prompt, from the random words that are passed to `Predictor.draw`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

NUM_WORDS = 2**30


def uniforms(words: jax.Array) -> jax.Array:
    """Returns words below 2**30 as numbers inside (0, 1), float32."""
    # Limited, since float32 would round the largest values to 1.
    return jnp.minimum((words.astype(jnp.float32) + 0.5) / NUM_WORDS, 1 - 1e-7)


def state_of(probs: jax.Array, words: jax.Array) -> jax.Array:
    """Returns a state drawn from each column of probabilities [K, N], int32 [N]."""
    # Thresholds are multiplied by the sum of the probabilities, which rounding may make smaller than 1.
    reached = jnp.cumsum(probs, axis=0)
    return jnp.sum(reached[:-1] <= uniforms(words)[None] * reached[-1:], axis=0, dtype=jnp.int32)
