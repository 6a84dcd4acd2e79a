"""Chain sums: the text is a sum, and its columns are those of long addition."""

import numpy as np
import pytest

from dps_jax import tasks


@pytest.fixture(scope="module")
def task():
    return tasks.build("chain_sum")


def test_solutions_spell_the_sum(task):
    indices = np.arange(2000)
    problems, solutions = task.make_problems(0, "train", indices), task.make_solutions(0, "train", indices)
    for prompt, solution in zip(problems.prompts, solutions, strict=True):
        summands = [int(part) for part in task.decode(prompt).replace(">", "").split("+")]
        columns = [part.split(" carry ") for part in task.decode(solution).split(", ")]
        assert int(columns[-1][1] + "".join(digit for digit, _ in reversed(columns))) == sum(summands)


def test_text(task):
    assert task.decode([0, 0, 8, 9, 3, 5, 6, 2]) == "45 + 12 >"
    assert task.decode([11, 4, 9, 4, 1, 0, 0]) == "7 carry 0, 5 carry 0"


@pytest.mark.parametrize(
    ("columns", "is_right"),
    [("2171", True), ("2170", False), ("2071", False), ("217", False), ("21", False), ("217101", False), ("", False)],
)
def test_answers_by_hand(task, columns, is_right):
    # 85 + 87 = 172: 2 carry 1, 7 carry 1.
    facts = [2, 2, 85, 87, 0]
    answer = [4 + int(digit) for digit in columns] + [1]
    answer += [0] * (task.completion_length - len(answer))
    assert task.verify(facts, answer) is is_right
    assert bool(task.score(np.array(facts), np.array(answer)).is_correct) is is_right
