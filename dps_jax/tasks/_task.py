"""The type of a task: problems as a function of (seed, split, index), and answers that can be verified."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax import _checks
from dps_jax._documented import documented


@documented
class Problems(NamedTuple):
    """N problems of a task; NumPy arrays.

    Attributes:
      prompts: the P tokens of each prompt, padded on the left, int32 [N, P]; token ids from V on, where V is the size
        of the vocabulary, are patches of a raster.
      facts: F numbers about each problem that scoring needs, such as its operands, in a layout that depends on the
        task, int32 [N, F].
      groups: prompt group of each problem, which is its level, as an index into `Task.group_names`, int32 [N].

    Example:
      >>> import numpy as np
      >>> from dps_jax import tasks
      >>> task = tasks.chain_sum()
      >>> problems = task.make_problems(0, "train", np.arange(3))  # seed, split, indices
      >>> [task.decode(prompt) for prompt in problems.prompts]
      ['780 + 470 >', '32 + 34 >', '33 + 88 >']
      >>> [task.group_names[group] for group in problems.groups]
      ['2 summands of 3 digits', '2 summands of 2 digits', '2 summands of 2 digits']
    """

    prompts: np.ndarray
    facts: np.ndarray
    groups: np.ndarray


@documented
class Score(NamedTuple):
    """The grades of completions.

    Attributes:
      is_correct: whether each completion was verified as correct, bool [...]; selection and accuracy depend on this.
      rewards: reward of each completion, which the policy is trained on, float32 [...]; may be shaped.

    Example:
      >>> import numpy as np
      >>> from dps_jax import tasks
      >>> task = tasks.chain_sum(levels=[(2, 1, 1.0)], test_levels=None)
      >>> problems = task.make_problems(0, "train", np.arange(2))
      >>> completions = task.make_solutions(0, "train", np.arange(2))
      >>> completions[1] = task.pad_id  # a completion without an end token is wrong
      >>> score = task.score(problems.facts, completions)
      >>> score.is_correct.tolist(), score.rewards.tolist()
      ([True, False], [1.0, 0.0])
    """

    is_correct: jax.Array
    rewards: jax.Array


@documented
class Task(NamedTuple):
    """The functions that draw, solve, score and decode the problems of a task.

    For given options, a problem depends on (seed, split, index) alone. In the tasks of this library a hash of the
    problem determines its split, so that no problem is in two splits, whatever the seeds; problems that differ only in
    the order of commuting numbers have the same hash.

    Attributes:
      name: name of the task in `TASKS`.
      vocabulary: text of every token; V is its length.
      pad_id: token of padding.
      end_id: token that ends an answer.
      prompt_length: length of a padded prompt, P.
      completion_length: length of a padded completion, T; large enough for every right answer with its end token.
      group_names: description of each level; the levels are the prompt groups.
      make_problems: (seed, split, indices int [N]) -> `Problems`; the splits are "train", "test" and "warmup", for the
        supervised warm-up on worked solutions before training.
      make_solutions: (seed, split, indices int [N], slips=None) -> an answer to each problem, int32 [N, T], correct or
        with the errors that `Slips` describes. Raises a ValueError if slips are given for a task without them.
      score: (facts [..., F], completions [..., T]) -> `Score`, in JAX, with any leading axes; F is the number of facts
        of a problem. Tokens after the first end token are ignored, and an answer without an end token is wrong.
      verify: (facts [F], completion [T]) -> whether the completion is correct, in plain Python; the tests compare
        `score` with this function.
      decode: tokens -> text; a raster in a prompt takes several lines.
      patch_bits: number of bits of an image patch in prompts, 0 for tasks without rasters; see `models.DecoderConfig`.

    Example:
      >>> import numpy as np
      >>> from dps_jax import tasks
      >>> task = tasks.build("steps")
      >>> (prompt,), (facts,), _ = task.make_problems(0, "train", np.array([0]))
      >>> (solution,) = task.make_solutions(0, "train", np.array([0]))
      >>> task.decode(prompt), task.decode(solution), task.verify(facts, solution)
      ('8 ^2+5 ^2+8 ^2+5 >', '9 9 6', True)
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
    """Returns the function `Task.score`, for any leading axes, from a function for one answer.

    Args:
      judge: (facts [F], completion [T]) -> is_correct, is_formed; a correct answer is always well-formed.
      num_facts: length of facts, F.
      completion_length: length of completions, T. Longer completions may be scored, by their first T tokens.
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
