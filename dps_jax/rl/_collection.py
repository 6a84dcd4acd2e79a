"""The result of the rollouts of a round: a batch to learn from, and the outcomes of all prompts rolled out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dps_jax import _checks
from dps_jax._documented import documented
from dps_jax.rl._rollout import Batch, is_informative, is_scored

RolloutFn = Callable[[jax.Array, jax.Array], Batch]


@documented
class Selection(NamedTuple):
    """The prompts of a round.

    Attributes:
      ids: distinct prompt ids, int32 [B].
      scores: scores of the selector, by which the prompts were ranked, float32 [B].
      inclusion_probs: probability with which each prompt was picked out of all N, float32 [B], or None if it is not
        known. It is the product of P(in the pool), which is M / N for a random pool of M prompts, and
        P(picked | the pool), which the selector reports. For any value of the prompts, the sum of
        value / inclusion_prob over the picks is an unbiased estimate of the sum of value over all N prompts.

    Example:
      >>> import jax
      >>> from dps_jax import rl, selectors
      >>> selector = selectors.uniform(100)
      >>> ids, info = selector.select(selector.init(jax.random.key(0)), jax.random.key(1), 4)
      >>> selection = rl.Selection(ids=ids, scores=info.scores, inclusion_probs=info.inclusion_probs)
      >>> round(float(selection.inclusion_probs[0]), 3)  # B / N
      0.04
    """

    ids: jax.Array
    scores: jax.Array
    inclusion_probs: jax.Array | None = None


@documented
class Collection(NamedTuple):
    """A batch to learn from, and the outcomes of all prompts that were rolled out for it.

    With dynamic sampling, more prompts are rolled out than the batch has.

    Attributes:
      batch: B completion groups to learn from. Its `inclusion_probs` are those of the selection, and None with dynamic
        sampling.
      ids: distinct ids of all prompts that were rolled out, whether they are in the batch or not, int32 [C]. C is B or,
        with dynamic sampling, the largest possible number of them. -1 for padding, and for a prompt without any
        completion that has a score.
      successes: number of correct completions of each prompt, int32 [C].
      counts: number of completions of each prompt that have a score, int32 [C]; 0 for padding.
      scores: scores of the selector, by which the prompts were ranked, float32 [C]; 0 for padding.
      num_rollouts: number of sampled completions, int32.
      num_tokens: number of sampled tokens, int32.
      effective_sample_ratio: share of informative groups among all completion groups that were rolled out, float32.
      mean_reward: mean reward of all completions that have a score, float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dps_jax import rl, selectors
      >>> is_correct = jnp.array([[True, False], [True, True]])  # outcomes of prompts 4 and 7
      >>> batch = rl.Batch(
      ...     ids=jnp.array([4, 7]), prompts=jnp.ones((2, 5), jnp.int32), completions=jnp.ones((2, 2, 3), jnp.int32),
      ...     mask=jnp.ones((2, 2, 3), bool), old_log_probs=jnp.zeros((2, 2, 3)),
      ...     rewards=is_correct.astype(jnp.float32), is_correct=is_correct, is_used=jnp.ones(2, bool))
      >>> found = rl.plain_collection(batch, rl.Selection(ids=batch.ids, scores=jnp.ones(2)))
      >>> float(found.effective_sample_ratio)  # only the group of prompt 4 is informative
      0.5
      >>> selector = selectors.dps(10, decay=0.7, prior="progress")  # learns from the outcomes:
      >>> state = selector.observe(selector.init(jax.random.key(0)), found.ids, found.successes, found.counts)
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
    """The random keys of a batch: one for its selection, and one for its completions."""

    select: jax.Array
    rollout: jax.Array


def batch_keys(key: jax.Array) -> BatchKeys:
    """Returns the keys that are derived from the key of a batch."""
    key_select, key_rollout = jax.random.split(key)
    return BatchKeys(select=key_select, rollout=key_rollout)


def num_scored(batch: Batch) -> jax.Array:
    """Returns how many completions of each prompt have a score, int32 [B]."""
    return jnp.sum(is_scored(batch), axis=1, dtype=jnp.int32)


def sum_rewards(batch: Batch) -> jax.Array:
    """Returns the sum of the rewards of completions that have a score."""
    return jnp.sum(jnp.where(is_scored(batch), batch.rewards, 0.0))


def collect_plain(rollout_fn: RolloutFn, selection: Selection, key: jax.Array) -> Collection:
    """Returns the collection of the selected prompts, after rolling them out.

    Args:
      rollout_fn: (ids, key) -> `Batch`, such as a partial application of `rollout`.
      selection: the B selected prompts.
      key: key for the rollouts. It is split as in `collect_dynamic`: the second half is used for sampling, and the
        first half, which `collect_dynamic` uses for the selection, is ignored.

    Raises:
      ValueError: for a selection without prompts.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dps_jax import rl
      >>> def roll_out(ids, key):  # G = 4 random outcomes per prompt, instead of sampling from a policy and grading
      ...     is_correct, shape = jax.random.bernoulli(key, 0.5, (2, 4)), (2, 4, 3)
      ...     return rl.Batch(
      ...         ids=ids, prompts=jnp.ones((2, 5), jnp.int32), completions=jnp.ones(shape, jnp.int32),
      ...         mask=jnp.ones(shape, bool), old_log_probs=jnp.zeros(shape),
      ...         rewards=is_correct.astype(jnp.float32), is_correct=is_correct, is_used=jnp.ones(2, bool))
      >>> selection = rl.Selection(ids=jnp.array([4, 7]), scores=jnp.array([0.9, 0.6]))
      >>> found = rl.collect_plain(roll_out, selection, jax.random.key(0))
      >>> int(found.num_rollouts), found.counts.tolist()
      (8, [4, 4])
    """
    _checks.check_int("batch_size", selection.ids.shape[0], at_least=1)
    return plain_collection(rollout_fn(selection.ids, batch_keys(key).rollout), selection)


def plain_collection(batch: Batch, selection: Selection) -> Collection:
    """Returns the collection of a batch whose prompts are exactly those of the selection.

    Use it where completions are graded on the host; `collect_plain` does the rollouts as well.

    Args:
      batch: the graded completions of the selected prompts, in their order.
      selection: the B prompts of the batch.

    Example:
      >>> import jax.numpy as jnp
      >>> from dps_jax import rl
      >>> is_correct = jnp.array([[True, False], [True, True]])
      >>> batch = rl.Batch(
      ...     ids=jnp.array([4, 7]), prompts=jnp.ones((2, 5), jnp.int32), completions=jnp.ones((2, 2, 3), jnp.int32),
      ...     mask=jnp.ones((2, 2, 3), bool), old_log_probs=jnp.zeros((2, 2, 3)),
      ...     rewards=is_correct.astype(jnp.float32), is_correct=is_correct, is_used=jnp.ones(2, bool))
      >>> found = rl.plain_collection(batch, rl.Selection(ids=batch.ids, scores=jnp.array([0.9, 0.6])))
      >>> found.successes.tolist(), found.counts.tolist()  # correct completions, and all that have a score
      ([1, 2], [2, 2])
    """
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
