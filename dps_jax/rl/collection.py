"""Where a training batch comes from: one selection, or batch after batch until enough prompts are informative.

Both report everything that was rolled out, for the selector to observe and for the bill: what dynamic sampling throws
away was paid for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dps_jax import _checks
from dps_jax.rl.rollout import Batch, is_informative, is_scored
from dps_jax.types import SelectInfo

SelectFn = Callable[..., tuple[jax.Array, SelectInfo]]
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


class _BatchKeys(NamedTuple):
    """The keys of a batch: for its selection, and for its completions."""

    select: jax.Array
    rollout: jax.Array


def _batch_keys(key: jax.Array) -> _BatchKeys:
    key_select, key_rollout = jax.random.split(key)
    return _BatchKeys(select=key_select, rollout=key_rollout)


def _num_scored(batch: Batch) -> jax.Array:
    """Returns how many completions of each prompt have a score, int32 [B]."""
    return jnp.sum(is_scored(batch), axis=1, dtype=jnp.int32)


def _sum_rewards(batch: Batch) -> jax.Array:
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
    batch = rollout_fn(selection.ids, _batch_keys(key).rollout)
    counts = _num_scored(batch)
    return Collection(
        batch=batch._replace(inclusion_probs=selection.inclusion_probs),
        ids=jnp.where(counts > 0, batch.ids, -1),
        successes=jnp.sum(batch.is_correct, axis=1, dtype=jnp.int32),
        counts=counts,
        scores=selection.scores,
        num_rollouts=jnp.asarray(batch.is_correct.size, jnp.int32),
        num_tokens=jnp.sum(batch.mask, dtype=jnp.int32),
        effective_sample_ratio=jnp.mean(is_informative(batch), dtype=jnp.float32),
        mean_reward=_sum_rewards(batch) / jnp.maximum(jnp.sum(counts, dtype=jnp.float32), 1.0),
    )


class _Progress(NamedTuple):
    """Dynamic sampling between two batches.

    Attributes:
      kept: the informative groups so far, in front.
      ids: prompts tried, int32 [C]; so `successes`, `counts` and `scores`. -1 for places not yet taken.
      num_batches: int32; so `num_tokens`.
      num_informative: groups among everything tried, kept or not, int32.
      sum_rewards: float32.
    """

    kept: Batch
    ids: jax.Array
    successes: jax.Array
    counts: jax.Array
    scores: jax.Array
    num_batches: jax.Array
    num_tokens: jax.Array
    num_informative: jax.Array
    sum_rewards: jax.Array


def _keep(kept: Batch, batch: Batch) -> Batch:
    """Returns the kept groups with the informative ones of a batch behind them, as far as there is room."""
    num_slots = kept.is_used.shape[0]
    is_kept = is_informative(batch) & ~jnp.isin(batch.ids, kept.ids)
    slots = jnp.sum(kept.is_used, dtype=jnp.int32) + jnp.cumsum(is_kept, dtype=jnp.int32) - 1
    slots = jnp.where(is_kept, slots, num_slots)
    return jax.tree.map(lambda leaf, more: leaf.at[slots].set(more, mode="drop"), kept, batch)


def _record(progress: _Progress, batch: Batch, scores: jax.Array) -> _Progress:
    """Returns the progress after a batch; a prompt tried before has its outcomes added, so that ids stay distinct."""
    batch_size = batch.is_correct.shape[0]
    is_same = progress.ids == batch.ids[:, None]
    is_repeated = jnp.any(is_same, axis=1)
    fresh = progress.num_batches * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    slots = jnp.where(is_repeated, jnp.argmax(is_same, axis=1).astype(jnp.int32), fresh)
    return _Progress(
        kept=_keep(progress.kept, batch),
        ids=progress.ids.at[slots].set(batch.ids),
        successes=progress.successes.at[slots].add(jnp.sum(batch.is_correct, axis=1, dtype=jnp.int32)),
        counts=progress.counts.at[slots].add(_num_scored(batch)),
        scores=progress.scores.at[slots].set(scores),
        num_batches=progress.num_batches + 1,
        num_tokens=progress.num_tokens + jnp.sum(batch.mask, dtype=jnp.int32),
        num_informative=progress.num_informative + jnp.sum(is_informative(batch), dtype=jnp.int32),
        sum_rewards=progress.sum_rewards + _sum_rewards(batch),
    )


def collect_dynamic(
    select_fn: SelectFn,
    rollout_fn: RolloutFn,
    state: Any,
    key: jax.Array,
    *,
    batch_size: int,
    num_prompts: int,
    max_batches: int = 10,
) -> Collection:
    """Returns B informative prompts, rolled out batch after batch until there are enough (DS).

    Ends with fewer, the rest marked by `is_used`, after `max_batches` batches or when every prompt was tried.
    Informative groups beyond B are thrown away, and like the uninformative ones reported and counted. Prompts tried
    earlier in the round are excluded from selection; one that is handed out all the same, because nothing else is
    left, has its outcomes added to its entry, and is in the batch at most once.

    There are no inclusion_probs: whether a prompt gets into the batch depends on how the others turned out.

    Args:
      select_fn: (state, key, batch_size, exclude=int32 [C]) -> (distinct ids int32 [B], `SelectInfo`), as
        `Selector.select`; entries of -1 in `exclude` are padding.
      rollout_fn: (ids, key) -> `Batch`.
      state: of the selector; the same for all batches of the round.
      key: for both.
      batch_size: B.
      num_prompts: N; no more than ceil(N / B) batches are drawn.
      max_batches: the cap; C = B times the smaller of the two.

    Raises:
      ValueError: for a bad size.

    Source: DAPO (arXiv 2503.14476), section 3.2.
    """
    _checks.check_int("num_prompts", num_prompts, at_least=1)
    _checks.check_int("batch_size", batch_size, at_least=1, at_most=num_prompts)
    _checks.check_int("max_batches", max_batches, at_least=1)
    max_batches = min(max_batches, -(-num_prompts // batch_size))
    num_tried = max_batches * batch_size
    shapes = jax.eval_shape(rollout_fn, jnp.zeros(batch_size, jnp.int32), key)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    zero = jnp.zeros((), jnp.int32)
    start = _Progress(
        kept=empty._replace(ids=jnp.full(batch_size, -1, jnp.int32)),
        ids=jnp.full(num_tried, -1, jnp.int32),
        successes=jnp.zeros(num_tried, jnp.int32),
        counts=jnp.zeros(num_tried, jnp.int32),
        scores=jnp.zeros(num_tried, jnp.float32),
        num_batches=zero,
        num_tokens=zero,
        num_informative=zero,
        sum_rewards=jnp.zeros((), jnp.float32),
    )

    def is_short(progress: _Progress) -> jax.Array:
        return ~jnp.all(progress.kept.is_used) & (progress.num_batches < max_batches)

    def add_batch(progress: _Progress) -> _Progress:
        keys = _batch_keys(jax.random.fold_in(key, progress.num_batches))
        ids, info = select_fn(state, keys.select, batch_size, exclude=progress.ids)
        return _record(progress, rollout_fn(ids, keys.rollout), info.scores)

    end = lax.while_loop(is_short, add_batch, start)
    num_groups = end.num_batches * batch_size
    num_rollouts = num_groups * end.kept.rewards.shape[1]
    return Collection(
        batch=end.kept,
        ids=jnp.where(end.counts > 0, end.ids, -1),
        successes=end.successes,
        counts=end.counts,
        scores=end.scores,
        num_rollouts=num_rollouts,
        num_tokens=end.num_tokens,
        effective_sample_ratio=end.num_informative.astype(jnp.float32) / num_groups.astype(jnp.float32),
        mean_reward=end.sum_rewards / jnp.maximum(jnp.sum(end.counts, dtype=jnp.float32), 1.0),
    )
