"""Grader "math-verify": the completion's answer is mathematically the same as the expected one."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

from . import Grader
from ._grade import Grade

__all__ = ["make", "rules"]

# Answers whose parsed form is kept; the completions of a completion group have the same one.
_NUM_CACHED = 4096


def rules() -> str:
    """Returns the grading rules as a model may read them."""
    return "Put your final answer in \\boxed{}. Any form that is mathematically equal to the expected one is accepted."


def make() -> Grader:
    r"""Returns the grader: are the two answers equal, as the library math-verify reads and compares them?

    The completion's answer is the last \boxed{...}, or else the last formula or number. The answer is a text; one
    without \boxed or $ is read as if it stood in \boxed{}; or a number.

    There is no time limit but that of the pool, whose processes can be ended in the middle of a computation.
    """
    # It warns of every process that its own time limits, by signals, are off.
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # The first text takes a large part of a second, which no answer should be charged for.
    _parsed_answer("1")
    return _grade


def _grade(completion: str, answer: Any, info: Mapping[str, Any]) -> Grade:
    import math_verify

    expected = _parsed_answer(str(answer))
    given = math_verify.parse(completion, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    is_correct = bool(math_verify.verify(expected, given, timeout_seconds=None))
    return Grade(is_correct, float(is_correct))


@functools.lru_cache(maxsize=_NUM_CACHED)
def _parsed_answer(answer: str) -> list[Any]:
    import math_verify

    text = answer if "\\boxed" in answer or "$" in answer else f"\\boxed{{{answer}}}"
    parsed = math_verify.parse(text, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    if not parsed:
        raise ValueError(f"answer: expected a text that math-verify can read, got {answer!r:.80}")
    return parsed
