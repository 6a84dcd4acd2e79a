"""What a task is: problems as a function of (seed, split, index), and answers that can be verified."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax import _checks


class Problems(NamedTuple):
    """Some problems; NumPy arrays.

    Attributes:
      prompts: tokens, padded on the left, int32 [N, P]; ids from V on are patches of a raster.
      facts: what scoring needs, in the task's own layout, int32 [N, F].
      groups: difficulty level, index into `Task.group_names`, int32 [N].
    """

    prompts: np.ndarray
    facts: np.ndarray
    groups: np.ndarray


class Score(NamedTuple):
    """What some answers are worth.

    Attributes:
      is_correct: verified, bool [...]. What selection and accuracy look at.
      rewards: what the policy is trained on, float32 [...]; may be shaped.
    """

    is_correct: jax.Array
    rewards: jax.Array


class Task(NamedTuple):
    """A family of problems.

    A problem is a function of (seed, split, index) alone. Which split a problem belongs to is decided by the problem
    itself, up to reordering, so that the splits share none, whatever the seeds.

    Attributes:
      name: of the task.
      vocabulary: text of every token; V is its length.
      pad_id: the token of padding.
      end_id: the token that ends an answer.
      prompt_length: P.
      completion_length: T, enough for every answer with its end.
      group_names: what a level is, in words.
      make_problems: (seed, split, indices int [N]) -> `Problems`; the splits are "train", "test" and "warmup".
      make_solutions: (seed, split, indices int [N], slips=None) -> one answer each, int32 [N, T]: correct, or with the
        slips of `tasks.Slips`. Raises ValueError where a task has no slips.
      score: (facts [..., F], completions [..., T]) -> `Score`; JAX, any leading axes. What follows the first end token
        is not part of an answer, and an answer without one is wrong.
      verify: (facts [F], completion [T]) -> bool, in plain Python: what `score` is tested against.
      decode: tokens -> text; several lines where there is a raster.
      patch_bits: bits of the patches of rasters in prompts, 0 where there are none; see `models.DecoderConfig`.
    """

    name: str
    vocabulary: tuple[str, ...]
    pad_id: int
    end_id: int
    prompt_length: int
    completion_length: int
    group_names: tuple[str, ...]
    make_problems: Callable[[int, str, np.ndarray], Problems]
    make_solutions: Callable[..., np.ndarray]
    score: Callable[[jax.Array, jax.Array], Score]
    verify: Callable[[Sequence[int], Sequence[int]], bool]
    decode: Callable[[Sequence[int]], str]
    patch_bits: int = 0


def scorer(
    judge: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    *,
    num_facts: int,
    completion_length: int,
    format_reward: float,
) -> Callable[[jax.Array, jax.Array], Score]:
    """Returns `Task.score`, for any leading axes, from the judgement of one answer.

    Args:
      judge: (facts [F], completion [T]) -> is_correct, is_formed, where a correct answer is well-formed too.
      num_facts: F.
      completion_length: T. Longer completions may be scored: no right answer goes beyond T.
      format_reward: reward of an answer that is well-formed but wrong, in [0, 1].
    """
    _checks.check_in_interval("format_reward", format_reward, 0.0, 1.0)
    judge_all = jnp.vectorize(judge, signature="(f),(t)->(),()")

    def score(facts: jax.Array, completions: jax.Array) -> Score:
        facts, completions = jnp.asarray(facts), jnp.asarray(completions)
        if facts.ndim < 1 or facts.shape[-1] != num_facts:
            raise ValueError(f"facts: expected shape [..., {num_facts}], got {list(facts.shape)}")
        if completions.ndim < 1 or completions.shape[-1] < completion_length:
            raise ValueError(
                f"completions: expected shape [..., {completion_length}] or longer, got {list(completions.shape)}"
            )
        is_correct, is_formed = judge_all(facts, completions[..., :completion_length])
        rewards = jnp.where(is_correct, 1.0, jnp.where(is_formed, format_reward, 0.0))
        return Score(is_correct=is_correct, rewards=rewards.astype(jnp.float32))

    return score


def words(tokens: Sequence[int], vocabulary: Sequence[str], *, pad_id: int, end_id: int) -> list[str]:
    """Returns the text of every token up to the first end, without padding.

    Raises:
      ValueError: for a token outside the vocabulary.
    """
    texts = []
    for token in (int(token) for token in tokens):
        if not 0 <= token < len(vocabulary):
            raise ValueError(f"tokens: expected ids in [0, {len(vocabulary)}), got {token}")
        if token == end_id:
            break
        if token != pad_id:
            texts.append(vocabulary[token])
    return texts
