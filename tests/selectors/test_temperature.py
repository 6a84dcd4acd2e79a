"""Gumbel top-B: how often prompts are drawn, and the probabilities that are reported with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dps_jax
from dps_jax import selectors
from dps_jax.selectors import _keys as ranking_keys
from dps_jax.selectors import _ranking, _sharding

NUM_PROMPTS, NUM_DRAWS = 12, 4000
PROBS = np.linspace(0.05, 0.9, NUM_PROMPTS)


def with_scores(temperature, explore=0.0):
    """Returns a selector and a state in which P(0 < m < G) is PROBS."""
    priors = tuple(dps_jax.TransitionPrior([(1 - p) / 2, p, (1 - p) / 2], np.ones((3, 3)), 0.9) for p in PROBS)
    prior = dps_jax.TransitionPrior(np.full(3, 1 / 3), np.ones((3, 3)), 0.9, groups=priors)
    options = {"prior": prior, "groups": np.arange(NUM_PROMPTS), "temperature": temperature, "explore": explore}
    selector = selectors.dps(NUM_PROMPTS, **options)
    state = selector.init(jax.random.key(0))
    np.testing.assert_allclose(selector.predict(state).p_informative, PROBS, atol=1e-5)
    return selector, state


def draws(temperature, batch_size, explore=0.0, **options):
    selector, state = with_scores(temperature, explore)
    keys = jax.random.split(jax.random.key(1), NUM_DRAWS)
    ids, info = jax.jit(jax.vmap(lambda key: selector.select(state, key, batch_size, **options)))(keys)
    return np.asarray(ids), np.asarray(info.inclusion_probs)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_single_pick_is_in_proportion_to_a_power_of_the_score(temperature):
    ids, _ = draws(temperature, 1)
    expected = PROBS ** (1 / temperature) / (PROBS ** (1 / temperature)).sum()
    error = np.sqrt(expected * (1 - expected) / NUM_DRAWS)
    found = np.bincount(ids[:, 0], minlength=NUM_PROMPTS) / NUM_DRAWS
    assert np.max(np.abs(found - expected) / error) < 4


def test_larger_pools_are_colder():
    options = {"temperature": 0.5, "temperature_pool": 4.0}
    selector = lambda **options: selectors.dps(64, **options)
    state = selector().init(jax.random.key(0))
    states = selector().observe(state, jnp.arange(64), jnp.arange(64) % 9, jnp.full(64, 8))
    same = lambda one, other, batch_size, **pool: np.array_equal(
        *(built.select(states, jax.random.key(1), batch_size, **pool)[1].scores for built in (one, other))
    )
    # 16 candidates per pick are 4 times as many: 1 / temperature is 1 more.
    assert same(selector(**options), selector(temperature=1 / 3), 4)
    assert same(selector(**options), selector(temperature=1 / 3), 2, candidates=jnp.arange(32))
    # 4 and fewer are what the temperature is for.
    assert same(selector(**options), selector(temperature=0.5), 16)
    assert same(selector(**options), selector(temperature=0.5), 32)
    # A worth of a quarter of the best is drawn as often as before, all in all.
    found = selectors._acquisition.Acquisition(**options)
    share = lambda pool: pool * 0.25 ** (1 / found.temperature_among(pool))
    assert share(4.0) == pytest.approx(share(1000.0))
    with pytest.raises(ValueError, match="temperature_pool: expected a finite number > 0, got 0"):
        selector(temperature=0.5, temperature_pool=0)
    with pytest.raises(ValueError, match=r"temperature: expected a number > 0 along with temperature_pool=4.0, got 0"):
        selector(temperature_pool=4.0)


POOLS = [{}, {"candidates": jnp.arange(1, NUM_PROMPTS)}, {"exclude": jnp.asarray([3, -1])}]


@pytest.mark.parametrize("options", POOLS)
@pytest.mark.parametrize(("temperature", "explore"), [(1.0, 0.0), (0.2, 0.5)])
def test_inclusion_probabilities_make_sums_unbiased(temperature, explore, options):
    ids, probs = draws(temperature, 5, explore, **options)
    pool = np.asarray(options.get("candidates", np.setdiff1d(np.arange(NUM_PROMPTS), options.get("exclude", []))))
    assert all(np.unique(row).size == 5 for row in ids[:100])
    assert set(ids.ravel()) == set(pool.tolist())
    assert 0 < probs.min() <= probs.max() <= 1
    values = np.random.default_rng(0).normal(size=NUM_PROMPTS)
    for of_prompts in (values, np.ones(NUM_PROMPTS)):
        sums = (of_prompts[ids] / probs).sum(axis=1)
        assert abs(sums.mean() - of_prompts[pool].sum()) < 4 * sums.std() / np.sqrt(NUM_DRAWS)
    # The batch itself is not a fair sample: better prompts are in it more often.
    assert PROBS[ids].mean() > PROBS[pool].mean() + 0.05


UNIFORM_CASES = [
    ({}, 4),
    ({"candidates": jnp.arange(2, NUM_PROMPTS)}, 4),
    ({"exclude": jnp.asarray([3, -1, 3, 5])}, 4),
    ({"candidates": jnp.arange(6), "exclude": jnp.asarray([0, 1, 2, 9])}, 4),
]


@pytest.mark.parametrize(("options", "batch_size"), UNIFORM_CASES)
def test_uniform_says_how_often_it_picks(options, batch_size):
    selector = selectors.uniform(NUM_PROMPTS)
    keys = jax.random.split(jax.random.key(4), NUM_DRAWS)
    ids, info = jax.jit(jax.vmap(lambda key: selector.select(None, key, batch_size, **options)))(keys)
    frequencies = np.bincount(np.ravel(ids), minlength=NUM_PROMPTS) / NUM_DRAWS
    said = np.zeros(NUM_PROMPTS)
    said[np.asarray(ids)] = np.asarray(info.inclusion_probs)
    assert np.all(np.abs(frequencies - said) <= 4 * np.sqrt(said * (1 - said) / NUM_DRAWS) + 1e-6)
    if not options:
        np.testing.assert_array_equal(info.inclusion_probs, np.float32(batch_size / NUM_PROMPTS))


def test_whoever_takes_all_takes_them_for_certain():
    ids, probs = draws(1.0, NUM_PROMPTS)
    assert np.all(np.sort(ids[:50], axis=1) == np.arange(NUM_PROMPTS))
    np.testing.assert_array_equal(probs, 1)


def test_no_temperature_takes_the_best():
    selector, state = with_scores(0.0)
    ids, info = selector.select(state, jax.random.key(0), 3)
    np.testing.assert_array_equal(ids, [11, 10, 9])
    assert info.inclusion_probs is None


def test_noise_is_of_the_gumbel_distribution():
    salts = jax.random.bits(jax.random.key(2), (4,), jnp.uint32)
    noise = np.sort(np.asarray(_ranking.gumbels(salts, jnp.arange(20_000)), np.float64))
    distance = np.abs(np.exp(-np.exp(-noise)) - (np.arange(20_000) + 0.5) / 20_000).max()
    # Kolmogorov's bound at a level of 1e-4.
    assert distance < 2.23 / np.sqrt(20_000)


def explored_slowly(scores, batch_size, temperature, explore, rng):
    """Returns the picks of one draw by numpy."""
    weights = scores ** (1 / temperature)
    cutoff = max(np.sort(each)[-batch_size] for each in (weights, weights / rng.exponential(size=scores.size)))
    weights = weights + explore * batch_size / scores.size * cutoff
    return rng.choice(scores.size, batch_size, replace=False, p=weights / weights.sum())


# A trial of candidates is one of all of them.
@pytest.mark.parametrize(("pool", "trial_size"), [(None, None), (None, 50), (150, None)])
@pytest.mark.parametrize("num_good", [20, 100])
def test_a_share_of_the_batch_explores(num_good, pool, trial_size, monkeypatch):
    if trial_size is not None:
        monkeypatch.setattr(ranking_keys, "_TRIAL_SIZE", trial_size)
    num_prompts, batch_size, explore = 200, 20, 0.25
    selector = selectors.last_state(num_prompts, temperature=0.01, explore=explore)
    observe = jax.jit(selector.observe)
    state = selector.init(jax.random.key(0))
    # What is partially solved stays so, and what is unsolved too. The good ones are those of a prime's multiples.
    is_good = np.isin(np.arange(num_prompts), 7 * np.arange(num_good) % num_prompts)
    for _ in range(30):
        ids, m = np.arange(num_prompts), np.where(is_good, 4, 0)
        state = observe(state, *(jnp.asarray(column, jnp.int32) for column in (ids, m, np.full(num_prompts, 8))))
    candidates = None if pool is None else jnp.arange(pool)
    keys = jax.random.split(jax.random.key(1), 2000)
    picks, info = jax.jit(jax.vmap(lambda key: selector.select(state, key, batch_size, candidates)))(keys)
    scores = np.asarray(selector.predict(state).p_informative, np.float64)[: pool or num_prompts]
    rng = np.random.default_rng(0)
    expected = [explored_slowly(scores, batch_size, 0.01, explore, rng) for _ in range(2000)]
    found, right = (np.mean(~is_good[np.asarray(ids)], axis=1) for ids in (picks, expected))
    # A trial of a part of the prompts is only about right.
    if trial_size is None:
        assert abs(found.mean() - right.mean()) < 4 * np.hypot(found.std(), right.std()) / np.sqrt(2000)
        # No weight in a sum over prompts is far above that of a batch of explorers alone.
        weights = batch_size / scores.size / np.asarray(info.inclusion_probs)
        assert np.quantile(weights, 0.999) < 2.5 / explore
    # Good prompts are drawn by that share too.
    share = explore * np.mean(~is_good[: scores.size])
    assert 0.7 * share < found.mean() < 1.4 * share


def test_a_trial_over_shards_is_that_of_one(monkeypatch):
    monkeypatch.setattr(ranking_keys, "_TRIAL_SIZE", 40)
    num_prompts, batch_size, size = 250, 30, 63  # every sixth; 63 is no multiple of it, and two prompts are padding
    salts = jax.random.bits(jax.random.key(0), (4,), jnp.uint32)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=4 * size), jnp.float32).at[num_prompts:].set(100.0)
    one = _sharding.Shards(num_prompts, num_prompts, 0, None, None)
    four = _sharding.Shards(num_prompts, size, 2, None, "shards")
    expected = ranking_keys.trial_among_all(0, salts, one, batch_size, weights[:num_prompts])
    cutoff = lambda first_id, mine: ranking_keys.trial_among_all(first_id, salts, four, batch_size, mine)
    found = jax.vmap(cutoff, axis_name="shards")(size * jnp.arange(4), weights.reshape(4, size))
    np.testing.assert_array_equal(found, np.full(4, expected))
    sampled = np.arange(0, num_prompts, 6)
    perturbed = weights[sampled] + _ranking.gumbels(salts, jnp.asarray(sampled))
    assert expected == max(np.sort(each)[-5] for each in (np.asarray(weights[sampled]), np.asarray(perturbed)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"explore": 1.0}, r"explore: expected a finite number >= 0 and < 1, got 1\.0; it is a share of a batch"),
        ({"explore": float("nan")}, r"explore: expected a finite number >= 0 and < 1, got nan; it is a share"),
        ({"explore": 0.1, "temperature": 0.0}, "temperature: expected a number > 0 along with explore=0.1, got 0"),
    ],
)
def test_bad_shares(options, message):
    with pytest.raises(ValueError, match=message):
        selectors.dps(4, **options)


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_bad_temperatures(temperature):
    with pytest.raises(ValueError, match=r"temperature: expected a finite number >= 0, got"):
        selectors.binomial_hmm(4, temperature=temperature)
