"""Dynamic sampling: batch after batch is rolled out, until enough completion groups are informative.

All rollouts are reported, also those of groups that are discarded: the selector observes them, and they count as cost.
`collect_dynamic` runs on the device; its parts are used one by one where completions are graded on the host.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dps_jax import _checks
from dps_jax.rl._collection import Collection, RolloutFn, batch_keys, num_scored, sum_rewards
from dps_jax.rl._rollout import Batch, is_informative
from dps_jax.types import SelectInfo

SelectFn = Callable[..., tuple[jax.Array, SelectInfo]]


class Progress(NamedTuple):
    """State of dynamic sampling between two batches.

    Attributes:
      kept: the informative groups so far, followed by empty places.
      ids: ids of the prompts rolled out so far, int32 [C]; -1 for places not yet taken.
      successes: number of correct completions of each prompt in `ids`, int32 [C].
      counts: number of completions of each prompt that have a score, int32 [C].
      scores: scores that the prompts were ranked by, float32 [C].
      num_batches: number of batches so far, int32.
      num_tokens: number of tokens sampled so far, int32.
      num_informative: number of informative groups so far, kept or not, int32.
      sum_rewards: sum of all rewards so far, float32.
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
    """Returns the kept groups followed by the informative groups of a batch, as far as there is room."""
    num_slots = kept.is_used.shape[0]
    is_kept = is_informative(batch) & ~jnp.isin(batch.ids, kept.ids)
    slots = jnp.sum(kept.is_used, dtype=jnp.int32) + jnp.cumsum(is_kept, dtype=jnp.int32) - 1
    slots = jnp.where(is_kept, slots, num_slots)
    return jax.tree.map(lambda leaf, more: leaf.at[slots].set(more, mode="drop"), kept, batch)


def add_batch(progress: Progress, batch: Batch, scores: jax.Array) -> Progress:
    """Returns the progress after a batch, whose prompts were ranked by `scores` [B].

    If a prompt was rolled out before in this round, its outcomes are added up, so that ids stay distinct.
    """
    batch_size = batch.is_correct.shape[0]
    is_same = progress.ids == batch.ids[:, None]
    is_repeated = jnp.any(is_same, axis=1)
    fresh = progress.num_batches * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    slots = jnp.where(is_repeated, jnp.argmax(is_same, axis=1).astype(jnp.int32), fresh)
    return Progress(
        kept=_keep(progress.kept, batch),
        ids=progress.ids.at[slots].set(batch.ids),
        successes=progress.successes.at[slots].add(jnp.sum(batch.is_correct, axis=1, dtype=jnp.int32)),
        counts=progress.counts.at[slots].add(num_scored(batch)),
        scores=progress.scores.at[slots].set(scores),
        num_batches=progress.num_batches + 1,
        num_tokens=progress.num_tokens + jnp.sum(batch.mask, dtype=jnp.int32),
        num_informative=progress.num_informative + jnp.sum(is_informative(batch), dtype=jnp.int32),
        sum_rewards=progress.sum_rewards + sum_rewards(batch),
    )


def most_batches(max_batches: int, num_prompts: int, batch_size: int) -> int:
    """Returns the largest number of batches of a round: after ceil(N / B) of them, every prompt was rolled out."""
    return min(max_batches, -(-num_prompts // batch_size))


def begin(shapes: Batch, num_batches: int) -> Progress:
    """Returns the progress before the first batch.

    Args:
      shapes: shapes and types of the arrays of a batch.
      num_batches: the largest number of batches.
    """
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    batch_size = empty.ids.shape[0]
    num_tried, zero = num_batches * batch_size, jnp.zeros((), jnp.int32)
    return Progress(
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


def is_short(num_batches: int, progress: Progress) -> jax.Array:
    """Returns whether another batch is needed, bool."""
    return ~jnp.all(progress.kept.is_used) & (progress.num_batches < num_batches)


def finish(progress: Progress) -> Collection:
    """Returns the collection of a round, after its last batch."""
    num_groups = progress.num_batches * progress.kept.ids.shape[0]
    return Collection(
        batch=progress.kept,
        ids=jnp.where(progress.counts > 0, progress.ids, -1),
        successes=progress.successes,
        counts=progress.counts,
        scores=progress.scores,
        num_rollouts=num_groups * progress.kept.rewards.shape[1],
        num_tokens=progress.num_tokens,
        effective_sample_ratio=progress.num_informative.astype(jnp.float32) / num_groups.astype(jnp.float32),
        mean_reward=progress.sum_rewards / jnp.maximum(jnp.sum(progress.counts, dtype=jnp.float32), 1.0),
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
    """Returns a collection of B informative groups; batch after batch is rolled out until there are enough.

    The collection has fewer groups if there are not enough informative ones after `max_batches` batches, or after every
    prompt was rolled out; the remaining rows of the batch have `is_used` False. Informative groups beyond B are
    discarded. All groups are reported, and their completions count as rollouts. Prompts that were rolled out earlier in
    the round are excluded from the selection. If no others are left and a prompt is selected again, its outcomes are
    added up, and it is in the batch at most once.

    The batch has no `inclusion_probs`: whether a prompt gets into the batch depends on the outcomes of the other
    prompts.

    Args:
      select_fn: (state, key, batch_size, exclude=int32 [C]) -> (distinct ids int32 [B], `types.SelectInfo`), such as
        `Selector.select`; entries of -1 in `exclude` are padding.
      rollout_fn: (ids, key) -> `Batch`, such as a partial application of `rollout`.
      state: state of the selector; the same for all batches of the round.
      key: key for the selections and the rollouts.
      batch_size: number of prompts per batch, B.
      num_prompts: number of prompts, N; there are at most ceil(N / B) batches.
      max_batches: largest number of batches of the round; C is B times the smaller of this and ceil(N / B).

    Raises:
      ValueError: for a size out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dps_jax import rl, selectors
      >>> def roll_out(ids, key):  # G = 4 random outcomes per prompt, instead of sampling from a policy and grading
      ...     is_correct, shape = jax.random.bernoulli(key, 0.5, (2, 4)), (2, 4, 3)
      ...     return rl.Batch(
      ...         ids=ids, prompts=jnp.ones((2, 5), jnp.int32), completions=jnp.ones(shape, jnp.int32),
      ...         mask=jnp.ones(shape, bool), old_log_probs=jnp.zeros(shape),
      ...         rewards=is_correct.astype(jnp.float32), is_correct=is_correct, is_used=jnp.ones(2, bool))
      >>> selector = selectors.uniform(100)
      >>> found = rl.collect_dynamic(selector.select, roll_out, selector.init(jax.random.key(0)), jax.random.key(1),
      ...                            batch_size=2, num_prompts=100)
      >>> bool(found.batch.is_used.all()), found.batch.is_correct.sum(axis=1).tolist()  # m of G = 4
      (True, [3, 3])

    Source: DAPO (arXiv 2503.14476), section 3.2.
    """
    _checks.check_int("num_prompts", num_prompts, at_least=1)
    _checks.check_int("batch_size", batch_size, at_least=1, at_most=num_prompts)
    _checks.check_int("max_batches", max_batches, at_least=1)
    num_batches = most_batches(max_batches, num_prompts, batch_size)
    start = begin(jax.eval_shape(rollout_fn, jnp.zeros(batch_size, jnp.int32), key), num_batches)

    def collect_batch(progress: Progress) -> Progress:
        keys = batch_keys(jax.random.fold_in(key, progress.num_batches))
        ids, info = select_fn(state, keys.select, batch_size, exclude=progress.ids)
        return add_batch(progress, rollout_fn(ids, keys.rollout), info.scores)

    return finish(lax.while_loop(functools.partial(is_short, num_batches), collect_batch, start))
