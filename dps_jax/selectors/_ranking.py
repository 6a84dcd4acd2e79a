"""The largest B of N scores, ties broken at random, without sorting or copying the scores.

`lax.top_k` over all of ten million scores costs more than the filter itself. Here the scores are cut into blocks: the
B largest lie inside the B blocks with the largest maxima, so one cheap pass for the maxima leaves a few thousand
scores to rank. Ties are broken by a keyed pseudo-random permutation of the prompt ids, which needs no memory and
gives the same picks however the prompts are sharded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dps_jax.predictors._draws import NUM_WORDS, uniforms

# Ids are permuted within 30 bits, so that every tie key is a positive, finite, normal float32.
MAX_NUM_PROMPTS = NUM_WORDS
_MASK = MAX_NUM_PROMPTS - 1
_FIRST_NORMAL_BITS = 0x00800000
_CHUNK_BLOCKS = 8192


class Ranking(NamedTuple):
    """Some prompts in order: scores descending, then tie keys descending.

    Attributes:
      ids: int32 [B].
      scores: float32 [B].
      tie_keys: float32 [B], distinct for distinct ids.
    """

    ids: jax.Array
    scores: jax.Array
    tie_keys: jax.Array


def _permuted(salts: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns pseudo-random 30-bit integers, distinct for distinct ids below 2**30."""
    # Every step is a bijection of 30-bit integers: xor, odd multiplication, xor with a right shift.
    x = ids.astype(jnp.uint32)
    for salt, multiplier in zip(salts, (0x3C6EF35F, 0x19660D45, 0x2C9277B5, 0x1E3779B1), strict=True):
        x = (x ^ salt) & _MASK
        x = (x * jnp.uint32(multiplier)) & _MASK
        x = x ^ (x >> 15)
    return x


def tie_keys(salts: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns pseudo-random positive floats, distinct for distinct ids below 2**30.

    Args:
      salts: uint32 [4].
      ids: integers of any shape.
    """
    return lax.bitcast_convert_type(_permuted(salts, ids) + _FIRST_NORMAL_BITS, jnp.float32)


def gumbels(salts: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns pseudo-random numbers of the standard Gumbel distribution, a function of each id alone, float32.

    Args:
      salts: uint32 [4], not those of `tie_keys`.
      ids: integers below 2**30, of any shape.
    """
    # A float32 close to 1 has no room above: by its distance from 1, whose distribution is the same.
    return -jnp.log(-jnp.log1p(-uniforms(_permuted(salts, ids))))


def bits(salts: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns two pseudo-random words of each id, uint32 [2, ...] below 2**30, a function of the id alone.

    Args:
      salts: uint32 [4], not those of `tie_keys` or `gumbels`.
      ids: integers below 2**30, of any shape.
    """
    return jnp.stack([_permuted(salts, ids), _permuted(salts ^ jnp.uint32(0x2F0B4C47), ids)])


def rank(ranking: Ranking, num_picked: int) -> Ranking:
    """Returns the first `num_picked` of a few prompts in the order of `Ranking`; ids break what keys leave tied."""
    negated = (-ranking.scores, -ranking.tie_keys, ranking.ids)
    scores, keys, ids = lax.sort(negated, num_keys=3)
    return Ranking(ids[:num_picked], -scores[:num_picked], -keys[:num_picked])


def _block_size(size: int, num_picked: int) -> int:
    """Returns the power of two that balances N / S block maxima against B * S scores to look at."""
    block = 64
    while block < 4096 and (2 * block) ** 2 * num_picked <= 2 * size:
        block *= 2
    return block


def _largest_blocks(
    values_at: Callable[[jax.Array, int], jax.Array], num_blocks: int, block_size: int, num_picked: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the maxima and indices of the blocks with the largest maxima, [min(B, num_blocks)] each.

    Args:
      values_at: (start, length) -> non-NaN values at start, ..., start + length - 1.
      num_blocks: blocks to look at, from position 0.
      block_size: S.
      num_picked: B.
    """

    def maxima_of(first_block, count):
        values = values_at(first_block * block_size, count * block_size)
        return values.reshape(count, block_size).max(axis=1)

    def in_chunks():
        # Chunks keep temporaries in cache; the last one overlaps the one before.
        chunk = min(num_blocks, _CHUNK_BLOCKS)

        def step(index, maxima):
            first = jnp.minimum(index * chunk, num_blocks - chunk)
            return lax.dynamic_update_slice_in_dim(maxima, maxima_of(first, chunk), first, 0)

        return lax.fori_loop(0, -(-num_blocks // chunk), step, jnp.zeros(num_blocks, jnp.float32))

    maxima = lax.platform_dependent(cpu=in_chunks, default=lambda: maxima_of(0, num_blocks))
    return lax.top_k(maxima, min(num_picked, num_blocks))


def _positions(blocks: jax.Array, block_size: int, size: int) -> jax.Array:
    """Returns the positions inside some blocks, and those after the last whole block."""
    inside = (blocks[:, None] * block_size + jnp.arange(block_size, dtype=jnp.int32)[None, :]).reshape(-1)
    rest = jnp.arange(size // block_size * block_size, size, dtype=jnp.int32)
    return jnp.concatenate([inside, rest])


def _tied_positions(
    tied_keys: Callable[[jax.Array, int], jax.Array], size: int, block_size: int, num_picked: int
) -> jax.Array:
    """Returns positions that include the B largest tie keys.

    Args:
      tied_keys: (start, length) -> tie keys at start, ..., start + length - 1, and 0 for positions that do not count.
      size: N.
      block_size: S.
      num_picked: B.
    """
    _, blocks = _largest_blocks(tied_keys, size // block_size, block_size, num_picked)
    return _positions(blocks, block_size, size)


def random_b(salts: jax.Array, num_picked: int, size: int, *, first_id: jax.Array | int = 0) -> Ranking:
    """Returns `num_picked` prompts at random: what `top_b` returns for equal scores, without any.

    Args:
      salts: uint32 [4], from `jax.random.bits`.
      num_picked: B <= N.
      size: N.
      first_id: id of the first prompt, where these are one shard of more.
    """
    block_size = _block_size(size, num_picked)
    keys_at = lambda start, length: tie_keys(salts, start + jnp.arange(length, dtype=jnp.int32) + first_id)
    if size // block_size <= num_picked:
        positions = jnp.arange(size, dtype=jnp.int32)
    else:
        positions = _tied_positions(keys_at, size, block_size, num_picked)
    keys, order = lax.top_k(tie_keys(salts, positions + first_id), num_picked)
    return Ranking(positions[order] + first_id, jnp.zeros(num_picked, jnp.float32), keys)


def top_b(scores: jax.Array, salts: jax.Array, num_picked: int, *, first_id: jax.Array | int = 0) -> Ranking:
    """Returns the `num_picked` largest scores; which of several equal ones is decided by the salts alone.

    Args:
      scores: float32 [N], no NaN.
      salts: uint32 [4], from `jax.random.bits`.
      num_picked: B <= N.
      first_id: id of the first score, where these are one shard of more.
    """
    size = scores.shape[0]
    block_size = _block_size(size, num_picked)
    num_blocks = size // block_size
    key_at = lambda positions: tie_keys(salts, positions + first_id)
    if num_blocks <= num_picked:
        everything = jnp.arange(size, dtype=jnp.int32)
        return rank(Ranking(everything + first_id, scores, key_at(everything)), num_picked)

    slice_at = lambda start, length: lax.dynamic_slice_in_dim(scores, start, length)
    maxima, blocks = _largest_blocks(slice_at, num_blocks, block_size, num_picked)
    positions = _positions(blocks, block_size, size)
    near = scores[positions]
    # The minimum, not the last: XLA for CPU sorts everything where only a slice of a top-k is used.
    threshold = lax.top_k(near, num_picked)[0].min()

    def tied_anywhere(threshold):
        tied_keys = lambda start, length: jnp.where(
            slice_at(start, length) == threshold, key_at(start + jnp.arange(length, dtype=jnp.int32)), 0.0
        )
        return _tied_positions(tied_keys, size, block_size, num_picked)

    # Where the last block reaches the threshold, blocks that were not looked at may hold equal scores.
    tie_positions = lax.cond(maxima.min() >= threshold, tied_anywhere, lambda _: positions, threshold)
    is_tied = scores[tie_positions] == threshold
    _, tie_order = lax.top_k(jnp.where(is_tied, key_at(tie_positions), 0.0), num_picked)
    above, above_order = lax.top_k(jnp.where(near > threshold, near, -jnp.inf), num_picked)
    slot = jnp.arange(num_picked)
    num_above = jnp.sum(near > threshold)
    tied = tie_positions[tie_order[jnp.maximum(slot - num_above, 0)]]
    picked = jnp.where(slot < num_above, positions[above_order], tied)
    picked_scores = jnp.where(slot < num_above, above, threshold)
    return rank(Ranking(picked + first_id, picked_scores, key_at(picked)), num_picked)
