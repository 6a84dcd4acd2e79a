"""Wrong references: training prompts whose reference is wrong, so that no completion is ever graded as correct.

Real training sets contain such prompts. No input of a selector distinguishes them from hard prompts.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax import _checks
from dps_jax.tasks import _generation
from dps_jax.tasks._task import Problems, Score


def is_broken(seed: int, split: str, indices: np.ndarray, share: float) -> np.ndarray:
    """Returns which problems have a wrong reference, bool [N]; only training problems have one.

    Args:
      seed: seed of the problems.
      split: name of the split.
      indices: indices of the problems, int [N], >= 0.
      share: expected share of training problems with a wrong reference, in [0, 1].

    Raises:
      ValueError: for a share out of range, an unknown split or a negative index.
    """
    _checks.check_in_interval("share", share, 0.0, 1.0)
    chances = _generation.reference_streams(seed, split, indices).floats(0)
    return (chances < share) & (split == "train")


def graded(problems: Problems, is_broken: np.ndarray) -> Problems:
    """Returns the problems with one more column of facts, which `graded_score` needs: 1 if the reference is wrong.

    Args:
      problems: N problems.
      is_broken: whether the reference of each is wrong, bool [N].
    """
    column = np.asarray(is_broken, np.int32)[:, None]
    return problems._replace(facts=np.concatenate([problems.facts, column], axis=1))


def graded_score(
    score: Callable[[jax.Array, jax.Array], Score], format_reward: float
) -> Callable[[jax.Array, jax.Array], Score]:
    """Returns the function `Task.score` for problems from `graded`.

    A right answer to a problem with a wrong reference is graded as a well-formed wrong answer.

    Args:
      score: `Task.score` of the task.
      format_reward: option `format_reward` of the task.
    """

    def apply(facts: jax.Array, completions: jax.Array) -> Score:
        facts = jnp.asarray(facts)
        found = score(facts[..., :-1], completions)
        is_refused = found.is_correct & (facts[..., -1] > 0)
        return Score(
            is_correct=found.is_correct & ~is_refused,
            rewards=jnp.where(is_refused, jnp.float32(format_reward), found.rewards),
        )

    return apply
