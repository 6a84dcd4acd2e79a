"""Batches of prompts with completions and their scores, and the functions that sample and grade them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax._documented import documented

SampleFn = Callable[[Any, jax.Array, jax.Array], Any]
ScoreFn = Callable[[jax.Array, jax.Array], Any]


@documented
class Batch(NamedTuple):
    """B prompts with G scored completions each.

    Attributes:
      ids: prompt ids, int32 [B]; -1 for padding.
      prompts: prompt tokens, int32 [B, P].
      completions: completion tokens, int32 [B, G, T].
      mask: True for sampled tokens, the end token included, bool [B, G, T].
      old_log_probs: log-probs of the tokens under the policy that sampled them, float32 [B, G, T].
      rewards: rewards of the completions, float32 [B, G]; NaN for a completion without a score, which is left out of
        all statistics.
      is_correct: whether each completion was verified as correct, bool [B, G]; not a synonym of the reward, which may
        be shaped. False for a completion without a score.
      is_used: False for completion groups that are padding, bool [B].
      inclusion_probs: probability with which each prompt was picked out of all N, float32 [B]; None if it is unknown or
        the selection is not random, such as after greedy selection and after dynamic sampling, which rolls out batches
        until enough completion groups are informative.

    Example:
      >>> import jax.numpy as jnp
      >>> from dps_jax import rl
      >>> rewards = jnp.array([[1.0, 0.0], [0.0, 0.0]])  # G = 2 completions of B = 2 prompts, with T = 3 tokens each
      >>> batch = rl.Batch(
      ...     ids=jnp.arange(2), prompts=jnp.ones((2, 5), jnp.int32), completions=jnp.ones((2, 2, 3), jnp.int32),
      ...     mask=jnp.ones((2, 2, 3), bool), old_log_probs=jnp.full((2, 2, 3), -1.0), rewards=rewards,
      ...     is_correct=rewards == 1, is_used=jnp.ones(2, bool))
      >>> rl.ADVANTAGES["dr-grpo"](batch.rewards, batch.is_used)  # only the first group carries a gradient
      Array([[ 0.5, -0.5],
             [ 0. ,  0. ]], dtype=float32)
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


@documented
class Sampled(NamedTuple):
    """B prompts with G completions each, not yet graded.

    Attributes:
      ids: prompt ids, int32 [B].
      prompts: prompt tokens, int32 [B, P].
      completions: completion tokens, int32 [B, G, T].
      mask: True for sampled tokens, the end token included, bool [B, G, T].
      old_log_probs: log-probs of the tokens under the policy that sampled them, float32 [B, G, T].

    Example:
      >>> import jax.numpy as jnp
      >>> from dps_jax import rl, tasks
      >>> completions = rl.Sampled(
      ...     ids=jnp.arange(1), prompts=jnp.ones((1, 5), jnp.int32), completions=jnp.ones((1, 2, 3), jnp.int32),
      ...     mask=jnp.ones((1, 2, 3), bool), old_log_probs=jnp.full((1, 2, 3), -1.0))
      >>> score = tasks.Score(is_correct=jnp.array([[True, False]]), rewards=jnp.array([[1.0, 0.0]]))
      >>> rl.assemble(completions, score).rewards
      Array([[1., 0.]], dtype=float32)
    """

    ids: jax.Array
    prompts: jax.Array
    completions: jax.Array
    mask: jax.Array
    old_log_probs: jax.Array


def sampled(sample_fn: SampleFn, params: Any, prompts: jax.Array, ids: jax.Array, key: jax.Array) -> Sampled:
    """Samples completions from a policy and returns them without grades.

    Grade them on the host, then call `assemble`. `rollout` samples, grades and assembles on the device.

    Args:
      sample_fn: (params, prompts [B, P], key) -> `models.Completions`, arrays [B, G, T].
      params: parameters of the policy.
      prompts: prompt tokens, int [B, P].
      ids: prompt ids, int32 [B].
      key: key for sampling.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dps_jax import models, rl
      >>> def sample_fn(params, prompts, key):  # a policy that ignores its prompt: four completions of one token
      ...     tokens = jax.random.categorical(key, params, shape=(len(prompts), 4, 1))
      ...     log_probs, mask = jax.nn.log_softmax(params)[tokens], jnp.ones(tokens.shape, bool)
      ...     return models.Completions(tokens=tokens, log_probs=log_probs, mask=mask)
      >>> prompts, ids = jnp.ones((2, 5), jnp.int32), jnp.array([7, 3])
      >>> found = rl.sampled(sample_fn, jnp.zeros(10), prompts, ids, jax.random.key(0))
      >>> found.completions.shape  # [B, G, T]
      (2, 4, 1)
    """
    found = sample_fn(params, prompts, key)
    return Sampled(ids=ids, prompts=prompts, completions=found.tokens, mask=found.mask, old_log_probs=found.log_probs)


def assemble(completions: Sampled, score: Any) -> Batch:
    """Returns a batch that combines sampled completions with their scores.

    Args:
      completions: sampled completions of B prompts.
      score: an object with `is_correct` and `rewards`, each [B, G], such as `tasks.Score`. A reward of NaN, or of None
        in a list, stands for a completion without a score.

    Example:
      >>> import jax.numpy as jnp
      >>> from dps_jax import rl, tasks
      >>> completions = rl.Sampled(
      ...     ids=jnp.arange(1), prompts=jnp.ones((1, 5), jnp.int32), completions=jnp.ones((1, 3, 2), jnp.int32),
      ...     mask=jnp.ones((1, 3, 2), bool), old_log_probs=jnp.full((1, 3, 2), -1.0))
      >>> score = tasks.Score(is_correct=[[True, False, False]], rewards=[[1.0, 0.0, None]])  # the third has no score
      >>> rl.assemble(completions, score).rewards
      Array([[ 1.,  0., nan]], dtype=float32)
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
    """Samples and grades completions of some prompts, all on the device, and returns them as a batch.

    Args:
      sample_fn: (params, prompts [B, P], key) -> `models.Completions`, arrays [B, G, T].
      score_fn: (facts [B, G, F], completions [B, G, T]) -> `tasks.Score`, arrays [B, G].
      params: parameters of the policy.
      problems: an object with the arrays `prompts` [N, P] and `facts` [N, F] (the numbers that grading needs), such as
        `tasks.Problems`.
      ids: prompt ids, int [B], in [0, N).
      key: key for sampling.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dps_jax import models, rl, tasks
      >>> task = tasks.build("chain_sum")
      >>> problems = task.make_problems(0, "train", jnp.arange(20))
      >>> def sample_fn(params, prompts, key):  # a policy that ignores its prompt: four random completions
      ...     tokens = jax.random.categorical(key, params, shape=(len(prompts), 4, task.completion_length))
      ...     log_probs, mask = jax.nn.log_softmax(params)[tokens], jnp.ones(tokens.shape, bool)
      ...     return models.Completions(tokens=tokens, log_probs=log_probs, mask=mask)
      >>> params, ids = jnp.zeros(len(task.vocabulary)), jnp.array([5, 11])
      >>> batch = rl.rollout(sample_fn, task.score, params, problems, ids, jax.random.key(0))
      >>> batch.is_correct.shape  # [B, G]
      (2, 4)
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
    """Returns which completion groups are partially solved, bool [B]; completions without a score do not count."""
    return jnp.any(batch.is_correct, axis=1) & jnp.any(is_scored(batch) & ~batch.is_correct, axis=1)


def without_unscored(batch: Batch) -> Batch:
    """Returns the batch with unscored completions masked; groups without any score get `is_used` False."""
    has_score = is_scored(batch)
    return batch._replace(mask=batch.mask & has_score[:, :, None], is_used=batch.is_used & jnp.any(has_score, axis=1))
