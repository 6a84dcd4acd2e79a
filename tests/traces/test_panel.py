"""Panels: files, traces of them, and predictions scored on all prompts."""

import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax.predictors._last_state import last_state
from dps_jax.traces.panel import Panel, read_panel, replay_panel, write_panel

NUM_PROMPTS, NUM_ROUNDS, PERIOD = 9, 7, 3


def random_panel(seed=0):
    rng = np.random.default_rng(seed)
    swept = np.full((NUM_ROUNDS, NUM_PROMPTS), -1, np.int8)
    trained = swept.copy()
    for index in range(NUM_ROUNDS):
        ids = np.arange(index % PERIOD, NUM_PROMPTS, PERIOD)
        swept[index, ids] = rng.integers(0, 9, ids.size)
        ids = rng.choice(NUM_PROMPTS, 2, replace=False)
        trained[index, ids] = rng.integers(0, 9, 2)
    groups, features = rng.integers(0, 3, NUM_PROMPTS).astype(np.int8), rng.normal(size=(NUM_PROMPTS, 2))
    return Panel(swept, trained, 8, groups, features, "uniform")


def test_round_trip(tmp_path):
    panel = random_panel()
    write_panel(tmp_path / "panel.npz", panel)
    found = read_panel(tmp_path / "panel.npz")
    assert (found.group_size, found.method) == (8, "uniform")
    for name in ("swept", "trained", "groups", "features"):
        np.testing.assert_array_equal(getattr(found, name), getattr(panel, name))


def test_traces_have_a_row_for_every_group():
    panel = random_panel()
    trace = panel.training_trace()
    assert trace.rounds.size == 2 * NUM_ROUNDS
    np.testing.assert_array_equal(panel.trained[trace.rounds, trace.prompt_ids], trace.successes)
    assert np.all(trace.counts == 8)
    swept = panel.sweep_trace()
    assert set(zip(swept.rounds.tolist(), swept.prompt_ids.tolist(), strict=True)) == {
        (t, n) for t in range(NUM_ROUNDS) for n in range(t % PERIOD, NUM_PROMPTS, PERIOD)
    }


def test_replay_asks_about_the_sweep_and_tells_of_the_training():
    panel, predictor = random_panel(), last_state()
    found = replay_panel(predictor, panel)
    state = predictor.init(NUM_PROMPTS)
    for index in range(NUM_ROUNDS):
        (ids,) = np.nonzero(panel.swept[index] >= 0)
        np.testing.assert_array_equal(found.ids[index], ids)
        np.testing.assert_array_equal(found.successes[index], panel.swept[index, ids])
        expected = predictor.outcome_probs(state, jnp.asarray(ids, jnp.int32))
        np.testing.assert_allclose(found.probs[index], expected.T, atol=1e-6)
        (trained,) = np.nonzero(panel.trained[index] >= 0)
        state = predictor.observe(state, trained, panel.trained[index, trained], np.full(2, 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"swept": np.zeros((7, 9), np.int32)}, r"swept: expected int8 \[T, N\], got int32 \[7, 9\]"),
        ({"trained": np.zeros((6, 9), np.int8)}, r"trained: expected int8 \[T, N\], got int8 \[6, 9\]"),
        ({"swept": np.full((7, 9), 9, np.int8)}, r"swept: expected -1 or successes in \[0, 8\], got 9"),
        ({"groups": np.zeros(3)}, r"groups: expected 9 rows, one per prompt, got shape \[3\]"),
        ({"groups": np.int8(3)}, r"groups: expected 9 rows, one per prompt, got shape \[\]"),
        ({"features": np.zeros(9)}, r"features: expected 9 rows, one per prompt, got shape \[9\]"),
        ({"group_size": 0}, r"group_size: expected an integer >= 1, got 0; .*make_panel.py"),
        ({"group_size": [8, 8]}, r"group_size: expected an integer >= 1, got \[8, 8\]"),
        ({"group_size": 8.5}, r"group_size: expected an integer >= 1, got 8\.5"),
    ],
)
def test_bad_panels(tmp_path, changes, message):
    write_panel(tmp_path / "panel.npz", random_panel()._replace(**changes))
    with pytest.raises(ValueError, match=message):
        read_panel(tmp_path / "panel.npz")


def test_files_that_are_no_panels(tmp_path):
    np.savez(tmp_path / "other.npz", swept=np.zeros(3))
    with pytest.raises(ValueError, match=r"expected a panel, got a file without trained, group_size.*make_panel.py"):
        read_panel(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"expected a panel, got a file of another format"):
        read_panel(tmp_path / "text.npz")


def test_damaged_files_are_told_from_panels(tmp_path):
    path, rng = tmp_path / "panel.npz", np.random.default_rng(0)
    write_panel(path, random_panel())
    content = path.read_bytes()
    outcomes = []
    for place in rng.integers(2, len(content), 300):
        damaged = bytearray(content)
        damaged[place] ^= 1 + int(rng.integers(255))
        path.write_bytes(damaged)
        try:
            read_panel(path)  # A date in the archive may be any.
        except ValueError as error:
            outcomes.append(str(error))
    assert len(outcomes) > 150
    assert all(str(path) in message for message in outcomes)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"panel\.npz: expected a panel, got a damaged file .*; restore it, or .*"):
        read_panel(path)
    with pytest.raises(FileNotFoundError):
        read_panel(tmp_path / "none.npz")


def test_rounds_without_a_visit_are_refused():
    panel = random_panel()
    panel.trained[3] = -1
    with pytest.raises(ValueError, match=r"panel.trained: expected a prompt in each of 7 rounds, got an empty round"):
        replay_panel(last_state(), panel)
