"""Slips: solutions as a sloppy teacher writes them, for a warm-up that ends with ability which is not always used.

Every one-step fact of a task, such as 7 + 8 with a carry, has a slip rate of its own and a habitual wrong answer. What
follows a slip goes on from what was written. A policy warmed up on such solutions can do every step and often does not:
it is calibrated to its teacher, and policy gradients can bring out what is there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dps_jax import _checks
from dps_jax.tasks._generation import Stream


class Slips(NamedTuple):
    """How often and how the solutions of a warm-up go wrong.

    Attributes:
      lowest: least slip rate of a fact.
      highest: largest slip rate of a fact; the rates of facts are spread uniformly between the two.
      habit_share: share of a fact's slips that are its habitual wrong answer; the rest are any wrong answer.
      num_spared: families of facts, the easiest first in the task's own order, in which nothing goes wrong.
      seed: of rates and habits.
    """

    lowest: float = 0.1
    highest: float = 0.7
    habit_share: float = 0.5
    num_spared: int = 0
    seed: int = 0


def check_slips(slips: Slips) -> Slips:
    """Returns slips.

    Raises:
      ValueError: for a rate or share out of range.
    """
    _checks.check_in_interval("slips.lowest", slips.lowest, 0.0, 1.0)
    _checks.check_in_interval("slips.highest", slips.highest, slips.lowest, 1.0)
    _checks.check_in_interval("slips.habit_share", slips.habit_share, 0.0, 1.0)
    _checks.check_int("slips.num_spared", slips.num_spared, at_least=0)
    _checks.check_int("slips.seed", slips.seed, at_least=0, at_most=2**63 - 1)
    return slips


def write(
    slips: Slips | None,
    stream: Stream,
    draw: int,
    facts: np.ndarray,
    families: Any,
    right: np.ndarray,
    num_answers: Any,
) -> np.ndarray:
    """Returns what is written as the answer of one step, int64 [N].

    Args:
      slips: how often it goes wrong; None is never.
      stream: of the solutions.
      draw: number of the step, so that every step has chances of its own.
      facts: number of the fact that the step takes, int64 [N], >= 0.
      families: the family that the fact is of, int or int64 [N].
      right: the right answer, int64 [N].
      num_answers: answers are in [0, num_answers), int or int64 [N]; at least 2.
    """
    if slips is None:
        return right
    of_fact = Stream(facts.astype(np.uint64)).fold_in(slips.seed)
    rates = slips.lowest + (slips.highest - slips.lowest) * of_fact.floats(0)
    rates = np.where(np.asarray(families) < slips.num_spared, 0.0, rates)
    num_wrong = np.asarray(num_answers) - 1
    chances = stream.fold_in(draw)
    is_habit = chances.floats(1) < slips.habit_share
    shift = np.where(is_habit, of_fact.integers(1, num_wrong), chances.integers(2, num_wrong))
    return np.where(chances.floats(0) < rates, (right + 1 + shift) % num_answers, right)
