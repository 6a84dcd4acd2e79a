"""Grader "countdown": checks an expression that uses each given number once and has the target as its value."""

from __future__ import annotations

import ast
import functools
import json
import numbers
import operator
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from . import Grader, _text
from ._grade import Grade

__all__ = ["make", "rules"]

_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_EXPRESSION = re.compile(r"[0-9+\-*/() \t]+")
_SYMBOLS = str.maketrans("\u2212\xd7\xb7\xf7", "-**/")
# More than any expression needs. The limit protects the parser of Python against malicious texts.
_MAX_CHARACTERS = 500


def rules(*, format_reward: float = 0.0) -> str:
    """Returns the grading rules in one or two sentences, for a prompt template.

    Args:
      format_reward: see `make`; the rules do not mention it.

    Example:
      >>> from dps_jax.grading.graders import countdown
      >>> print(countdown.rules())
      Reach the target with +, -, * and /, using each of the given numbers exactly once. Put ...
    """
    return (
        "Reach the target with +, -, * and /, using each of the given numbers exactly once. Put the expression in "
        "<answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>."
    )


def make(*, format_reward: float = 0.0) -> Grader:
    """Returns the grader: an expression is correct if it uses each number exactly once and its value is the target.

    The expression is the text between the last <answer> and </answer>; without tags, the last line that is not empty.
    It consists of whole numbers, + - * / (also the signs − × · ÷), brackets and spaces, up to 500 characters. If "= 24"
    follows it, 24 has to be the target. Values are exact fractions. A number or bracket may have a sign. The text is
    parsed and never executed.

    The answer of a row is {"numbers": [...], "target": n}, as in the data of TinyZero, or its JSON text.

    Args:
      format_reward: reward of an expression that uses each number once but has another value, in [0, 1].

    Raises:
      ValueError: for an option out of range.

    Example:
      >>> from dps_jax.grading.graders import countdown
      >>> grade = countdown.make(format_reward=0.1)
      >>> answer = {"numbers": [1, 2, 3, 7], "target": 8}
      >>> grade("<answer>(1 + 7) * (3 - 2)</answer>", answer, {})
      Grade(is_correct=True, reward=1.0)
      >>> grade("<answer>1 + 7 + 3 - 2</answer>", answer, {})  # another value
      Grade(is_correct=False, reward=0.1)
    """
    is_number = isinstance(format_reward, numbers.Real) and not isinstance(format_reward, bool)
    if not (is_number and 0 <= format_reward <= 1):
        raise ValueError(f"format_reward: expected a number in [0, 1], got {format_reward!r}")
    return functools.partial(_grade, float(format_reward))


def _grade(format_reward: float, completion: str, answer: Any, info: Mapping[str, Any]) -> Grade:
    expected, target = _facts(answer)
    tree = _parsed(_expression(completion), target)
    used: list[int] = []
    try:
        value = None if tree is None else _value(tree, used)
        is_formed = tree is not None and sorted(used) == expected
    except (ValueError, ZeroDivisionError, RecursionError):
        value, is_formed = None, False
    is_correct = is_formed and value == target
    return Grade(is_correct, 1.0 if is_correct else format_reward * is_formed)


def _facts(answer: Any) -> tuple[list[int], int]:
    """Returns the numbers, sorted, and the target; raises a ValueError if the answer is not valid."""
    facts = json.loads(answer) if isinstance(answer, str) else answer
    if not isinstance(facts, Mapping) or not {"numbers", "target"} <= set(facts):
        raise ValueError(f'answer: expected {{"numbers": [...], "target": n}}, got {answer!r:.80}')
    values = [Fraction(str(value)) for value in (*facts["numbers"], facts["target"])]
    if any(value.denominator != 1 for value in values):
        raise ValueError(f"answer: expected whole numbers, got {answer!r:.80}")
    *given, target = (int(value) for value in values)
    return sorted(given), target


def _expression(completion: str) -> str:
    tagged = _text.last_tagged(completion, "answer")
    return (tagged if tagged is not None else completion.strip().rpartition("\n")[2]).strip()


def _parsed(expression: str, target: int) -> ast.expr | None:
    """Returns the syntax tree of an expression; None if it is not valid or ends in "=" and a wrong value."""
    if len(expression) > _MAX_CHARACTERS:
        return None
    formula, equals, value = (part.strip() for part in expression.translate(_SYMBOLS).partition("="))
    if (equals and value != str(target)) or not _EXPRESSION.fullmatch(formula):
        return None
    try:
        return ast.parse(formula, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: brackets nested too deeply
        return None


def _value(node: ast.expr, used: list[int]) -> Fraction:
    """Returns the value of a tree and appends its numbers to a list; raises a ValueError for other nodes."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _value(node.operand, used)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        first, second = _value(node.left, used), _value(node.right, used)
        return _OPERATORS[type(node.op)](first, second)
    raise ValueError(f"not allowed: {type(node).__name__}")
