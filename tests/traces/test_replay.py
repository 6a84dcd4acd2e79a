"""Predict first, then reveal."""

import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax.predictors.constant import constant
from dps_jax.predictors.last_state import last_state
from dps_jax.traces import Trace
from dps_jax.traces.replay import by_round, replay

# Two rounds, the second with one visit; round 7 comes after round 2.
TRACE = Trace(*(np.array(column) for column in ([7, 2, 2], [1, 0, 1], [3, 8, 0], [8, 8, 8])))


def test_rounds_are_in_order_and_padded():
    visits = by_round(TRACE)
    np.testing.assert_array_equal(visits.ids, [[0, 1], [1, -1]])
    np.testing.assert_array_equal(visits.successes, [[8, 0], [3, 0]])
    np.testing.assert_array_equal(visits.is_visit, [[True, True], [True, False]])


def test_what_was_said_came_before_what_was_seen():
    probs = replay(constant(), by_round(TRACE), num_prompts=2)
    np.testing.assert_allclose(probs[0], 1 / 9, rtol=1e-6)
    expected = (np.bincount([8, 0], minlength=9) + 1) / 11
    np.testing.assert_allclose(probs[1, 0], expected, rtol=1e-6)


def test_a_replay_is_what_a_loop_of_observe_gives():
    rng, predictor = np.random.default_rng(0), last_state()
    rounds = np.repeat(np.arange(12), 4)
    ids = np.concatenate([rng.choice(10, 4, replace=False) for _ in range(12)])
    trace = Trace(rounds, ids, rng.binomial(8, 0.4, 48), np.full(48, 8))
    found, state = replay(predictor, by_round(trace), 10), predictor.init(10)
    for index in range(12):
        rows = slice(4 * index, 4 * index + 4)
        positions = jnp.asarray(ids[rows])
        np.testing.assert_allclose(found[index], predictor.outcome_probs(state, positions).T, rtol=1e-5)
        state = predictor.observe(state, positions, jnp.asarray(trace.successes[rows]), jnp.full(4, 8))


def test_bad_traces():
    empty = Trace(*(np.zeros(0, np.int32) for _ in range(4)))
    with pytest.raises(ValueError, match="trace: expected at least one row, got none"):
        by_round(empty)
    twice = Trace(*(np.array(column) for column in ([0, 0], [1, 1], [3, 8], [8, 8])))
    with pytest.raises(ValueError, match="trace: expected a prompt at most once per round, got one twice"):
        by_round(twice)
