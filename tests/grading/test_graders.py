"""Every built-in grader against cases that were written down by hand."""

import time
from fractions import Fraction

import numpy as np
import pytest

from dps_jax.grading import graders

TRUTH = {"numbers": [2, 3, 7, 7], "target": 25}


def check(grade, completion, answer, expected, info=None):
    result = grade(completion, answer, info or {})
    assert result.is_correct is expected
    assert result.reward == float(expected)


@pytest.mark.parametrize(
    ("completion", "answer", "is_correct"),
    [
        ("B", "B", True),
        ("  B\n", " B ", True),
        ("b", "B", False),
        ("B.", "B", False),
        ("The answer is B", "B", False),
        ("", "", True),
        ("", "B", False),
        ("42", 42, True),
        ("42.0", 42, False),
        ("é", "é", True),
        ("\u0661", "1", False),
    ],
)
def test_exact(completion, answer, is_correct):
    check(graders.make("exact", {}), completion, answer, is_correct)


def test_exact_without_case():
    grade = graders.make("exact", {"ignore_case": True})
    check(grade, "straSSe", "Straße", True)
    check(grade, "b", "B", True)
    check(grade, "a", "B", False)
    with pytest.raises(ValueError, match="answer: expected a text, got None"):
        grade("B", None, {})


NUMERIC = [
    # Plain numbers, the last one of several.
    ("42", 42, True),
    ("42", "42", True),
    ("so 7 + 5 = 12", 12, True),
    ("so 7 + 5 = 12", 7, False),
    ("It is 12. No, 13!", 13, True),
    ("It is 12. No, 13!", 12, False),
    ("42.", 42, True),
    ("42.0", 42, True),
    (".5", 0.5, True),
    ("5km", 5, True),
    ("5 km/h", 5, True),
    ("42", 43, False),
    ("", 42, False),
    ("none", 0, False),
    ("007", 7, True),
    # Signs.
    ("-4", -4, True),
    ("\u22124", -4, True),
    ("+4", 4, True),
    ("4", -4, False),
    ("x=-4", -4, True),
    ("(-4)", -4, True),
    ("10 - 4", 4, True),
    ("3-4", 4, True),
    ("pages 3\u22124", 4, True),
    ("-$5", -5, True),
    ("$-5", -5, True),
    ("-\\$5", -5, True),
    # Thousands.
    ("1,234,567", 1234567, True),
    ("$1,234.50", 1234.5, True),
    ("1{,}234", 1234, True),
    ("1\\,234", 1234, True),
    ("1, 2, 3", 3, True),
    ("1,2", 2, True),
    ("12,3456", 3456, True),
    # Powers of ten, fractions, percent.
    ("1.2e3", 1200, True),
    ("1.2E-3", 0.0012, True),
    ("1.2 \\times 10^{3}", 1200, True),
    ("1.2 \\cdot 10^3", 1200, True),
    ("3 × 10^-2", 0.03, True),  # noqa: RUF001
    ("2^10", 10, False),
    ("2^{10}", 10, False),
    ("2^10", 2, False),
    ("1/3", Fraction(1, 3), True),
    ("0.333333333", "1/3", True),
    ("0.333", "1/3", False),
    ("-\\frac{3}{4}", -0.75, True),
    ("\\dfrac{-3}{4}", -0.75, True),
    ("\\frac12", 0.5, True),
    ("\\frac{1,000}{10}", 100, True),
    ("\\frac{1}{0}", 1, False),
    ("1/0", 1, False),
    ("1 1/2", 0.5, True),
    ("50%", 0.5, True),
    ("50\\%", 50, True),
    ("0.5", "50%", True),
    ("50", "50%", True),
    ("0.5%", "50%", False),
    ("5%", 0.5, False),
    # Marked places.
    ("12 is wrong. #### 42\nand 3 more", 42, True),
    ("#### 42\n#### 43", 43, True),
    ("#### none 3", 3, True),
    ("3 #### none", 3, False),
    ("####\n42", 42, True),
    ("\\boxed{42} in 3 steps", 42, True),
    ("\\boxed{1} or \\boxed{\\text{at most } 2}", 2, True),
    ("\\boxed{\\frac{1}{2}} of 3", 0.5, True),
    ("\\boxed{\\boxed{5}} 6", 5, True),
    ("\\boxed{x} 5", 5, False),
    ("5 \\boxed{6", 6, True),
    ("\\boxed{5} then \\boxed{6", 5, True),
    ("\\boxed{5} #### 6", 6, True),
    ("#### 6 \\boxed{5}", 5, True),
    ("<answer>5</answer> after 6 steps", 5, True),
    ("<answer>5</answer> <answer>6</answer>", 6, True),
    ("<answer>\\boxed{5} in 6 steps</answer>", 5, True),
    ("<answer>5 <answer>6</answer>", 6, True),
    ("</answer> 5 <answer>", 5, True),
    ("<answer></answer> 5", 5, False),
    # Exactness and tolerance.
    ("10000001", 10000000, False),
    ("10000001.0", 10000000, False),
    ("10000000.5", 10000000, True),
    ("12345678901234567891", "12345678901234567890", False),
    ("0.0000001", 0, False),
    ("-0", 0, True),
    ("3.14159265", np.float32(3.14159265), True),
    ("3.1416", 3.14159265, False),
    ("7", np.int64(7), True),
    ("1e999", "1e999", True),
    # Texts that mean harm.
    ("\uff14\uff12", 42, False),
    ("4\uff12", 4, False),
    ("\u0664\u0662", 42, False),
    ("x2", 2, False),
    ("a_2", 2, False),
    ("__import__('os')", 0, False),
    ("10**10**10", 10, True),
    ("9" * 5000, 9, False),
    ("1" + ",111" * 30_000, 1, False),
    ("\\boxed{" * 50_000, 1, False),
    ("<answer>" * 50_000, 1, False),
    ("{" * 100_000 + "}" * 100_000, 1, False),
    ("-" * 200_000 + "1" * 3, -111, True),
    ("nan", 1, False),
    ("inf", 1, False),
]


@pytest.mark.parametrize(("completion", "answer", "is_correct"), NUMERIC, ids=[f"{row[0]:.20}" for row in NUMERIC])
def test_numeric(completion, answer, is_correct):
    start = time.process_time()
    check(graders.make("numeric", {}), completion, answer, is_correct)
    # Matching is linear; what is quadratic takes minutes on the longest of these texts.
    assert time.process_time() - start < 5.0


def test_numeric_answers_and_tolerance():
    grade = graders.make("numeric", {"relative_tolerance": 0.01})
    check(grade, "3.14", 3.14159, True)
    check(grade, "3.1", 3.14159, False)
    check(grade, "\\boxed{8}", "He needs 3 + 5 = <<3+5=8>>8 apples.\n#### 8", True)
    for answer in ("none", None, True, float("nan"), float("inf"), [3], ""):
        with pytest.raises(ValueError, match="answer: expected a number, or a text with one, got"):
            grade("3", answer, {})


@pytest.mark.parametrize(
    ("completion", "is_correct"),
    [
        ("<answer>2 + 3 * 7 + 2</answer>", False),  # 2 twice, one 7
        ("<answer>7 * (3 + 2 / 7)</answer>", False),  # 23
        ("<answer>3 * 7 + 7 - 2</answer>", False),  # 26
        ("<answer>7 + 7 * 3 - 2</answer>", False),
        ("<answer>2 * (7 + 7) - 3</answer>", True),
        ("<answer> (7+7)*2-3 = 25 </answer> Done.", True),
        ("<answer>(7+7)*2-3 = 26</answer>", False),
        ("<answer>(7+7)*2-3 = 25 = 25</answer>", False),
        ("<answer>1</answer> <answer>(7+7)*2-3</answer>", True),
        ("<answer>(7+7)*2-3</answer> <answer>1</answer>", False),
        ("Thinking.\n(7 + 7) * 2 - 3\n", True),
        ("(7 + 7) * 2 - 3\nis it", False),
        ("It is (7 + 7) * 2 - 3", False),
        ("(7 + 7) × 2 \u2212 3", True),  # noqa: RUF001
        ("-3 + (7 + 7) * 2", True),
        ("-(3 - (7 + 7) * 2)", True),
        ("+2 * (7 + 7) - 3", True),
        ("25", False),
        ("", False),
        ("<answer></answer>", False),
        ("2 * 14 - 3", False),
        ("(7 + 7) * 2 - 3 + 0", False),
        ("(7 + 7) * 2 - 3.0", False),
        ("(7 + 7) ** 2 - 3", False),
        ("(7 + 7) * 2 - 3 # 25", False),
        ("(7 + 7) * 2 - 03", False),
        ("(7 + 7) * 2 -", False),
        ("7, 7, 2, 3", False),
        ("(7 + 7) * 2 / (3 - 3)", False),
        ("7 / (7 - 7) + 2 + 3", False),
        ("__import__('os').system('true')", False),
        ("<answer>10**10**10</answer>", False),
        ("9**9**9**9", False),
        ("(" * 150 + "7" + ")" * 150, False),
        ("(" * 100_000 + "7" + ")" * 100_000, False),
        ("-" * 450 + "7", False),
        ("-" * 400 + "3 + (7 + 7) * 2", False),
        ("\uff17 + 7", False),
        ("7_7", False),
        ("lambda: 7", False),
        ("[7 for x in (7)]", False),
        ("7 if 7 else 2", False),
        ("'7' * 7", False),
        ("7 // 2", False),
        ("~7", False),
        ("\0", False),
        ("9" * 499, False),
    ],
)
def test_countdown(completion, is_correct):
    check(graders.make("countdown", {}), completion, TRUTH, is_correct)


def test_countdown_is_exact_and_reads_what_data_sets_hold():
    grade = graders.make("countdown", {})
    check(grade, "8 / (3 - 8 / 3)", {"numbers": [8, 8, 3, 3], "target": 24}, True)
    check(grade, "8 / (3 - 8 / 3)", '{"target": 24, "numbers": [3, 8, 3, 8]}', True)
    check(grade, "3 / 49 * 49", {"numbers": np.array([49, 3, 49]), "target": np.int64(3)}, True)
    check(grade, "7 / 2 * 2", {"numbers": [7.0, 2.0, 2.0], "target": 7.0}, True)
    check(grade, "7 / 2 - 2", {"numbers": [7, 2, 2], "target": 1}, False)
    for answer in ("25", [7, 7], {"numbers": [7]}, None, {"numbers": [7.5], "target": 7}):
        with pytest.raises((ValueError, TypeError)):
            grade("7", answer, {})


def test_countdown_rewards_a_well_formed_expression():
    grade = graders.make("countdown", {"format_reward": 0.1})
    assert grade("2 * (7 + 7) - 3", TRUTH, {}) == (True, 1.0)
    assert grade("2 * (7 + 7) + 3", TRUTH, {}) == (False, 0.1)
    assert grade("2 * 7 + 3", TRUTH, {}) == (False, 0.0)
    assert grade("2 / (7 - 7) + 3", TRUTH, {}) == (False, 0.0)


@pytest.mark.parametrize(
    ("completion", "answer", "is_correct"),
    [
        ("\\boxed{\\frac{1}{2}}", "0.5", True),
        ("The answer is $\\frac{2}{4}$.", "\\frac12", True),
        ("\\boxed{x^2 + 2x + 1}", "(x+1)^2", True),
        ("\\boxed{x^2 + 2x}", "(x+1)^2", False),
        ("\\boxed{\\sqrt{8}}", "2\\sqrt{2}", True),
        ("\\boxed{(2, 3)}", "(2,3)", True),
        ("\\boxed{(3, 2)}", "(2,3)", False),
        ("\\boxed{\\{1, 2\\}}", "\\{2, 1\\}", True),
        ("so \\boxed{1}. This is wrong. It has to be \\boxed{2}.", "2", True),
        ("\\boxed{2}", "$2$", True),
        ("\\boxed{2}", "\\boxed{2}", True),
        ("\\boxed{2}", 2, True),
        ("42", "42", True),
        ("no number at all", "42", False),
        ("", "42", False),
        ("\\boxed{B}", "B", True),
        ("\\boxed{C}", "B", False),
        ("__import__('os')", "42", False),
        ("\\boxed{" * 40, "42", False),
        ("\\boxed{" + "(" * 8 + "1" + ")" * 8 + "}", "2", False),
    ],
)
def test_math_verify(completion, answer, is_correct):
    check(graders.make("math-verify", {}), completion, answer, is_correct)


def test_math_verify_refuses_an_answer_that_it_cannot_read():
    with pytest.raises(ValueError, match="answer: expected a text that math-verify can read, got ''"):
        graders.make("math-verify", {})("\\boxed{2}", "", {})


def test_math_verify_parses_an_answer_once():
    from dps_jax.grading.graders import math_verify

    grade = graders.make("math-verify", {})
    math_verify._parsed_answer.cache_clear()
    for number in range(5):
        grade(f"\\boxed{{{number}}}", "3", {})
    assert math_verify._parsed_answer.cache_info().misses == 1
