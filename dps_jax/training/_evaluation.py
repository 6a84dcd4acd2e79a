"""Evaluation on held-out problems: pass@1 and pass@k with standard errors, over all problems and by group."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax import _checks
from dps_jax.rl._rollout import Batch, SampleFn, ScoreFn, is_scored, rollout
from dps_jax.training._mesh import fetch


class Estimate(NamedTuple):
    """A mean over problems.

    Attributes:
      mean: mean over all problems; NaN without problems.
      error: standard error of the mean, over both problems and completions; NaN for fewer than two problems.
      num_problems: number of problems, N.
    """

    mean: float
    error: float
    num_problems: int


class Evaluation(NamedTuple):
    """The results of an evaluation.

    Attributes:
      accuracy: pass@1, the share of correct completions.
      pass_at_k: probability that at least one of k completions is correct, by k.
      accuracy_by_group: accuracy by the name of the prompt group.
      reward: mean reward of the completions that have a score.
      completion_tokens: mean number of tokens of a completion, the end token included; completions without a score
        count, too.
      successes: number of correct completions of every problem, int64 [N].
      num_samples: number of completions of every problem.
    """

    accuracy: Estimate
    pass_at_k: dict[int, Estimate]
    accuracy_by_group: dict[str, Estimate]
    reward: float
    completion_tokens: float
    successes: np.ndarray
    num_samples: int


def pass_at_k(successes: Any, count: Any, k: int) -> np.ndarray:
    """Returns unbiased estimates of the probability that at least one of k completions is correct, float64 [N].

    The estimate is 1 - C(count - successes, k) / C(count, k), computed as a product, so that nothing overflows.

    Args:
      successes: number of correct completions, int [N].
      count: number of completions, int [N] or one int for all problems.
      k: number of completions to choose from, at most the smallest count.

    Raises:
      ValueError: for successes outside [0, count], or k above a count.
    """
    size = np.asarray(successes).size
    successes, counts = _checks.check_outcomes(successes, count, size)
    k = _checks.check_int("k", k, at_least=1, at_most=int(counts.min()) if size else None)
    draws = np.arange(k)
    failures = np.maximum((counts - successes)[:, None] - draws, 0)
    return 1.0 - np.prod(failures / (counts[:, None] - draws), axis=1)


def estimate(values: np.ndarray) -> Estimate:
    """Returns the mean of one value per problem, [N], with its standard error."""
    size = values.size
    return Estimate(
        mean=float(values.mean()) if size else float("nan"),
        error=float(values.std(ddof=1) / np.sqrt(size)) if size > 1 else float("nan"),
        num_problems=size,
    )


def _default_ks(num_samples: int) -> list[int]:
    """Returns 2, 4, 8, ... and the number of samples itself."""
    powers = [1 << exponent for exponent in range(1, num_samples.bit_length())]
    return sorted({*powers, num_samples} - {1})


def sample_all(
    params: Any,
    prompts: jax.Array,
    facts: jax.Array,
    key: jax.Array,
    *,
    sample_fn: SampleFn,
    score_fn: ScoreFn,
    num_samples: int,
    batch_size: int,
) -> Outcomes:
    """Returns the outcomes of the completions of every problem, [N] each.

    Args:
      params: parameters of the policy.
      prompts: prompt tokens, int32 [N, P].
      facts: facts that grading needs, [N, F].
      key: key for sampling.
      sample_fn: (params, prompts [B, P], key) -> `models.Completions`, [B, G, T].
      score_fn: (facts [B, G, F], completions [B, G, T]) -> `tasks.Score`, [B, G].
      num_samples: number of completions of every problem, G.
      batch_size: largest number of prompts that are sampled together.

    Raises:
      ValueError: if `sample_fn` returns another number of completions.
    """
    num_problems = prompts.shape[0]
    # As few chunks as the batch size allows, of one size: the padding is less than one row per chunk.
    num_chunks = -(-num_problems // batch_size)
    chunk_size = -(-num_problems // num_chunks)
    ids = (jnp.arange(num_chunks * chunk_size, dtype=jnp.int32) % num_problems).reshape(num_chunks, chunk_size)

    def sample_chunk(chunk: tuple[jax.Array, jax.Array]) -> Outcomes:
        index, ids = chunk
        problems = _Rows(prompts=prompts, facts=facts)
        batch = rollout(sample_fn, score_fn, params, problems, ids, jax.random.fold_in(key, index))
        if batch.completions.shape[1] != num_samples:
            raise ValueError(
                f"sample_fn: expected {num_samples} completions of a prompt, got {batch.completions.shape[1]}"
            )
        return outcomes(batch)

    results = lax.map(sample_chunk, (jnp.arange(num_chunks), ids))
    return jax.tree.map(lambda leaf: leaf.reshape(-1)[:num_problems], results)


class Outcomes(NamedTuple):
    """The outcomes of the completions of some prompts.

    Attributes:
      successes: number of correct completions of each prompt, int32 [B].
      counts: number of completions that have a score, int32 [B].
      num_tokens: number of tokens of all completions, int32 [B].
      rewards: mean reward of the completions that have a score, float32 [B]; 0 if there is none.
    """

    successes: Any
    counts: Any
    num_tokens: Any
    rewards: Any


def outcomes(batch: Batch) -> Outcomes:
    """Returns the outcomes of the completions of a batch."""
    num_tokens = batch.mask.sum(axis=(1, 2), dtype=jnp.int32)
    has_score = is_scored(batch)
    counts = has_score.sum(axis=1, dtype=jnp.int32)
    rewards = jnp.sum(jnp.where(has_score, batch.rewards, 0.0), axis=1) / jnp.maximum(counts, 1)
    return Outcomes(batch.is_correct.sum(axis=1, dtype=jnp.int32), counts, num_tokens, rewards)


class _Rows(NamedTuple):
    """Prompts and facts on the device, in the form that `rollout` takes."""

    prompts: jax.Array
    facts: jax.Array


def evaluator(
    sample_fn: SampleFn,
    score_fn: ScoreFn,
    problems: Any,
    *,
    num_samples: int,
    batch_size: int,
    group_names: Sequence[str] = (),
    ks: Sequence[int] | None = None,
) -> Callable[[Any, jax.Array], Evaluation]:
    """Returns the function (params, key) -> `Evaluation`, which is compiled in its first call.

    Everything is sampled and graded by one program on the device. Chunks have keys of their own, so the completions of
    a problem depend on `batch_size`.

    Args:
      sample_fn: (params, prompts [B, P], key) -> tokens, log_probs and mask, each [B, num_samples, T].
      score_fn: (facts [B, G, F], completions [B, G, T]) -> is_correct and rewards, each [B, G].
      problems: an object with the arrays `prompts` [N, P], `facts` [N, F] and `groups` [N], such as `tasks.Problems`.
      num_samples: number of completions of every problem that `sample_fn` returns.
      batch_size: largest number of problems that are sampled together.
      group_names: names of the groups 0, 1, ...; without names there are no results by group.
      ks: values of k for pass@k; 2, 4, 8, ... up to `num_samples` by default.

    Raises:
      ValueError: if there are no problems, for a group without a name, or a k above `num_samples`.
    """
    num_samples = _checks.check_int("num_samples", num_samples, at_least=1)
    batch_size = _checks.check_int("batch_size", batch_size, at_least=1)
    num_problems = _checks.check_int("the number of problems", len(problems.prompts), at_least=1)
    groups = np.asarray(problems.groups)
    if group_names and groups.max() >= len(group_names):
        raise ValueError(f"group_names: expected at least {groups.max() + 1} names, got {list(group_names)}")
    ks = _default_ks(num_samples) if ks is None else ks
    ks = [_checks.check_int("ks", k, at_least=1, at_most=num_samples) for k in ks]
    prompts, facts = jax.device_put((np.asarray(problems.prompts), np.asarray(problems.facts)))
    of_all = jax.jit(
        functools.partial(
            sample_all,
            sample_fn=sample_fn,
            score_fn=score_fn,
            num_samples=num_samples,
            batch_size=min(batch_size, num_problems),
        )
    )

    def evaluate(params: Any, key: jax.Array) -> Evaluation:
        found = fetch(of_all(params, prompts, facts, key))
        return summarise(found, groups, group_names, num_samples=num_samples, ks=ks)

    return evaluate


def summarise(
    found: Outcomes,
    groups: np.ndarray,
    group_names: Sequence[str],
    *,
    num_samples: int,
    ks: Sequence[int] | None = None,
) -> Evaluation:
    """Returns the evaluation from the outcomes of N problems.

    Args:
      found: outcomes on the host. Completions without a score, and problems without any score, do not count.
      groups: group of each problem, index into `group_names`, int [N].
      group_names: names of the groups; without names there are no results by group.
      num_samples: number of completions of every problem.
      ks: values of k for pass@k; 2, 4, 8, ... up to `num_samples` by default.
    """
    successes, counts, num_tokens, rewards = found
    has_score = counts > 0
    rates = successes / np.maximum(counts, 1)
    of_group = lambda index: estimate(rates[has_score & (groups == index)])
    of_k = lambda k: estimate(pass_at_k(successes[counts >= k], counts[counts >= k], k))
    return Evaluation(
        accuracy=estimate(rates[has_score]),
        pass_at_k={k: of_k(k) for k in (_default_ks(num_samples) if ks is None else ks)},
        accuracy_by_group={name: of_group(index) for index, name in enumerate(group_names)},
        reward=float(np.average(rewards, weights=counts)) if np.any(has_score) else float("nan"),
        completion_tokens=float(num_tokens.sum(dtype=np.int64) / (successes.size * num_samples)),
        successes=successes.astype(np.int64),
        num_samples=num_samples,
    )


def to_metrics(evaluation: Evaluation, prefix: str = "test_") -> dict[str, Any]:
    """Returns an evaluation as entries of `metrics.jsonl`: `test_accuracy`, `test_accuracy_error`, `test_pass_at_8`.

    Entries that are not defined, such as the standard error for a single problem, are None.
    """
    known = lambda value: None if np.isnan(value) else value
    metrics: dict[str, Any] = {
        "accuracy": known(evaluation.accuracy.mean),
        "accuracy_error": known(evaluation.accuracy.error),
        "reward": known(evaluation.reward),
        "completion_tokens": evaluation.completion_tokens,
    }
    for k, value in evaluation.pass_at_k.items():
        metrics |= {f"pass_at_{k}": known(value.mean), f"pass_at_{k}_error": known(value.error)}
    if evaluation.accuracy_by_group:
        by_group = evaluation.accuracy_by_group.items()
        metrics["accuracy_by_group"] = {name: known(value.mean) for name, value in by_group}
        metrics["accuracy_error_by_group"] = {name: known(value.error) for name, value in by_group}
    return {prefix + name: value for name, value in metrics.items()}
