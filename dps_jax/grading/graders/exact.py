"""Grader "exact": the whole completion is the expected text."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from . import Grader
from ._grade import Grade

__all__ = ["make", "rules"]


def rules(*, ignore_case: bool = False) -> str:
    """Returns the grading rules as a model may read them."""
    case = ", in capital or small letters" if ignore_case else ""
    return f"Your whole reply has to be the expected answer and nothing else{case}."


def make(*, ignore_case: bool = False) -> Grader:
    """Returns the grader: is the completion the answer, white space around both left out?

    The answer is a text, or a number whose Python text counts.

    Args:
      ignore_case: capital and small letters are the same.

    Raises:
      ValueError: for an option of another type.
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
