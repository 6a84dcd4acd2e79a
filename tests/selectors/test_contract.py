"""One contract over every selector; a new one is picked up by being registered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax import selectors

NUM_PROMPTS = 40


@pytest.fixture(params=sorted(selectors.SELECTORS))
def selector(request):
    return selectors.build(request.param, NUM_PROMPTS)


def outcomes(rng, size):
    counts = rng.integers(1, 9, size)
    return jnp.asarray(rng.integers(0, counts + 1)), jnp.asarray(counts)


def run(selector, num_rounds, batch_size=6):
    rng, key = np.random.default_rng(0), jax.random.key(1)
    state = selector.init(key)
    observe, select = jax.jit(selector.observe, donate_argnums=0), jax.jit(selector.select, static_argnums=2)
    for index in range(num_rounds):
        ids, _ = select(state, jax.random.fold_in(key, index), batch_size)
        state = observe(state, ids, *outcomes(rng, batch_size))
    return state


def specs(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def test_state_structure_is_fixed(selector):
    assert specs(run(selector, 5)) == specs(selector.init(jax.random.key(0)))


@pytest.mark.parametrize("batch_size", [1, 7, NUM_PROMPTS])
def test_ids_are_distinct_and_scores_descend(selector, batch_size):
    ids, info = selector.select(run(selector, 4), jax.random.key(3), batch_size)
    assert ids.dtype == jnp.int32
    assert np.unique(ids).size == batch_size
    assert np.all((np.asarray(ids) >= 0) & (np.asarray(ids) < NUM_PROMPTS))
    assert np.all(np.diff(info.scores) <= 0)


def test_select_is_a_function_of_the_key(selector):
    state = run(selector, 3)
    first, _ = selector.select(state, jax.random.key(3), 8)
    again, _ = jax.jit(selector.select, static_argnums=2)(state, jax.random.key(3), 8)
    np.testing.assert_array_equal(first, again)


def test_candidates_are_respected(selector):
    state = run(selector, 6)
    candidates = jnp.array([3, 39, 17, 8, 21])
    ids, info = selector.select(state, jax.random.key(0), 3, candidates)
    assert set(np.asarray(ids)) <= set(np.asarray(candidates))
    everything, all_info = selector.select(state, jax.random.key(0), NUM_PROMPTS)
    rank = {int(n): place for place, n in enumerate(everything)}
    assert list(ids) == sorted(np.asarray(candidates), key=lambda n: rank[int(n)])[:3]
    np.testing.assert_array_equal(info.scores, [all_info.scores[rank[int(n)]] for n in ids])


def test_excluded_prompts_come_last(selector):
    state = run(selector, 6)
    exclude = jnp.array([4, 5, 6, -1, 7, -1])
    whole, _ = selector.select(state, jax.random.key(0), NUM_PROMPTS)
    others = [int(n) for n in whole if n not in (4, 5, 6, 7)]
    ids, _ = selector.select(state, jax.random.key(0), 10, None, exclude)
    assert list(ids) == others[:10]
    ids, _ = selector.select(state, jax.random.key(0), NUM_PROMPTS, None, exclude)
    assert list(ids[:-4]) == others
    assert set(np.asarray(ids[-4:])) == {4, 5, 6, 7}
    ids, _ = selector.select(state, jax.random.key(0), 3, jnp.array([4, 5, 9, 30]), exclude)
    assert {9, 30} <= set(np.asarray(ids)) <= {4, 5, 9, 30}


def test_predictions_are_probabilities(selector):
    prediction = selector.predict(run(selector, 6))
    for field in prediction:
        assert field.shape == (NUM_PROMPTS,)
        assert field.dtype == jnp.float32
        assert np.all((np.asarray(field) >= 0) & (np.asarray(field) <= 1 + 1e-6))


def test_padding_is_not_observed(selector):
    state = run(selector, 2)
    plain = selector.observe(state, jnp.array([2, 9]), jnp.array([8, 3]), jnp.array([8, 8]))
    padded = selector.observe(state, jnp.array([2, -1, 9, -1]), jnp.array([8, 0, 3, 0]), jnp.array([8, 0, 8, 0]))
    jax.tree.map(np.testing.assert_array_equal, plain, padded)


def test_selectors_run_under_scan_and_vmap(selector):
    def rounds(key):
        def step(state, key):
            ids, _ = selector.select(state, key, 5)
            return selector.observe(state, ids, ids % 9, jnp.full(5, 8)), ids

        return jax.lax.scan(step, selector.init(key), jax.random.split(key, 4))[1]

    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(rounds))(keys)
    np.testing.assert_array_equal(together, jnp.stack([rounds(key) for key in keys]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda s, state: s.select(state, jax.random.key(0), 41),
            r"batch_size: expected 1 to 40 \(num_prompts\), got 41",
        ),
        (lambda s, state: s.select(state, jax.random.key(0), 0), "batch_size: expected 1 to 40"),
        (
            lambda s, state: s.select(state, jax.random.key(0), 3, jnp.arange(2)),
            r"batch_size: expected 1 to 2 \(the number of candidates\), got 3",
        ),
    ],
)
def test_bad_batches_are_refused(selector, call, message):
    with pytest.raises(ValueError, match=message):
        call(selector, selector.init(jax.random.key(0)))


def test_unknown_methods_and_options_list_the_known():
    with pytest.raises(ValueError, match="method: expected one of 'dps', 'history', 'uniform', got 'best'"):
        selectors.build("best", 3)
    with pytest.raises(ValueError, match="options of method 'uniform': expected options among mesh, got decay"):
        selectors.build("uniform", 3, decay=0.5)
    with pytest.raises(ValueError, match="num_prompts: expected an integer >= 1"):
        selectors.build("uniform", 0)
    with pytest.raises(ValueError, match="group_size: expected an integer >= 1, got 0"):
        selectors.dps(3, group_size=0)
    with pytest.raises(ValueError, match="epoch_size: expected an integer >= 1, got 0"):
        selectors.history(3, epoch_size=0)


def test_dps_picks_the_most_probably_partial():
    selector = selectors.dps(6, decay=1.0, prior="stability")
    state = selector.init(jax.random.key(0))
    for _ in range(3):
        state = selector.observe(state, jnp.arange(5), jnp.array([0, 4, 8, 4, 0]), jnp.full(5, 8))
    ids, info = selector.select(state, jax.random.key(0), 3)
    assert set(np.asarray(ids[:2])) == {1, 3}
    assert int(ids[2]) == 5
    np.testing.assert_allclose(info.scores, selector.predict(state).p_informative[ids])


def test_history_drops_the_solved_until_the_epoch_ends():
    selector = selectors.history(6, epoch_size=5)
    state = selector.observe(selector.init(jax.random.key(0)), jnp.arange(3), jnp.array([8, 8, 4]), jnp.full(3, 8))
    for seed in range(5):
        assert not {0, 1} & set(np.asarray(selector.select(state, jax.random.key(seed), 4)[0]))
    assert {0, 1} & set(np.asarray(selector.select(state, jax.random.key(0), 5)[0]))
    state = selector.observe(state, jnp.array([3, 4]), jnp.array([8, 0]), jnp.full(2, 8))
    picked = {int(n) for seed in range(20) for n in selector.select(state, jax.random.key(seed), 2)[0]}
    assert picked == set(range(6))
