"""Steps: answers by hand, and solutions read back from the text of their prompts by Python's own arithmetic."""

import numpy as np
import pytest

from dps_jax import tasks


@pytest.fixture(scope="module")
def task():
    return tasks.build("steps")


def evaluated(prompt):
    """Returns the digits that a prompt's text asks for."""
    digit, *operations = prompt.replace(">", "").split()
    digits = [int(digit)]
    for operation in operations:
        text = f"x**2{operation[2:]}" if operation.startswith("^") else operation
        text = f"{text}x" if text.endswith("-") else text if "x" in text else f"x{text}"
        digits.append(eval(text, {"x": digits[-1]}) % 10)
    return digits[1:]


def test_solutions_are_what_the_text_says(task):
    indices = np.arange(3000)
    problems, solutions = task.make_problems(0, "train", indices), task.make_solutions(0, "train", indices)
    for prompt, solution in zip(problems.prompts, solutions, strict=True):
        assert [int(text) for text in task.decode(solution).split()] == evaluated(task.decode(prompt))


def test_levels_set_operations_and_families():
    task = tasks.build("steps", levels=((2, 1, 0.5), (3, 4, 0.5)))
    problems = task.make_problems(0, "train", np.arange(4000))
    for group, (num_operations, families) in enumerate(((2, "+"), (3, "+*-^"))):
        texts = [task.decode(prompt).split()[1:-1] for prompt in problems.prompts[problems.groups == group]]
        assert {len(text) for text in texts} == {num_operations}
        kinds = [next(sign for sign in "^*-+" if sign in operation) for text in texts for operation in text]
        assert set(kinds) == set(families)
        # Families are equally frequent, though of different sizes.
        assert np.allclose([kinds.count(family) / len(kinds) for family in families], 1 / len(families), atol=0.02)


def test_prompts_are_of_one_length_whatever_the_levels():
    short = tasks.build("steps", levels=((2, 4, 1.0),))
    mixed = tasks.build("steps", levels=((2, 4, 1.0), (6, 4, 1e-9)))
    assert short.prompt_length == mixed.prompt_length == 10
    np.testing.assert_array_equal(
        short.make_problems(0, "test", np.arange(50)).prompts, mixed.make_problems(0, "test", np.arange(50)).prompts
    )


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [("7 9 0", True), ("7 9 1", False), ("7 0 0", False), ("7 9", False), ("7 9 0 0", False), ("", False)],
)
def test_answers_by_hand(task, answer, is_right):
    # 3 +4 = 7, *7 = 49, 9 - 9 = 0.
    texts = list(task.vocabulary)
    operations = [texts.index(text) - texts.index("+1") for text in ("+4", "*7", "9-")]
    facts = [3, *operations, -1, -1]
    tokens = [texts.index(text) for text in answer.split()] + [task.end_id]
    tokens += [task.pad_id] * (task.completion_length - len(tokens))
    assert task.verify(facts, tokens) is is_right
    assert bool(task.score(np.array(facts), np.array(tokens)).is_correct) is is_right
