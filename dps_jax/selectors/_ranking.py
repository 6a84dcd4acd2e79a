"""The largest B of N scores, with ties broken at random, without sorting or copying the scores.

`lax.top_k` of ten million scores takes longer than the filter itself. Here the scores are divided into blocks. The B
largest scores are in the B blocks with the largest maxima, so after one cheap pass for the maxima only a few thousand
scores have to be ranked. Ties are broken by a keyed pseudo-random permutation of the prompt ids, which needs no memory
and gives the same picks however the prompts are sharded.
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
      ids: ids of the prompts, int32 [B].
      scores: scores of the prompts, float32 [B].
      tie_keys: pseudo-random keys that break ties, float32 [B], distinct for distinct ids.
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
      salts: random words, uint32 [4], different from those for `tie_keys`.
      ids: integers below 2**30, of any shape.
    """
    # float32 is coarse close to 1, so the distance from 1 is used, which has the same distribution.
    return -jnp.log(-jnp.log1p(-uniforms(_permuted(salts, ids))))


def bits(salts: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns two pseudo-random words of each id, uint32 [2, ...] below 2**30, a function of the id alone.

    Args:
      salts: random words, uint32 [4], different from those for `tie_keys` and `gumbels`.
      ids: integers below 2**30, of any shape.
    """
    return jnp.stack([_permuted(salts, ids), _permuted(salts ^ jnp.uint32(0x2F0B4C47), ids)])


def rank(ranking: Ranking, num_picked: int) -> Ranking:
    """Returns the first `num_picked` of a few prompts in the order of `Ranking`; ids break ties between equal keys."""
    negated = (-ranking.scores, -ranking.tie_keys, ranking.ids)
    scores, keys, ids = lax.sort(negated, num_keys=3)
    return Ranking(ids[:num_picked], -scores[:num_picked], -keys[:num_picked])


def _block_size(size: int, num_picked: int) -> int:
    """Returns the block size S, a power of two that balances N / S block maxima against B * S scores to rank."""
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
      num_blocks: number of blocks, from position 0.
      block_size: number of scores in a block, S.
      num_picked: number of prompts to pick, B.
    """

    def maxima_of(first_block, count):
        values = values_at(first_block * block_size, count * block_size)
        return values.reshape(count, block_size).max(axis=1)

    def in_chunks():
        # Chunks keep temporary arrays in cache; the last chunk overlaps the chunk before it.
        chunk = min(num_blocks, _CHUNK_BLOCKS)

        def step(index, maxima):
            first = jnp.minimum(index * chunk, num_blocks - chunk)
            return lax.dynamic_update_slice_in_dim(maxima, maxima_of(first, chunk), first, 0)

        return lax.fori_loop(0, -(-num_blocks // chunk), step, jnp.zeros(num_blocks, jnp.float32))

    maxima = lax.platform_dependent(cpu=in_chunks, default=lambda: maxima_of(0, num_blocks))
    return lax.top_k(maxima, min(num_picked, num_blocks))


def _positions(blocks: jax.Array, block_size: int, size: int) -> jax.Array:
    """Returns the positions in some blocks, and the positions after the last complete block."""
    inside = (blocks[:, None] * block_size + jnp.arange(block_size, dtype=jnp.int32)[None, :]).reshape(-1)
    rest = jnp.arange(size // block_size * block_size, size, dtype=jnp.int32)
    return jnp.concatenate([inside, rest])


def _tied_positions(
    tied_keys: Callable[[jax.Array, int], jax.Array], size: int, block_size: int, num_picked: int
) -> jax.Array:
    """Returns positions that include the B largest tie keys.

    Args:
      tied_keys: (start, length) -> tie keys at start, ..., start + length - 1, and 0 at positions without a tie.
      size: number of scores, N.
      block_size: number of scores in a block, S.
      num_picked: number of prompts to pick, B.
    """
    _, blocks = _largest_blocks(tied_keys, size // block_size, block_size, num_picked)
    return _positions(blocks, block_size, size)


def random_b(salts: jax.Array, num_picked: int, size: int, *, first_id: jax.Array | int = 0) -> Ranking:
    """Returns `num_picked` random prompts, the same as `top_b` for equal scores, but without an array of scores.

    Args:
      salts: random words from `jax.random.bits`, uint32 [4].
      num_picked: number of prompts to pick, B <= N.
      size: number of prompts, N.
      first_id: id of the first prompt, if these prompts are one shard of several.
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
    """Returns the prompts with the `num_picked` largest scores; the salts decide between equal scores.

    Args:
      scores: scores of all prompts, float32 [N], without NaN.
      salts: random words from `jax.random.bits`, uint32 [4].
      num_picked: number of prompts to pick, B <= N.
      first_id: id of the first prompt, if these prompts are one shard of several.
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
    # The minimum instead of the last entry: XLA for CPU sorts all scores if only a slice of a top-k is used.
    threshold = lax.top_k(near, num_picked)[0].min()

    def tied_anywhere(threshold):
        tied_keys = lambda start, length: jnp.where(
            slice_at(start, length) == threshold, key_at(start + jnp.arange(length, dtype=jnp.int32)), 0.0
        )
        return _tied_positions(tied_keys, size, block_size, num_picked)

    # If the maximum of the last block reaches the threshold, the remaining blocks may contain equal scores.
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
