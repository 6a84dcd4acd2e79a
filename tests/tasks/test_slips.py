"""Slips: every fact goes wrong at a rate of its own, and what follows goes on from what was written."""

import numpy as np
import pytest
import scipy.stats

from dps_jax import tasks
from dps_jax.tasks import _generation, _slips
from dps_jax.tasks._slips import Slips

SUMS = {"levels": ((2, 1, 0.25), (2, 3, 0.75))}


def columns(task, slips, count=30_000):
    """Returns digits of both numbers, carry into, written digit and written carry of every column, [N, 5] each."""
    indices = np.arange(count)
    facts = task.make_problems(0, "warmup", indices).facts
    answers = task.make_solutions(0, "warmup", indices, slips) - 4
    found = []
    for column in range(3):
        rows = facts[:, 1] > column
        carry = answers[rows, 2 * column - 1] if column else np.zeros(rows.sum(), int)
        digits = facts[rows, 2:4] // 10**column % 10
        found.append(np.column_stack([digits, carry, answers[rows, 2 * column : 2 * column + 2]]))
    return found


def test_rates_are_those_of_facts_and_within_bounds():
    facts = np.repeat(np.arange(400), 2000)
    stream = _generation.solution_streams(0, "warmup", np.arange(facts.size))
    right = facts % 10
    written = _slips.write(Slips(lowest=0.2, highest=0.6), stream, 0, facts, 0, right, 10)
    rates = (written != right).reshape(400, 2000).mean(axis=1)
    # Rates of facts are uniform in [.2, .6]; their estimates have a deviation of .01.
    assert scipy.stats.kstest(rates, scipy.stats.uniform(0.2, 0.4).cdf).pvalue > 1e-3
    assert rates.min() > 0.2 - 0.06
    assert rates.max() < 0.6 + 0.06
    again = _slips.write(Slips(lowest=0.2, highest=0.6), stream, 1, facts, 0, right, 10)
    other = (again != right).reshape(400, 2000).mean(axis=1)
    # Another draw of the same facts has the same rates, and other slips.
    assert np.corrcoef(rates, other)[0, 1] > 0.98
    within = np.mean((written != right) & (again != right)) - np.mean(rates * other)
    assert abs(within) < 0.003


def test_half_of_the_slips_are_a_habit():
    facts = np.repeat(np.arange(50), 4000)
    stream = _generation.solution_streams(1, "warmup", np.arange(facts.size))
    written = _slips.write(Slips(lowest=1.0, highest=1.0), stream, 0, facts, 0, facts % 10, 10)
    assert not np.any(written == facts % 10)
    counts = np.stack([np.bincount(row, minlength=10) for row in written.reshape(50, 4000)]) / 4000
    ordered = np.sort(counts, axis=1)
    # The habit has a half and its share of the rest, a ninth of a half.
    np.testing.assert_allclose(ordered[:, -1], 0.5 + 0.5 / 9, atol=0.04)
    np.testing.assert_allclose(ordered[:, 1:-1], 0.5 / 9, atol=0.02)


def test_what_follows_goes_on_from_what_was_written():
    task = tasks.build("chain_sum", **SUMS)
    wrong_carry = Slips(lowest=0.3, highest=0.3, seed=3)
    lowest, second, _ = columns(task, wrong_carry)
    assert np.mean((lowest[:, :2].sum(axis=1) >= 10) != lowest[:, 4]) > 0.25
    # The digit of the second column is right for the carry that was written, in all columns but those that slip again.
    total = second[:, :3].sum(axis=1)
    np.testing.assert_allclose(np.mean(second[:, 3] == total % 10), 0.7, atol=0.01)


def test_spared_families_are_always_right():
    task = tasks.build("chain_sum", **SUMS)
    lowest, second, _ = columns(task, Slips(num_spared=1))
    total = lowest[:, :2].sum(axis=1)
    np.testing.assert_array_equal(lowest[:, 3:], np.stack([total % 10, total // 10], axis=1))
    assert np.mean(second[:, 3] == second[:, :3].sum(axis=1) % 10) < 0.7
    additions = tasks.build("steps", levels=((3, 1, 0.5), (3, 2, 0.5)))
    indices = np.arange(3000)
    problems = additions.make_problems(0, "warmup", indices)
    answers = additions.make_solutions(0, "warmup", indices, Slips(num_spared=1))
    is_right = np.asarray(additions.score(problems.facts, answers).is_correct)
    assert np.all(is_right[problems.groups == 0])
    assert is_right[problems.groups == 1].mean() < 0.7


@pytest.mark.parametrize("name", ["chain_sum", "steps"])
def test_without_slips_nothing_changes(name):
    task = tasks.build(name)
    right = task.make_solutions(0, "warmup", np.arange(100))
    np.testing.assert_array_equal(right, task.make_solutions(0, "warmup", np.arange(100), Slips(0.0, 0.0)))
    sloppy = task.make_solutions(0, "warmup", np.arange(100), Slips())
    assert np.mean(np.any(sloppy != right, axis=1)) > 0.5
    # Ends are where they were.
    np.testing.assert_array_equal(sloppy == task.end_id, right == task.end_id)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Slips(lowest=-0.1), r"slips\.lowest: expected .*-0\.1"),
        (Slips(lowest=0.5, highest=0.4), r"slips\.highest: expected .*0\.4"),
        (Slips(habit_share=2.0), r"slips\.habit_share: expected .*2\.0"),
        (Slips(num_spared=-1), r"slips\.num_spared: expected .*-1"),
    ],
)
def test_bad_slips_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        tasks.build("steps").make_solutions(0, "warmup", [0], bad)


def test_countdown_has_no_slips():
    with pytest.raises(ValueError, match=r"slips: expected None for task 'countdown'"):
        tasks.build("countdown").make_solutions(0, "warmup", [0], Slips())
