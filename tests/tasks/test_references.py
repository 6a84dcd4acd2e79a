"""Wrong references and the levels of the test set."""

import numpy as np
import pytest

from dps_jax import tasks
from dps_jax.tasks import _references

NAMES = sorted(tasks.TASKS)


def test_share_and_independence_of_wrong_references():
    indices = np.arange(20_000)
    broken = _references.is_broken(0, "train", indices, 0.3)
    assert abs(broken.mean() - 0.3) < 0.012
    assert not np.any(_references.is_broken(0, "test", indices, 0.3))
    assert not np.any(_references.is_broken(0, "train", indices, 0.0))
    assert np.all(_references.is_broken(0, "train", indices, 1.0))
    # A larger share keeps those of a smaller one, and another seed has others.
    assert np.all(_references.is_broken(0, "train", indices, 0.5)[broken])
    assert abs(_references.is_broken(1, "train", indices, 0.3)[broken].mean() - 0.3) < 0.02
    problems = tasks.build("chain_sum").make_problems(0, "train", indices)
    shares = [broken[problems.groups == group].mean() for group in range(5)]
    np.testing.assert_allclose(shares, 0.3, atol=0.04)


@pytest.mark.parametrize("name", NAMES)
def test_no_answer_to_a_problem_with_a_wrong_reference_is_correct(name):
    task = tasks.build(name, format_reward=0.25)
    indices = np.arange(200)
    problems, right = task.make_problems(0, "train", indices), task.make_solutions(0, "train", indices)
    broken = _references.is_broken(0, "train", indices, 0.5)
    graded = _references.graded(problems, broken)
    np.testing.assert_array_equal(graded.prompts, problems.prompts)
    score = _references.graded_score(task.score, 0.25)
    found = score(graded.facts, right)
    np.testing.assert_array_equal(found.is_correct, ~broken)
    np.testing.assert_array_equal(found.rewards, np.where(broken, 0.25, 1.0))
    # What is wrong anyway is graded as before.
    wrong = np.roll(right, 1, axis=0)
    plain, again = task.score(problems.facts, wrong), score(graded.facts, wrong)
    np.testing.assert_array_equal(again.is_correct, plain.is_correct & ~broken)
    is_wrong = ~np.asarray(plain.is_correct)
    np.testing.assert_array_equal(again.rewards[is_wrong], plain.rewards[is_wrong])


@pytest.mark.parametrize(
    ("name", "levels", "test_levels"),
    [
        ("countdown", ((2, 20, 0.5), (4, 20, 0.5)), ((2, 20, 1.0), (3, 20, 3.0))),
        ("chain_sum", ((2, 2, 0.5), (3, 3, 0.5)), ((2, 2, 1.0), (2, 3, 3.0))),
        ("steps", ((2, 4, 0.5), (5, 4, 0.5)), ((2, 4, 1.0), (3, 4, 3.0))),
    ],
)
def test_the_test_set_has_levels_of_its_own(name, levels, test_levels):
    task = tasks.build(name, levels=levels, test_levels=test_levels)
    assert len(task.group_names) == 3
    shares = lambda split: np.bincount(task.make_problems(0, split, np.arange(4000)).groups, minlength=3) / 4000
    np.testing.assert_allclose(shares("train"), [0.5, 0.5, 0], atol=0.03)
    np.testing.assert_allclose(shares("warmup"), [0.5, 0.5, 0], atol=0.03)
    np.testing.assert_allclose(shares("test"), [0.25, 0, 0.75], atol=0.03)


def test_bad_shares_and_test_levels_are_refused():
    with pytest.raises(ValueError, match=r"share: expected .*1\.5"):
        _references.is_broken(0, "train", [0], 1.5)
    with pytest.raises(ValueError, match=r"test_levels: expected one or more of"):
        tasks.build("steps", test_levels=())
    with pytest.raises(ValueError, match=r"levels: expected \(operations 1 to 3"):
        tasks.build("steps", max_operations=3)
