"""Countdown: answers written by hand, and a judge that reads the text."""

from fractions import Fraction

import numpy as np
import pytest

from dps_jax import tasks

PAD, END = 0, 1
NUMBER = 7
OPERATORS = dict(zip("+-*/", range(3, 7), strict=True))


@pytest.fixture(scope="module")
def task():
    return tasks.build("countdown")


def tokens(text, length=17):
    """Returns the tokens of an answer such as `3 + 4 = 7; 7 * 2 = 14 .`, where the dot is the end."""
    found = []
    for word in text.replace("=", " ").replace(";", " ").split():
        found.append(END if word == "." else OPERATORS.get(word, NUMBER + int(word) if word.isdigit() else PAD))
    return found + [PAD] * (length - len(found))


# Numbers 2 3 4, target 14.
ANSWERS = {
    "3 + 4 = 7; 7 * 2 = 14 .": True,
    "4 + 3 = 7; 2 * 7 = 14 .": True,
    "3 * 4 = 12; 2 + 12 = 14 .": True,
    "3 + 4 = 7; 7 * 2 = 14 . 9 9": True,  # tokens after the end
    "3 + 4 = 7; 7 * 2 = 14": False,  # no end
    "3 + 4 = 7; 7 + 7 = 14 .": False,  # a result used twice
    "3 + 4 = 8; 7 * 2 = 14 .": False,  # a wrong step before a right one
    "3 + 4 = 7; 7 * 2 = 13 .": False,
    "2 * 7 = 14 .": False,  # a number that was not given
    "3 + 4 = 7 .": False,  # truncated
    "3 + 4 = 7; 7 * 2 = 14; 14 + 0 = 14 .": False,  # a step too many
    "3 * 3 = 9; 9 + 5 = 14 .": False,
    "4 - 4 = 0; 14 / 0 = 14 .": False,
    ".": False,
    "": False,
    ". 3 + 4 = 7; 7 * 2 = 14 .": False,
    "+ 3 4 = 7; 7 * 2 = 14 .": False,
}


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_by_hand(task, text):
    facts = [3, 14, 2, 3, 4, 0, 0]
    assert task.verify(facts, tokens(text)) is ANSWERS[text]
    assert bool(task.score(np.array(facts), np.array(tokens(text))).is_correct) is ANSWERS[text]


@pytest.mark.parametrize(
    ("numbers", "target", "text", "is_right"),
    [
        ([6, 2], 3, "6 / 2 = 3 .", True),
        ([2, 6], 3, "6 / 2 = 3 .", True),
        ([7, 2], 3, "7 / 2 = 3 .", False),  # not a whole number
        ([0, 2], 0, "0 / 2 = 0 .", True),
        ([2, 0], 0, "2 / 0 = 0 .", False),
        ([0, 0], 0, "0 / 0 = 0 .", False),
        ([2, 5], 3, "5 - 2 = 3 .", True),
        ([2, 5], 3, "2 - 5 = 3 .", False),
        ([4, 4], 8, "4 + 4 = 8 .", True),  # given twice, used twice
        ([4, 3], 8, "4 + 4 = 8 .", False),
    ],
)
def test_single_steps(task, numbers, target, text, is_right):
    facts = [2, target, *numbers, 0, 0, 0]
    assert task.verify(facts, tokens(text)) is is_right
    assert bool(task.score(np.array(facts), np.array(tokens(text))).is_correct) is is_right


def test_text_of_prompts_and_answers(task):
    assert task.decode([PAD, PAD, NUMBER + 6, NUMBER + 2, 2, NUMBER + 12]) == "6 2 > 12"
    assert task.decode(tokens("3 + 4 = 7; 7 * 2 = 14 . 5")) == "3 + 4 = 7, 7 * 2 = 14"
    assert task.decode(tokens("3 + .")) == "3 +"


def test_solutions_hold_for_a_judge_that_reads_the_text():
    task = tasks.build("countdown", levels=((2, 9, 1), (4, 40, 1), (6, 99, 1)))
    indices = np.arange(600)
    problems, solutions = task.make_problems(0, "warmup", indices), task.make_solutions(0, "warmup", indices)
    for prompt, solution in zip(problems.prompts, solutions, strict=True):
        given, target = task.decode(prompt).split(">")
        have = [Fraction(word) for word in given.split()]
        for step in task.decode(solution).split(","):
            first, sign, second, _, result = step.split()
            first, second, result = (Fraction(word) for word in (first, second, result))
            have.remove(first)
            have.remove(second)
            value = {"+": first.__add__, "-": first.__sub__, "*": first.__mul__, "/": first.__truediv__}[sign](second)
            assert value == result
            have.append(result)
        assert have == [Fraction(target)]
