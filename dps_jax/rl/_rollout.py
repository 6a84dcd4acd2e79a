"""Some prompts, answered and scored: the batch that everything else in this package works on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SampleFn = Callable[[Any, jax.Array, jax.Array], Any]
ScoreFn = Callable[[jax.Array, jax.Array], Any]


class Batch(NamedTuple):
    """B prompts with G scored completions each.

    Attributes:
      ids: of the prompts, int32 [B]; -1 for padding.
      prompts: int32 [B, P].
      completions: int32 [B, G, T].
      mask: the tokens that were sampled, the end included, bool [B, G, T].
      old_log_probs: of those tokens under the policy that sampled them, float32 [B, G, T].
      rewards: float32 [B, G]; NaN for a completion without a score, which is left out of all statistics.
      is_correct: what was verified, bool [B, G]; not the same as a reward, which may be shaped. False without a score.
      is_used: False for completion groups that are padding, bool [B].
      inclusion_probs: with which each prompt was picked out of all N, float32 [B]; see `SelectInfo`. None where nothing
        random decides, or the probability is not known: after greedy selection and dynamic collection.
    """

    ids: jax.Array
    prompts: jax.Array
    completions: jax.Array
    mask: jax.Array
    old_log_probs: jax.Array
    rewards: jax.Array
    is_correct: jax.Array
    is_used: jax.Array
    inclusion_probs: jax.Array | None = None


class Sampled(NamedTuple):
    """B prompts with G completions each, not yet graded; attributes as those of `Batch`."""

    ids: jax.Array
    prompts: jax.Array
    completions: jax.Array
    mask: jax.Array
    old_log_probs: jax.Array


def sampled(sample_fn: SampleFn, params: Any, prompts: jax.Array, ids: jax.Array, key: jax.Array) -> Sampled:
    """Returns completions of some prompts, sampled from a policy.

    Args:
      sample_fn: (params, prompts [B, P], key) -> `tokens`, `log_probs` and `mask`, each [B, G, T].
      params: of the policy.
      prompts: int [B, P].
      ids: of the prompts, int32 [B].
      key: for sampling.
    """
    found = sample_fn(params, prompts, key)
    return Sampled(ids=ids, prompts=prompts, completions=found.tokens, mask=found.mask, old_log_probs=found.log_probs)


def assemble(completions: Sampled, score: Any) -> Batch:
    """Returns completions with their scores.

    Args:
      completions: of B prompts.
      score: `is_correct` and `rewards`, each [B, G]; a reward of NaN, or None where they are no array, stands for a
        completion without a score.
    """
    rewards = score.rewards
    if not isinstance(rewards, jax.Array):
        rewards = jnp.asarray(np.asarray(rewards, np.float32))  # None becomes NaN
    rewards = rewards.astype(jnp.float32)
    return Batch(
        **completions._asdict(),
        rewards=rewards,
        is_correct=jnp.asarray(score.is_correct) & ~jnp.isnan(rewards),
        is_used=jnp.ones(completions.ids.shape, bool),
    )


def rollout(
    sample_fn: SampleFn, score_fn: ScoreFn, params: Any, problems: Any, ids: jax.Array, key: jax.Array
) -> Batch:
    """Returns the prompts of some ids with completions sampled from a policy and their scores, all on the device.

    Args:
      sample_fn: see `sampled`.
      score_fn: (facts [B, G, F], completions [B, G, T]) -> the score, as `assemble` takes it.
      params: of the policy.
      problems: `prompts` [N, P] and `facts` [N, F].
      ids: int [B], in [0, N).
      key: for sampling.
    """
    ids = ids.astype(jnp.int32)
    prompts, facts = jnp.asarray(problems.prompts)[ids], jnp.asarray(problems.facts)[ids]
    found = sampled(sample_fn, params, prompts, ids, key)
    group_size = found.completions.shape[1]
    facts = jnp.broadcast_to(facts[:, None, :], (facts.shape[0], group_size, facts.shape[1]))
    return assemble(found, score_fn(facts, found.completions))


def is_scored(batch: Batch) -> jax.Array:
    """Returns which completions have a score, bool [B, G]."""
    return ~jnp.isnan(batch.rewards)


def is_informative(batch: Batch) -> jax.Array:
    """Returns which completion groups are partially solved, bool [B]; completions without a score are not in G."""
    return jnp.any(batch.is_correct, axis=1) & jnp.any(is_scored(batch) & ~batch.is_correct, axis=1)


def without_unscored(batch: Batch) -> Batch:
    """Returns the batch in which no token of a completion without a score counts; groups of such alone are not used."""
    has_score = is_scored(batch)
    return batch._replace(mask=batch.mask & has_score[:, :, None], is_used=batch.is_used & jnp.any(has_score, axis=1))
