"""Draws from a categorical distribution, and its restriction to the most likely tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def likeliest(logits: jax.Array, count: int) -> jax.Array:
    """Returns the logits [..., V] with -inf for all but the `count` most likely tokens; ties with the last are kept."""
    smallest = lax.top_k(logits, min(count, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits >= smallest, logits, -jnp.inf)


def nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """Returns the logits [..., V] with -inf outside the nucleus.

    The nucleus is the smallest set of most likely tokens whose probabilities add up to at least `top_p`. Tokens that
    tie with its last one are kept.
    """
    ordered = jnp.sort(jax.nn.softmax(logits, axis=-1), axis=-1, descending=True)
    # A token is in the nucleus if the more likely tokens do not reach top_p.
    num_kept = jnp.sum(jnp.cumsum(ordered, axis=-1) - ordered < top_p, axis=-1, keepdims=True)
    smallest = jnp.take_along_axis(ordered, num_kept - 1, axis=-1)
    return jnp.where(jax.nn.softmax(logits, axis=-1) >= smallest, logits, -jnp.inf)


def highest(values: jax.Array) -> jax.Array:
    """Returns the index of the first highest entry of values [..., V], int32 [...].

    This is `argmax` by two plain reductions, which are several times as fast on a CPU.
    """
    is_highest = values == jnp.max(values, axis=-1, keepdims=True)
    last = values.shape[-1] - 1
    return jnp.min(jnp.where(is_highest, jnp.arange(last + 1, dtype=jnp.int32), last), axis=-1)


def categorical(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Returns the same draw as `jax.random.categorical` from logits [..., V], int32 [...]."""
    return highest(logits + jax.random.gumbel(key, logits.shape, logits.dtype))
