"""Every method in every mode that a user may run JAX in: the same dtypes, the same picks, no error."""

import contextlib
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dps_jax
from dps_jax import selectors
from dps_jax.hmm import _in_place

NUM_PROMPTS, BATCH_SIZE = 12, 4
# It is binomial_hmm with other defaults and more to rank by, and compiles longest of all.
METHODS = [
    pytest.param(method, marks=pytest.mark.slow) if method == "instructive" else method
    for method in sorted(selectors.SELECTORS)
]
MODES = {
    "x64": lambda: jax.enable_x64(True),
    "strict dtypes": lambda: jax.numpy_dtype_promotion("strict"),
    "strict ranks": lambda: jax.numpy_rank_promotion("raise"),
    "debug nans": lambda: jax.debug_nans(True),
    "check leaks": jax.checking_leaks,
}
SUCCESSES, COUNTS = np.array([0, 3, 8, 1], np.int32), np.array([8, 8, 8, 4], np.int32)
# Their own score is only an order, of which no chances can be made.
ORDINAL = ("history", "mopps", "queue")


def build_drawing(method):
    """Returns the selector of the method that draws by a temperature, on the same state; None if there is none."""
    if "temperature" not in selectors.option_names(method):
        return None
    options = {"value": "informative"} if method in ORDINAL else {}
    return selectors.build(method, NUM_PROMPTS, temperature=0.4, **options)


def three_rounds(method):
    """Returns the picks of three rounds, what `select` reported, predictions, and the state."""
    selector, drawing = selectors.build(method, NUM_PROMPTS), build_drawing(method)
    key = jax.random.key(1)
    select = jax.jit(selector.select, static_argnums=2)
    draw = select if drawing is None else jax.jit(drawing.select, static_argnums=2)
    observe = jax.jit(selector.observe)
    candidates = jnp.array([1, 3, 5, 7, 8, 11], jnp.int32)
    state, picks, infos = selector.init(key), [], []
    for index, call in enumerate((select, functools.partial(select, candidates=candidates), draw)):
        ids, info = call(state, jax.random.fold_in(key, index), BATCH_SIZE)
        state = observe(state, ids, SUCCESSES, COUNTS)
        picks.append(ids)
        infos.append(info)
    probs = None if selector.predicted_probs is None else jax.jit(selector.predicted_probs)(state)
    return picks, infos, jax.jit(selector.predict)(state), probs, state


@functools.cache
def by_default(method):
    return jax.tree.map(np.asarray, three_rounds(method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_changes_neither_dtypes_nor_picks(mode, method):
    expected = by_default(method)
    with MODES[mode]():
        found = three_rounds(method)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    picks, infos, prediction, probs, _ = found
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((infos, prediction, probs)))
    assert all(field.shape == (NUM_PROMPTS,) for field in prediction)
    np.testing.assert_array_equal(picks, expected[0])
    chex.assert_trees_all_close(found[1:], expected[1:], rtol=1e-5, atol=1e-6)


@functools.cache
def many_prompts():
    """Returns picks, scores and the state where ranking and filter go by blocks, with all options of picking."""
    num_prompts, rng = 700, np.random.default_rng(0)
    options = {
        "max_wait": 200,
        "quotas": [0.25, 0.5],
        "groups": np.arange(num_prompts) % 3 - 1,
        "expected_tokens": rng.uniform(1, 2, num_prompts),
        "temperature": 0.5,
        "temperature_pool": 4.0,
        "explore": 0.1,
    }
    selector = selectors.dps(num_prompts, **options)
    plain = selectors.dps(num_prompts, max_wait=200, thompson=True)
    uniform = selectors.uniform(num_prompts)
    key, picks = jax.random.key(2), []
    states = [built.init(key) for built in (selector, plain, uniform)]
    exclude = jnp.array([5, 6, -1], jnp.int32)
    for index in range(2):
        for place, built in enumerate((selector, plain, uniform)):
            select, observe = jax.jit(built.select, static_argnums=2), jax.jit(built.observe)
            ids, info = select(states[place], jax.random.fold_in(key, index), BATCH_SIZE, None, exclude)
            states[place] = observe(states[place], ids, SUCCESSES, COUNTS)
            picks.append((ids, info))
    everything = jax.jit(selector.select, static_argnums=2)(states[0], key, num_prompts)
    return picks, everything, states


@pytest.mark.parametrize("mode", MODES)
def test_many_prompts_and_all_options_of_picking(mode, monkeypatch):
    monkeypatch.setattr(_in_place, "CHUNK_SIZE", 100)
    expected = many_prompts()
    with MODES[mode]():
        found = many_prompts.__wrapped__()
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    for (ids, _), (expected_ids, _) in zip(found[0], expected[0], strict=True):
        np.testing.assert_array_equal(ids, expected_ids)


@pytest.mark.parametrize("method", METHODS)
def test_states_pass_between_x64_and_default(method):
    modes = {"default": contextlib.nullcontext, "x64": MODES["x64"]}
    built, predictions = {}, {}
    for mode, context in modes.items():
        with context():
            built[mode] = dps_jax.PromptSelector(NUM_PROMPTS, method=method, seed=3)
            built[mode].observe([0, 3, 8, 11], SUCCESSES, COUNTS)
            built[mode].commit()
            predictions[mode] = built[mode].predict()
            built[mode].observe([1], [2], 8)
    for source, target in (("default", "x64"), ("x64", "default")):
        state, context = built[source].state_dict(), modes[target]
        with context():
            loaded = dps_jax.PromptSelector(NUM_PROMPTS, method=method, seed=0)
            loaded.load_state_dict(state)
            prediction = loaded.predict()
            ids = loaded.select(BATCH_SIZE, candidates=[1, 2, 3, 4, 5, 9])
        for name, values in predictions[source].items():
            assert prediction[name].dtype == values.dtype == np.float32
            np.testing.assert_allclose(prediction[name], values, rtol=1e-4, atol=1e-6)
        assert ids.dtype == np.int64
        assert np.unique(ids).size == BATCH_SIZE


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("arcsine", ["decay"]),
        ("dps", ["decay", "temperature", "explore"]),
        ("ema_variance", ["decay"]),
        ("last_state", ["prior_count"]),
        ("logit_kalman", ["process_noise", "prior_mean", "prior_variance"]),
        ("mopps", ["decay", "prior_successes", "prior_failures"]),
    ],
)
def test_options_that_are_numpy_numbers_widen_nothing_under_x64(method, names):
    with MODES["x64"]():
        selector = selectors.build(method, NUM_PROMPTS, **dict.fromkeys(names, np.float64(0.5)))
        before = jax.eval_shape(selector.init, jax.random.key(0))
        ids = np.arange(BATCH_SIZE, dtype=np.int32)
        after = jax.eval_shape(selector.observe, before, ids, SUCCESSES, COUNTS)
        select = lambda state, key: selector.select(state, key, BATCH_SIZE)
        results = jax.eval_shape(select, after, jax.random.key(0))[1], jax.eval_shape(selector.predict, after)
    specs = lambda tree: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
    assert specs(before) == specs(after)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(results))
