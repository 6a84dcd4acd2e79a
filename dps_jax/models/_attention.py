"""Attention of many queries over segments of keys and values; the segment of a prompt is shared by its completions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from dps_jax.models._fused_attention import cudnn, splash
from dps_jax.models._key_values import Seen

# The score of masked keys. It is finite, so that a query of padding, for which all keys are masked, gives no NaN.
_MASKED = -1e30
# Largest number of float32 scores in memory at once; above it, scores are computed for blocks of queries.
_MAX_SCORES = 2**25

AttentionFn = Callable[..., jax.Array]


def plain(queries: jax.Array, seen: Sequence[Seen], *, num_devices: int = 1) -> jax.Array:
    """Returns the attention output for queries [B, G, S, H, head_dim] over the positions in `seen`; same shape.

    All scores, float32 [B, G, H, S, positions], are in memory at once.
    """
    del num_devices
    return _attend(seen, queries, jnp.zeros((), jnp.int32))


def blockwise(queries: jax.Array, seen: Sequence[Seen], *, num_devices: int = 1) -> jax.Array:
    """Returns the same as `plain`, computed for a block of queries at a time.

    The scores of a block are computed again in the backward pass. If all scores fit into 128 MiB on each of the
    `num_devices` devices that B is split over, there is one block, and `plain` is called.
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


# (queries, segments, num_devices=1) -> attention. All agree up to rounding, except for queries of padding.
ATTENTIONS: dict[str, AttentionFn] = {
    "plain": plain,
    "blockwise": blockwise,
    "cudnn": cudnn,
    "splash": splash,
}


def _visible(seen: Seen, start: jax.Array, length: int) -> jax.Array | None:
    """Returns which keys each query attends to, bool, broadcastable to [B, G, S, positions]; None stands for all."""
    mask = None if seen.is_token is None else seen.is_token[:, :, None, :]
    if seen.is_causal:
        positions = jnp.arange(seen.cache.keys.shape[2], dtype=jnp.int32)
        is_before = (positions <= start + jnp.arange(length, dtype=jnp.int32)[:, None])[None, None]
        mask = is_before if mask is None else mask & is_before
    return mask


def _attend(seen: Sequence[Seen], queries: jax.Array, start: jax.Array) -> jax.Array:
    """Returns the attention of queries [B, G, S, H, head_dim], the first of them at position `start`."""
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
