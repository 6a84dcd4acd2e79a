"""Predict first, then reveal."""

import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax.predictors._constant import constant
from dps_jax.predictors._last_state import last_state
from dps_jax.traces import Trace
from dps_jax.traces import replay as module
from dps_jax.traces.replay import replay, replay_own_counts, visits_of

# Two rounds, the second with one visit; round 7 comes after round 2.
TRACE = Trace(*(np.array(column) for column in ([7, 2, 2], [1, 0, 1], [3, 8, 0], [8, 8, 8])))


def trace_of(*columns, inclusion_prob=None):
    probs = None if inclusion_prob is None else np.array(inclusion_prob)
    return Trace(*(np.array(column) for column in columns), inclusion_prob=probs)


def random_trace(sizes, num_prompts=40, seed=0):
    """Returns a trace of rounds of given sizes."""
    rng = np.random.default_rng(seed)
    ids = np.concatenate([rng.choice(num_prompts, size, replace=False) for size in sizes])
    rounds = np.repeat(np.arange(len(sizes)), sizes)
    return Trace(rounds, ids, rng.binomial(8, 0.4, ids.size), np.full(ids.size, 8))


def test_rounds_are_in_order():
    visits = visits_of(TRACE)
    assert visits.rounds.tolist() == [0, 0, 1]
    assert visits.ids.tolist() == [0, 1, 1]
    assert visits.successes.tolist() == [8, 0, 3]
    assert (visits.num_rounds, visits.num_prompts, visits.sizes.tolist()) == (2, 2, [2, 1])
    for dtype in (np.int32, np.uint8):
        np.testing.assert_array_equal(visits.by_round(visits.successes.astype(dtype), -1), [[8, 0], [3, -1]])


def test_the_clock_counts_the_rounds_that_occur():
    steps, numbers = (trace_of(rounds, [4, 4, 9], [1, 2, 3], [8, 8, 8]) for rounds in ([0, 10, 20], [0, 1, 2]))
    for one, other in zip(visits_of(steps)[:5], visits_of(numbers)[:5], strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_of_one_prompt_in_one_round_are_added_up():
    rows = trace_of(
        [0, 0, 0, 1, 0], [3, 5, 3, 3, 3], [1, 0, 0, 1, 1], [1, 2, 1, 1, 4], inclusion_prob=[0.5, 1, 0.5, 1, 0.5]
    )
    visits = visits_of(rows)
    found = zip(visits.rounds, visits.prompt_ids[visits.ids], visits.successes, visits.counts, strict=True)
    assert [tuple(map(int, row)) for row in found] == [(0, 3, 2, 6), (0, 5, 0, 2), (1, 3, 1, 1)]
    assert visits.inclusion_prob.tolist() == [0.5, 1, 1]


def test_ids_that_are_hashes_are_renumbered():
    ids = np.array([2**63 - 1, 7, 2**62, 7])
    visits = visits_of(trace_of([0, 0, 1, 2], ids, [1, 2, 3, 4], [8] * 4))
    assert visits.ids.tolist() == [2, 0, 1, 0]
    assert visits.prompt_ids.tolist() == [7, 2**62, 2**63 - 1]
    assert replay(last_state(), visits).shape == (4, 9)


def test_prompts_without_a_visit_are_there_where_their_number_is_given():
    visits = visits_of(trace_of([0, 1], [2, 4], [1, 1], [8, 8]), 6)
    assert (visits.ids.tolist(), visits.num_prompts) == ([2, 4], 6)
    with pytest.raises(ValueError, match=r"trace.prompt_ids: expected ids in \[0, 4\), got 4 at position 1"):
        visits_of(trace_of([0, 1], [2, 4], [1, 1], [8, 8]), 4)


def test_what_was_said_came_before_what_was_seen():
    probs = replay(constant(), visits_of(TRACE))
    np.testing.assert_allclose(probs[:2], 1 / 9, rtol=1e-6)
    expected = (np.bincount([8, 0], minlength=9) + 1) / 11
    np.testing.assert_allclose(probs[2], expected, rtol=1e-6)


def test_a_replay_is_what_a_loop_of_observe_gives():
    trace, predictor = random_trace([4] * 12, 10), last_state()
    visits, state = visits_of(trace, 10), predictor.init(10)
    found = replay(predictor, visits)
    for index in range(12):
        rows = slice(4 * index, 4 * index + 4)
        positions = jnp.asarray(trace.prompt_ids[rows])
        np.testing.assert_allclose(found[rows], predictor.outcome_probs(state, positions).T, rtol=1e-5)
        state = predictor.observe(state, positions, jnp.asarray(trace.successes[rows]), jnp.full(4, 8))


def test_one_huge_round_does_not_widen_the_others(monkeypatch):
    visits = visits_of(random_trace([3, 2, 5, 33, 1, 1, *[2] * 70, 40, 4]))
    expected = replay(last_state(), visits)
    monkeypatch.setattr(module, "_FEW_ENTRIES", 0)
    monkeypatch.setattr(module, "_MAX_PADDING", 1)
    blocks = list(module._blocks(visits.sizes))
    assert sum(length for _, length, _ in blocks) == visits.num_rounds
    assert {(length, width) for _, length, width in blocks} == {(1, 1), (1, 4), (64, 4), (1, 16), (1, 40)}
    assert all(visits.sizes[first : first + length].max() <= width for first, length, width in blocks)
    np.testing.assert_array_equal(replay(last_state(), visits), expected)


def test_the_tables_of_a_trace_with_one_huge_round_are_of_the_size_of_the_trace():
    sizes = np.append(np.full(20_000, 1), 200_000)
    assert sum(length * width for _, length, width in module._blocks(sizes)) <= 4 * sizes.sum()


def test_each_visit_is_predicted_at_its_own_count():
    rounds, ids = np.repeat(np.arange(5), 2), np.tile([0, 1], 5)
    counts = np.array([8, 8, 8, 1, 8, 8, 8, 8, 8, 1])
    visits = visits_of(Trace(rounds, ids, counts // 2, counts))
    found = replay_own_counts(lambda size: last_state(group_size=size), visits)
    assert found.shape == (10, 9)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert all(found[row, count + 1 :].max(initial=0) == 0 < found[row, count] for row, count in enumerate(counts))
    np.testing.assert_array_equal(found[3, :2], replay(last_state(group_size=1), visits)[3])


def test_bad_traces():
    with pytest.raises(ValueError, match="trace: expected at least one row, got an empty trace"):
        visits_of(Trace(*(np.zeros(0, np.int32) for _ in range(4))))
    with pytest.raises(
        ValueError, match=r"fewer than 2\*\*31 completions of a prompt in a round, got 3\d+ of prompt 4 in"
    ):
        visits_of(trace_of([3, 3], [4, 4], [0, 0], [2**30, 2**31 - 1]))
    with pytest.raises(
        ValueError, match=r"inclusion_prob: expected one value per prompt and round, got 0.5 and 0.4 of"
    ):
        visits_of(trace_of([3, 3], [4, 4], [0, 0], [1, 1], inclusion_prob=[0.5, 0.4]))
    for probs in ([0.5], [0.5] * 3):
        with pytest.raises(ValueError, match=r"trace.inclusion_prob: expected 2 values, one per row, got \[[13]\]"):
            visits_of(trace_of([3, 3], [4, 4], [0, 0], [1, 1], inclusion_prob=probs))
