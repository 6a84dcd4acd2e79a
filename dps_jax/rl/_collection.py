"""What a round collects: a batch to learn from, and all that was rolled out to get it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dps_jax import _checks
from dps_jax.rl._rollout import Batch, is_informative, is_scored

RolloutFn = Callable[[jax.Array, jax.Array], Batch]


class Selection(NamedTuple):
    """The prompts of a round.

    Attributes:
      ids: distinct, int32 [B].
      scores: what they were ranked by, float32 [B].
      inclusion_probs: with which each was picked out of all N, float32 [B], or None: P(in the pool), which is M / N
        for a random pool of M, times P(picked | the pool), which the selector gives. Sums over the picked of value /
        inclusion_prob are unbiased for sums over all N, as they are for those over the pool within it.
    """

    ids: jax.Array
    scores: jax.Array
    inclusion_probs: jax.Array | None = None


class Collection(NamedTuple):
    """A batch to learn from and what it took to get it.

    Attributes:
      batch: B groups; its `inclusion_probs` are those of the selection.
      ids: all prompts that were rolled out, in the batch or not, distinct, int32 [C]; -1 for padding, and for a prompt
        none of whose completions has a score.
      successes: correct completions of each, int32 [C].
      counts: completions of each that have a score, int32 [C]; 0 for padding.
      scores: what each was ranked by, float32 [C]; 0 for padding.
      num_rollouts: completions sampled, int32.
      num_tokens: tokens sampled, int32.
      effective_sample_ratio: share of the groups rolled out that were partially solved, float32.
      mean_reward: of all completions that have a score, float32.
    """

    batch: Batch
    ids: jax.Array
    successes: jax.Array
    counts: jax.Array
    scores: jax.Array
    num_rollouts: jax.Array
    num_tokens: jax.Array
    effective_sample_ratio: jax.Array
    mean_reward: jax.Array


class BatchKeys(NamedTuple):
    """The keys of a batch: for its selection, and for its completions."""

    select: jax.Array
    rollout: jax.Array


def batch_keys(key: jax.Array) -> BatchKeys:
    """Returns the keys of a batch from its own."""
    key_select, key_rollout = jax.random.split(key)
    return BatchKeys(select=key_select, rollout=key_rollout)


def num_scored(batch: Batch) -> jax.Array:
    """Returns how many completions of each prompt have a score, int32 [B]."""
    return jnp.sum(is_scored(batch), axis=1, dtype=jnp.int32)


def sum_rewards(batch: Batch) -> jax.Array:
    """Returns the sum of the rewards of completions that have a score."""
    return jnp.sum(jnp.where(is_scored(batch), batch.rewards, 0.0))


def collect_plain(rollout_fn: RolloutFn, selection: Selection, key: jax.Array) -> Collection:
    """Returns the prompts of a selection, rolled out.

    Args:
      rollout_fn: (ids, key) -> `Batch`.
      selection: of B prompts.
      key: for the completions. They are sampled as those of a batch of `collect_dynamic`, with the second of two keys;
        the first would be for selecting.

    Raises:
      ValueError: for a selection without prompts.
    """
    _checks.check_int("batch_size", selection.ids.shape[0], at_least=1)
    return plain_collection(rollout_fn(selection.ids, batch_keys(key).rollout), selection)


def plain_collection(batch: Batch, selection: Selection) -> Collection:
    """Returns the collection that the batch of a selection is."""
    counts = num_scored(batch)
    return Collection(
        batch=batch._replace(inclusion_probs=selection.inclusion_probs),
        ids=jnp.where(counts > 0, batch.ids, -1),
        successes=jnp.sum(batch.is_correct, axis=1, dtype=jnp.int32),
        counts=counts,
        scores=selection.scores,
        num_rollouts=jnp.asarray(batch.is_correct.size, jnp.int32),
        num_tokens=jnp.sum(batch.mask, dtype=jnp.int32),
        effective_sample_ratio=jnp.mean(is_informative(batch), dtype=jnp.float32),
        mean_reward=sum_rewards(batch) / jnp.maximum(jnp.sum(counts, dtype=jnp.float32), 1.0),
    )
