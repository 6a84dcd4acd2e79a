"""The type of a grade, and the conversion of values that graders return."""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

# Rewards become float32.
_LARGEST = 3.4028235e38


class Grade(NamedTuple):
    """The grade of one completion.

    Attributes:
      is_correct: whether the completion is correct; predictors observe this.
      reward: reward of the completion, which the policy is trained on.

    Example:
      >>> from dps_jax import grading
      >>> def grade(completion, answer, info):  # a grader of your own
      ...     is_formed = completion.startswith("The answer is")
      ...     is_correct = is_formed and completion.endswith(answer)
      ...     return grading.Grade(is_correct, 1.0 if is_correct else 0.1 * is_formed)
      >>> grade("The answer is 41", "42", {})
      Grade(is_correct=False, reward=0.1)
    """

    is_correct: bool
    reward: float


class InvalidGradeError(ValueError):
    """A grader returned a value that is not a grade."""


def as_grade(value: Any, threshold: float) -> Grade:
    """Returns the `Grade` that a value returned by a grader stands for.

    Args:
      value: a bool, a real number, or a pair of both; any of them may be a scalar of NumPy, JAX or torch.
      threshold: smallest number that counts as correct, if `value` is a number only.

    Raises:
      InvalidGradeError: for a NaN, an infinity, or a value of another type.
    """
    if isinstance(value, tuple) and len(value) == 2:
        is_correct = _as_python(value[0])
        if isinstance(is_correct, bool):
            return Grade(is_correct, _as_reward(_as_python(value[1]), value))
        raise InvalidGradeError(f"expected a pair (bool, number), got {_shortened(value)}")
    number = _as_python(value)
    if isinstance(number, bool):
        return Grade(number, float(number))
    reward = _as_reward(number, value)
    return Grade(reward >= threshold, reward)


def _as_python(value: Any) -> Any:
    is_scalar = hasattr(value, "item") and getattr(value, "shape", None) == ()
    return value.item() if is_scalar else value


def _as_reward(number: Any, value: Any) -> float:
    if not isinstance(number, numbers.Real):
        raise InvalidGradeError(f"expected a bool, a number or a pair of both, got {_shortened(value)}")
    try:
        reward = float(number)
    except OverflowError:
        reward = math.inf
    if not abs(reward) <= _LARGEST:
        raise InvalidGradeError(f"expected a finite reward, got {_shortened(value)}")
    return reward


def _shortened(value: Any) -> str:
    """Returns the type and the beginning of a value, or the type alone of an integer too large to be printed."""
    try:
        return f"{type(value).__name__} {value!r:.80}"
    except ValueError:
        return type(value).__name__
