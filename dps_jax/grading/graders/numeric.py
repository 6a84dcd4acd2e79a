"""Grader "numeric": checks that the last number of the completion is the expected number."""

from __future__ import annotations

import functools
import math
import numbers
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from . import Grader, _text
from ._grade import Grade

__all__ = ["make", "rules"]

_MINUS = "\N{MINUS SIGN}"
# Digits are 0 to 9 only; `\d` would match those of all scripts. `++` does not backtrack, so that matching is linear.
_DIGITS = r"(?:[0-9]{1,3}(?:(?:,|\{,\}|\\,)[0-9]{3})++(?![0-9])|[0-9]++)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]++)?|\.[0-9]++)(?!\d)"
_WHOLE = r"[-+\u2212]?[0-9]{1,3}"
_TIMES_TEN = (
    r"\s?(?:\\times|\\cdot|[\xd7\xb7*])\s?10\s?\^\s?"
    rf"(?:\{{\s?(?P<power>{_WHOLE})\s?\}}|(?P<bare_power>{_WHOLE})(?![0-9]))"
)
_FRACTION = (
    r"\\[dt]?frac\s?(?:\{\s?(?P<above>[-+\u2212]?[0-9][0-9.,]*+)\s?\}|(?P<digit_above>[0-9]))"
    r"\s?(?:\{\s?(?P<below>[-+\u2212]?[0-9][0-9.,]*+)\s?\}|(?P<digit_below>[0-9]))"
)
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]}])(?P<sign>[-+\u2212])(?:\\?[$€£])?)?"
    rf"(?:{_FRACTION}|(?<![\w.^])(?<!\^\{{)(?P<decimal>{_DECIMAL})"
    rf"(?:{_TIMES_TEN}|[eE](?P<exponent>[-+]?[0-9]{{1,3}})(?![0-9])|\s?/\s?(?P<divisor>{_DECIMAL}))?(?!\s?\^))"
    r"(?P<percent>\s?\\?%)?"
)


class _Number(NamedTuple):
    value: Fraction
    is_percent: bool


def rules(*, relative_tolerance: float = 1e-6) -> str:
    """Returns the grading rules in one or two sentences, for a prompt template.

    Args:
      relative_tolerance: see `make`; the rules do not mention it.

    Example:
      >>> from dps_jax.grading.graders import numeric
      >>> print(numeric.rules())
      The last number of your reply is your answer. Write it as digits, for example after ####...
    """
    return "The last number of your reply is your answer. Write it as digits, for example after #### or in \\boxed{}."


def make(*, relative_tolerance: float = 1e-6) -> Grader:
    r"""Returns the grader: a completion is correct if its last number is the expected one.

    The grader searches the text between the last <answer> and </answer>, or the whole text if there is no such pair.
    The number is taken from the last \boxed{...} or, if the last "####" comes later, from the first line of text after
    it; without both, from anywhere in the text. An unfinished \boxed{ or <answer> is ignored. If the marked place has
    no number, the completion is wrong.

    A number is one of:
      * digits 0 to 9, with or without a decimal point: 42, 4.2, .5;
      * thousands separated by "," or LaTeX's "{,}" and "\,", in groups of three: 1,234.5;
      * with e and an exponent, or times a power of ten: 1.2e3, 1.2 \times 10^{3};
      * a fraction: 3/4, \frac{3}{4}, \frac34.
    A sign ("-", "+" or the minus sign U+2212) belongs to the number if it is right before it or before its currency
    sign, and not right after a word, a number or a closing bracket: 3-4 ends in 4. A percent sign may follow, or any
    other text: 5km, or 42. with a full stop.

    The following are not numbers: digits within a word or an index (x2), other powers (2^10), digits of other scripts,
    more than 4300 digits, and fractions with denominator zero. A mixed number (1 1/2) is parsed as its fraction, 1/2.

    Two whole numbers have to be equal. Other numbers may differ by `relative_tolerance` times the expected number. If
    only one of the two has a percent sign, 50% is equal to both 0.5 and 50.

    The answer of a row is a number, or a text whose last number counts, such as a solution of GSM8K that ends in
    "#### 42".

    Args:
      relative_tolerance: largest relative error of numbers that are not whole, in [0, 1).

    Raises:
      ValueError: for an option out of range.

    Example:
      >>> from dps_jax.grading.graders import numeric
      >>> grade = numeric.make(relative_tolerance=0.01)
      >>> [grade(completion, 1234.5, {}).is_correct for completion in ("It costs $1,234.50.", "x = 1.23e3", "1,300")]
      [True, True, False]
    """
    is_number = isinstance(relative_tolerance, numbers.Real) and not isinstance(relative_tolerance, bool)
    if not (is_number and 0 <= relative_tolerance < 1):
        raise ValueError(f"relative_tolerance: expected a number in [0, 1), got {relative_tolerance!r}")
    return functools.partial(_grade, Fraction(relative_tolerance))


def _grade(relative_tolerance: Fraction, completion: str, answer: Any, info: Mapping[str, Any]) -> Grade:
    expected = _expected_number(answer)
    given = _last_number(completion)
    is_correct = given is not None and _is_equal(given, expected, relative_tolerance)
    return Grade(is_correct, float(is_correct))


def _expected_number(answer: Any) -> _Number:
    """Returns the number that an answer stands for; raises ValueError if there is none."""
    if hasattr(answer, "item") and getattr(answer, "shape", None) == ():
        answer = answer.item()
    number = None
    if isinstance(answer, str):
        number = _last_number(answer)
    elif isinstance(answer, (int, float, Fraction)) and not isinstance(answer, bool) and math.isfinite(answer):
        number = _Number(Fraction(answer), False)
    if number is None:
        raise ValueError(f"answer: expected a number, or a text with one, got {answer!r:.80}")
    return number


def _is_equal(given: _Number, expected: _Number, relative_tolerance: Fraction) -> bool:
    readings = [(given.value, expected.value)]
    if given.is_percent != expected.is_percent:
        readings.append(
            (given.value / 100, expected.value) if given.is_percent else (given.value, expected.value / 100)
        )
    for one, other in readings:
        are_whole = one.denominator == other.denominator == 1
        if abs(one - other) <= (0 if are_whole else relative_tolerance * abs(other)):
            return True
    return False


def _last_number(completion: str) -> _Number | None:
    place = _text.last_tagged(completion, "answer")
    place = completion if place is None else place
    boxed, after_hashes = _text.last_boxed(place), place.rfind("####")
    if after_hashes >= 0 and (boxed is None or after_hashes >= boxed[0]):
        place = place[after_hashes + 4 :].lstrip().partition("\n")[0]
    elif boxed is not None:
        place = boxed[1]
    last = None
    for match in _NUMBER.finditer(place):
        last = match
    return None if last is None else _value(last)


def _value(match: re.Match[str]) -> _Number | None:
    """Returns the number of a match of `_NUMBER`; None if it is too long or has denominator zero."""
    power = match["power"] or match["bare_power"] or match["exponent"] or "0"
    divisor = match["divisor"] or match["below"] or match["digit_below"] or "1"
    try:
        value = _plain(match["decimal"] or match["above"] or match["digit_above"]) / _plain(divisor)
    except (ValueError, ZeroDivisionError):
        return None
    value *= Fraction(10) ** int(_plain(power))
    return _Number(-value if match["sign"] in ("-", _MINUS) else value, match["percent"] is not None)


def _plain(digits: str) -> Fraction:
    """Returns the value of a decimal with separators."""
    for separator in ("{,}", "\\,", ","):
        digits = digits.replace(separator, "")
    return Fraction(digits.replace(_MINUS, "-"))
