"""Slips: random errors in the solutions of a warm-up, so that the warmed-up policy is able but unreliable.

Every one-step fact of a task, such as 7 + 8 with a carry, has a slip rate of its own and a habitual wrong answer. Steps
after a slip continue from the wrong result. A policy that imitates such solutions is able to do every step and makes
the same errors at the same rates, so that reinforcement learning can raise its success rates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dps_jax import _checks
from dps_jax._documented import documented
from dps_jax.tasks._generation import Stream


@documented
class Slips(NamedTuple):
    """The frequency and kind of errors (slips) in worked solutions; an argument of `Task.make_solutions`.

    Solutions with slips are meant for the supervised warm-up, in which a policy learns to imitate worked solutions
    before reinforcement learning. A fact is one elementary result that the solution needs, such as the sum digit of a
    column; its slip rate is the probability that it is written wrongly. Every fact has one habitual wrong answer. The
    facts of a task are divided into families: the columns of `chain_sum`, the kinds of operations of `steps`, and the
    kinds of questions of `geometry`.

    Attributes:
      lowest: smallest slip rate of a fact.
      highest: largest slip rate of a fact; slip rates are uniformly distributed between `lowest` and `highest`.
      habit_share: share of the slips on a fact that write its habitual wrong answer; the rest are drawn uniformly from
        all wrong answers.
      num_spared: number of families of facts that never slip. Families are ordered from the easiest to the hardest, and
        the first `num_spared` are spared.
      seed: random seed for the slip rates and the habitual wrong answers.

    Example:
      >>> import numpy as np
      >>> from dps_jax import tasks
      >>> task, indices = tasks.build("steps"), np.arange(1000)
      >>> right = task.make_solutions(0, "warmup", indices)
      >>> written = task.make_solutions(0, "warmup", indices, tasks.Slips(lowest=0.1, highest=0.3))
      >>> float(np.mean((written == right).all(axis=1)))  # share of solutions without a slip
      0.478
    """

    lowest: float = 0.1
    highest: float = 0.7
    habit_share: float = 0.5
    num_spared: int = 0
    seed: int = 0


def check_slips(slips: Slips) -> Slips:
    """Returns the slips.

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
    """Returns the answer to one step as it is written, right or with a slip, int64 [N].

    Args:
      slips: rates of slips; None is no slips.
      stream: random streams of the solutions.
      draw: index of the step, so that every step has random numbers of its own.
      facts: index of the fact that the step needs, int64 [N], >= 0.
      families: family of the fact, int or int64 [N].
      right: right answer, int64 [N].
      num_answers: number of possible answers, which are 0, ..., num_answers - 1, int or int64 [N]; at least 2.
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
