"""Grader "exact": checks that the whole completion is the expected text."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from . import Grader
from ._grade import Grade

__all__ = ["make", "rules"]


def rules(*, ignore_case: bool = False) -> str:
    """Returns the grading rules in one or two sentences, for a prompt template.

    Args:
      ignore_case: see `make`.

    Example:
      >>> from dps_jax.grading.graders import exact
      >>> print(exact.rules())
      Your whole reply has to be the expected answer and nothing else.
    """
    case = ", in capital or small letters" if ignore_case else ""
    return f"Your whole reply has to be the expected answer and nothing else{case}."


def make(*, ignore_case: bool = False) -> Grader:
    """Returns the grader: a completion is correct if it equals the answer, after white space around both is removed.

    The answer of a row is a text, or a number that is compared as Python prints it.

    Args:
      ignore_case: whether capital and small letters count as equal.

    Raises:
      ValueError: for an option of the wrong type.

    Example:
      >>> from dps_jax.grading.graders import exact
      >>> grade = exact.make()
      >>> grade(" 42 ", 42, {}), grade("It is 42", 42, {})
      (Grade(is_correct=True, reward=1.0), Grade(is_correct=False, reward=0.0))
    """
    if not isinstance(ignore_case, bool):
        raise ValueError(f"ignore_case: expected True or False, got {ignore_case!r}")
    return functools.partial(_grade, ignore_case)


def _grade(ignore_case: bool, completion: str, answer: Any, info: Mapping[str, Any]) -> Grade:
    if answer is None:
        raise ValueError("answer: expected a text, got None")
    given, expected = completion.strip(), str(answer).strip()
    if ignore_case:
        given, expected = given.casefold(), expected.casefold()
    return Grade(given == expected, float(given == expected))
