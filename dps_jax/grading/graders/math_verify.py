"""Grader "math-verify": checks that the answer of the completion is mathematically equal to the expected one."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

from . import Grader
from ._grade import Grade

__all__ = ["make", "rules"]

# Number of answers whose parsed form is cached; the completions of a completion group have the same answer.
_NUM_CACHED = 4096


def rules() -> str:
    r"""Returns the grading rules in one or two sentences, for a prompt template.

    Example:
      >>> from dps_jax.grading.graders import math_verify
      >>> print(math_verify.rules())
      Put your final answer in \boxed{}. Any form that is mathematically equal to the expected one is accepted.
    """
    return "Put your final answer in \\boxed{}. Any form that is mathematically equal to the expected one is accepted."


def make() -> Grader:
    r"""Returns the grader: a completion is correct if math-verify finds its answer equal to the expected one.

    The answer of a completion is its last \boxed{...}, or else its last formula or number. The answer of a row is a
    number or a text; a text without \boxed and $ is parsed as the content of \boxed{}.

    The grader itself has no time limit. `grading.GraderPool` has a time limit, and ends a process that exceeds this
    limit.

    Example:
      >>> from dps_jax.grading.graders import math_verify
      >>> grade = math_verify.make()
      >>> grade("So the answer is \\boxed{0.5}.", "1/2", {})
      Grade(is_correct=True, reward=1.0)
    """
    # The library warns in every process that its own time limits are off.
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Parsing the first text takes a large part of a second, which should not count as time of an answer.
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
