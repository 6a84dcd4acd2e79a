"""Attention of many queries over stretches of keys and values; those of a prompt are shared by its completions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from dps_jax.models._fused_attention import cudnn, splash
from dps_jax.models._key_values import Seen

# Added to the scores of what must not be seen. Finite: a row that sees nothing (padding) is then no NaN.
_MASKED = -1e30
# Scores that exist at the same time, float32: those of more queries are computed block by block.
_MAX_SCORES = 2**25

AttentionFn = Callable[..., jax.Array]


def plain(queries: jax.Array, seen: Sequence[Seen], *, num_devices: int = 1) -> jax.Array:
    """Returns the attention of queries [B, G, S, H, head_dim] over one or more stretches, of the same shape.

    All scores, float32 [B, G, H, S, positions], exist at the same time.
    """
    del num_devices
    return _attend(seen, queries, jnp.zeros((), jnp.int32))


def blockwise(queries: jax.Array, seen: Sequence[Seen], *, num_devices: int = 1) -> jax.Array:
    """Returns what `plain` does; scores exist for some of the queries at a time, and are computed again for a gradient.

    Where all fit in 128 MiB of each of the devices that B is split over this is `plain`.
    """
    batch, group, length, num_heads, head_dim = queries.shape
    scores_each = batch * group * num_heads * sum(one.cache.keys.shape[2] for one in seen)
    num_blocks = min(-(-length * scores_each // (_MAX_SCORES * num_devices)), length)
    if num_blocks <= 1:
        return plain(queries, seen)
    size = -(-length // num_blocks)
    num_blocks = -(-length // size)
    padded = jnp.pad(queries, ((0, 0), (0, 0), (0, num_blocks * size - length), (0, 0), (0, 0)))
    blocks = jnp.moveaxis(padded.reshape(batch, group, num_blocks, size, num_heads, head_dim), 2, 0)
    starts = jnp.arange(num_blocks, dtype=jnp.int32) * size
    attend = jax.checkpoint(functools.partial(_attend, seen))
    mixed = lax.map(lambda block: attend(*block), (blocks, starts))
    return jnp.moveaxis(mixed, 0, 2).reshape(padded.shape)[:, :, :length]


# (queries, stretches, num_devices=1) -> the attention; equal but for rounding, and but for queries of padding.
ATTENTIONS: dict[str, AttentionFn] = {
    "plain": plain,
    "blockwise": blockwise,
    "cudnn": cudnn,
    "splash": splash,
}


def _visible(seen: Seen, start: jax.Array, length: int) -> jax.Array | None:
    """Returns which positions queries look at, bool broadcast against [B, G, S, positions]; None is all."""
    mask = None if seen.is_token is None else seen.is_token[:, :, None, :]
    if seen.is_causal:
        positions = jnp.arange(seen.cache.keys.shape[2], dtype=jnp.int32)
        is_before = (positions <= start + jnp.arange(length, dtype=jnp.int32)[:, None])[None, None]
        mask = is_before if mask is None else mask & is_before
    return mask


def _attend(seen: Sequence[Seen], queries: jax.Array, start: jax.Array) -> jax.Array:
    """Returns the attention of queries [B, G, S, H, head_dim], the first of which is at position `start`."""
    batch, group, length, num_heads, head_dim = queries.shape
    num_kv_heads = seen[0].cache.keys.shape[3]
    split = queries.reshape(batch, group, length, num_kv_heads, num_heads // num_kv_heads, head_dim)
    split = split * (1 / math.sqrt(head_dim))
    scores = []
    for one in seen:
        keys, mask = one.cache.keys, _visible(one, start, length)
        if keys.shape[1] == 1:
            found = jnp.einsum("bgsnrd,btnd->bgnrst", split, keys[:, 0]).astype(jnp.float32)
        else:
            found = jnp.einsum("bgsnrd,bgtnd->bgnrst", split, keys).astype(jnp.float32)
        scores.append(found if mask is None else jnp.where(mask[:, :, None, None], found, _MASKED))
    probs = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(queries.dtype)
    ends = [sum(score.shape[-1] for score in scores[: index + 1]) for index in range(len(scores) - 1)]
    mixed = jnp.zeros((), queries.dtype)
    for one, part in zip(seen, jnp.split(probs, ends, axis=-1), strict=True):
        values = one.cache.values
        if values.shape[1] == 1:
            mixed = mixed + jnp.einsum("bgnrst,btnd->bgsnrd", part, values[:, 0])
        else:
            mixed = mixed + jnp.einsum("bgnrst,bgtnd->bgsnrd", part, values)
    return mixed.reshape(queries.shape)
