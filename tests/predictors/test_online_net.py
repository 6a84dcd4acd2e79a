"""The network against float64, what it learns, and the two predictors that are made with it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dps_jax import PromptSelector, selectors
from dps_jax.predictors import _online_net as module
from dps_jax.predictors._binomial_hmm import binomial_hmm
from dps_jax.predictors._online_net import Rows, online_net
from dps_jax.predictors._shared_net import shared_net
from dps_jax.predictors._side_information import standardised
from tests.reference import online_net as reference

RATES = np.array([0.05, 0.4, 0.9])


def random_rows(rng, size, num_inputs=2):
    """Returns visits whose success depends on the first input."""
    inputs = rng.normal(size=(size, num_inputs))
    counts = rng.integers(1, 9, size)
    successes = rng.binomial(counts, np.where(inputs[:, 0] > 0, 0.9, 0.05))
    offsets = np.log(rng.dirichlet(np.ones(RATES.size), size))
    return Rows(*(jnp.asarray(a, jnp.float32) for a in (inputs, offsets, successes, counts - successes)))


def learned(net, num_rounds=40, size=16):
    rng, state, learn = np.random.default_rng(0), net.init(), jax.jit(net.learn)
    for index in range(num_rounds):
        state = learn(state, random_rows(rng, size), jnp.asarray(index, jnp.int32))
    return state


def test_laws_are_those_of_the_definition():
    net = online_net(2, RATES, learning_rate=0.01)
    state = learned(net, num_rounds=5)
    rows = random_rows(np.random.default_rng(1), 6)
    for inputs, offset in zip(rows.inputs, rows.offsets, strict=True):
        found = net.corrected(state, inputs, offset)
        np.testing.assert_allclose(found, reference.distributions(state.params, inputs, offset), atol=1e-6)
        assert np.abs(np.asarray(found) - reference.softmax(np.asarray(offset))).max(axis=1).min() > 1e-4


def test_at_first_nothing_is_corrected():
    net = online_net(2, RATES)
    offset = jnp.log(jnp.asarray([0.2, 0.5, 0.3]))
    for distribution in net.corrected(net.init(), jnp.ones(2), offset):
        np.testing.assert_allclose(distribution, [0.2, 0.5, 0.3], rtol=1e-5)


def test_it_learns_what_decides():
    net = online_net(2, RATES, learning_rate=0.01)
    state = learned(net)
    even = jnp.log(jnp.full(3, 1 / 3))
    good, bad = (net.corrected(state, jnp.asarray([sign, 0.0]), even).mean(axis=0) for sign in (1.5, -1.5))
    assert good[2] > 0.8
    assert bad[0] > 0.8


def test_predictions_are_made_with_the_average_over_rounds():
    net = online_net(2, RATES, learning_rate=0.01, average_decays=(0.4, 0.6))
    state, rng = net.init(), np.random.default_rng(0)
    expected = np.zeros(state.params.shape)
    # An even average of the first rounds; from the second or third on, later ones count more.
    for index, keeps in enumerate([(0, 0), (0.4, 1 / 2), (0.4, 0.6), (0.4, 0.6)]):
        state = net.learn(state, random_rows(rng, 8), jnp.asarray(index))
        new = np.asarray(state.trained, np.float64)
        expected = np.stack([keep * expected[net] + (1 - keep) * new[net] for net, keep in enumerate(keeps)])
        np.testing.assert_allclose(state.params, expected, atol=1e-6)
    assert np.abs(state.params - state.trained).max() > 1e-3


def test_networks_differ_and_each_learns_by_itself():
    net = online_net(2, RATES, learning_rate=0.01)
    state = learned(net, num_rounds=5)
    # Of the first layer: the last ones start alike.
    num_weights = 32 * (2 + RATES.size)
    weights = np.asarray(state.trained[:, :num_weights])
    first = np.asarray(net.init().trained[:, :num_weights])
    for one in range(len(weights)):
        assert np.abs(weights[one] - first[one]).max() > 1e-3
        for other in range(one):
            assert np.abs(weights[one] - weights[other]).max() > 0.1
            # Nor do they take the same steps from different starts: samples of remembered visits are their own.
            assert np.abs((weights[one] - first[one]) - (weights[other] - first[other])).max() > 1e-3


def test_without_visits_corrections_shrink():
    net = online_net(2, RATES, learning_rate=0.01, weight_decay=0.5)
    state = net.init()
    nothing = jax.tree.map(jnp.zeros_like, random_rows(np.random.default_rng(0), 3))
    after = net.learn(state, nothing, jnp.asarray(0)).trained
    # No gradient: each of eight steps leaves 1 - learning_rate * weight_decay.
    np.testing.assert_allclose(after, state.trained * 0.995**8, rtol=1e-5)


def test_steps_are_those_of_adamw():
    model, rng = online_net(2, RATES, learning_rate=0.01, weight_decay=0.3).learn.args[0], np.random.default_rng(0)
    draw = lambda: jnp.asarray(rng.normal(size=9), jnp.float32)
    params = draw()
    zeros = jnp.zeros_like(params)
    found, state = params, module.AdamState(jnp.zeros((), jnp.int32), zeros, zeros)
    optimizer = optax.adamw(0.01, eps=module._ADAM_EPS, weight_decay=0.3)
    opt_state = optimizer.init(params)
    for _ in range(5):
        grads = draw()
        found, state = module._adam_step(model, found, state, grads)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(found, params, rtol=1e-6)


def test_the_ring_keeps_the_last_visits(monkeypatch):
    monkeypatch.setattr(module, "_MEMORY_SIZE", 10)
    net = online_net(1, RATES)
    state = net.init()
    for index in range(4):
        # Two of four rows are padding.
        marks = jnp.asarray([2.0 * index, -1, 2 * index + 1, -1])[:, None]
        counts = jnp.asarray([1.0, 0, 1, 0])
        rows = Rows(marks, jnp.zeros((4, 3)), counts, jnp.zeros(4))
        state = net.learn(state, rows, jnp.asarray(index))
        assert set(np.asarray(state.memory.inputs[: min(int(state.num_visits), 10), 0])) == set(range(2 * index + 2))
    for index in range(4, 8):
        rows = Rows(jnp.asarray([[2.0 * index], [2.0 * index + 1]]), jnp.zeros((2, 3)), jnp.ones(2), jnp.zeros(2))
        state = net.learn(state, rows, jnp.asarray(index))
    assert set(np.asarray(state.memory.inputs[:, 0])) == set(range(6, 16))


def test_padding_teaches_nothing():
    net = online_net(2, RATES)
    rows = random_rows(np.random.default_rng(2), 5)
    more = jax.tree.map(lambda leaf: jnp.concatenate([leaf, jnp.zeros_like(leaf[:2])]), rows)
    states = [net.learn(net.init(), each, jnp.asarray(0)) for each in (rows, more)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *states)


def test_standardised_features():
    found = standardised([[1.0, 5.0], [3.0, 5.0]])
    np.testing.assert_array_equal(found, [[-1, 1], [0, 0]])
    for bad in ([1.0, 2.0], np.zeros((0, 2))):
        with pytest.raises(ValueError, match=r"features: expected finite numbers of shape \[N, D\], got shape"):
            standardised(bad)
    with pytest.raises(ValueError, match="features: expected finite numbers, got nan as feature 1 of prompt 0"):
        standardised([[1.0, np.nan]])


GROUPS, FEATURES = np.array([0, 1, 1, 0, -1, 1]), np.random.default_rng(5).normal(size=(6, 2))


def random_visits(num_rounds, num_prompts=6):
    rng = np.random.default_rng(3)
    for _ in range(num_rounds):
        ids = rng.choice(num_prompts, 3, replace=False)
        yield ids, rng.binomial(8, (1 + ids) / (num_prompts + 1)), np.full(3, 8)


def as_int32(*columns):
    return tuple(jnp.asarray(column, jnp.int32) for column in columns)


def test_shared_net_sees_what_it_should():
    predictor = shared_net(features=FEATURES, group_ids=GROUPS)
    state, observe = predictor.init(6), jax.jit(predictor.observe)
    features = ((FEATURES - FEATURES.mean(axis=0)) / FEATURES.std(axis=0)).T
    history = {n: [] for n in range(6)}
    mean_rate = 0.5
    probs_of_rates = reference.outcome_probs(reference.grid(16), 8)
    for index, (ids, successes, counts) in enumerate(random_visits(6)):
        log_odds = np.log((8 * mean_rate + 0.5) / (8 * (1 - mean_rate) + 0.5))
        found = np.asarray(predictor.outcome_probs(state, jnp.arange(6, dtype=jnp.int32)))
        for n in range(6):
            given = (history[n], index, log_odds, features[:, n], GROUPS[n], 2)
            inputs = reference.shared_net_inputs(*given)
            distribution = reference.distribution(state.net.params, inputs, np.zeros(16))
            np.testing.assert_allclose(found[:, n], probs_of_rates @ distribution, atol=1e-6)
        state = observe(state, *as_int32(np.append(ids, -1), np.append(successes, 0), np.append(counts, 0)))
        for n, m in zip(ids.tolist(), successes.tolist(), strict=True):
            history[n].append((index, m / 8))
        mean_rate = 0.9 * mean_rate + 0.1 * successes.sum() / 24


def test_binomial_hmm_is_its_own_belief_corrected():
    """Predictions are the mean over networks; half the score is the belief's own, and their spread is on top."""
    optimism = 1.5
    options = {"optimism": optimism, "group_ids": GROUPS, "features": FEATURES, "num_states": 5, "is_compact": False}
    predictor, plain = binomial_hmm(**options), binomial_hmm(**options, is_corrected=False)
    state, observe = predictor.init(6), jax.jit(predictor.observe)
    features = ((FEATURES - FEATURES.mean(axis=0)) / FEATURES.std(axis=0)).T
    probs_of_rates = reference.outcome_probs(reference.grid(5), 8)
    log_odds, last, spread = 0.0, {}, 0.0
    for index, (ids, successes, counts) in enumerate(random_visits(8)):
        all_prompts = jnp.arange(6, dtype=jnp.int32)
        found = np.asarray(predictor.outcome_probs(state, all_prompts))
        uncorrected = plain.outcome_probs(state, all_prompts)
        for n in range(6):
            belief = np.linalg.lstsq(probs_of_rates, np.asarray(uncorrected[:, n], np.float64), rcond=None)[0]
            own = (1, last[n][1], 0.5 * np.log(index - last[n][0])) if n in last else (0, 0, 0)
            facts = [*own, log_odds, 0.1 * np.log(1 + index), GROUPS[n] == 0, GROUPS[n] == 1, *features[:, n]]
            offset = np.log(np.maximum(belief, 1e-6))
            distributions = probs_of_rates @ reference.distributions(state.learned.net.params, facts, offset).T
            np.testing.assert_allclose(found[:, n], distributions.mean(axis=1), atol=2e-5)
            each = distributions[1:-1].sum(axis=0)
            middle = (each.mean() + probs_of_rates[1:-1].sum(axis=0) @ belief) / 2
            np.testing.assert_allclose(state.score[n], middle + optimism * each.std(), atol=3e-5)
            spread = max(spread, each.std())
        state = observe(state, *as_int32(ids, successes, counts))
        for n, m in zip(ids.tolist(), successes.tolist(), strict=True):
            last[n] = (index, int(0 < m < 8))
        log_odds = 0.9 * log_odds + 0.1 * np.log((successes.sum() + 1) / (25 - successes.sum()))
    assert spread > 0.01


@pytest.mark.parametrize("method", ["binomial_hmm", "shared_net"])
def test_features_tell_of_prompts_never_seen(method):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 2))
    is_easy = features[:, 0] > 0
    selector = PromptSelector(400, method=method, features=features)
    for start in range(0, 200, 10):
        ids = np.arange(start, start + 10)
        selector.observe(ids, rng.binomial(8, np.where(is_easy[ids], 0.9, 0.1)), 8)
        selector.commit()
    rates = selector.predict()["success_rate"][200:]
    assert rates[is_easy[200:]].mean() > 0.7
    assert rates[~is_easy[200:]].mean() < 0.3


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (shared_net, {"group_ids": [0, -2]}, "group_ids: expected ids >= 0, or -1 for an unknown group, got -2"),
        (shared_net, {"group_size": 0}, "group_size: expected an integer >= 1 .*got 0"),
        (shared_net, {"seed": -1}, "seed: expected an integer >= 0"),
        (binomial_hmm, {"optimism": -0.5}, "optimism: expected a finite number >= 0, got -0.5"),
        (binomial_hmm, {"features": [1.0]}, r"features: expected finite numbers of shape \[N, D\], got shape \[1\]"),
    ],
)
def test_bad_options(factory, options, message):
    with pytest.raises(ValueError, match=message):
        factory(**options)


@pytest.mark.parametrize("method", ["binomial_hmm", "shared_net"])
def test_bad_features_of_a_selector(method):
    with pytest.raises(ValueError, match=r"features: expected finite numbers of shape \[3, D\], got shape \[2, 1\]"):
        selectors.build(method, 3, features=np.zeros((2, 1)))
    with pytest.raises(ValueError, match="groups: expected 3 ids, one per prompt, got 2"):
        selectors.build(method, 3, groups=[0, 1])
