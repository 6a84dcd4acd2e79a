"""Which tokens can be drawn: restrictions of a distribution to its likeliest tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def likeliest(logits: jax.Array, count: int) -> jax.Array:
    """Returns logits [..., V] of the `count` likeliest tokens, and of those that tie with the last, -inf elsewhere."""
    smallest = lax.top_k(logits, min(count, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits >= smallest, logits, -jnp.inf)


def nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """Returns logits [..., V] of the smallest set of likeliest tokens with probability >= top_p, -inf elsewhere."""
    ordered = jnp.sort(jax.nn.softmax(logits, axis=-1), axis=-1, descending=True)
    # A token belongs to it if those before it do not reach top_p.
    num_kept = jnp.sum(jnp.cumsum(ordered, axis=-1) - ordered < top_p, axis=-1, keepdims=True)
    smallest = jnp.take_along_axis(ordered, num_kept - 1, axis=-1)
    return jnp.where(jax.nn.softmax(logits, axis=-1) >= smallest, logits, -jnp.inf)


def highest(values: jax.Array) -> jax.Array:
    """Returns the place of the highest entry, the first of several, int32 [...], of values [..., V].

    It is `argmax` by two plain reductions: a CPU takes several times as long for the one of `argmax`.
    """
    is_highest = values == jnp.max(values, axis=-1, keepdims=True)
    last = values.shape[-1] - 1
    return jnp.min(jnp.where(is_highest, jnp.arange(last + 1, dtype=jnp.int32), last), axis=-1)


def categorical(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Returns what `jax.random.categorical` does, int32 [...], from logits [..., V]."""
    return highest(logits + jax.random.gumbel(key, logits.shape, logits.dtype))
