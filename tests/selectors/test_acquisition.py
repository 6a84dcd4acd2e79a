"""Values, draws, turns and quotas: picks beside a plain loop, promises over many rounds, chances beside frequencies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dps_jax import selectors
from dps_jax.selectors import _picking
from dps_jax.selectors._ranking import Ranking

NUM_PROMPTS, BATCH_SIZE = 24, 6
DRAWING = ("arcsine", "binomial_hmm", "dps", "logit_kalman", "mopps")


@functools.cache
def compiled(selector):
    """Returns select and predict; called without jax.jit, each of their operations would be compiled by itself."""
    return jax.jit(selector.select, static_argnums=2), jax.jit(selector.predict)


def experienced(selector, num_prompts=NUM_PROMPTS, num_rounds=8, seed=0):
    """Returns the state after rounds of prompts whose success rates differ."""
    rng = np.random.default_rng(seed)
    rates = rng.uniform(0.02, 0.98, num_prompts)
    observe = jax.jit(selector.observe)
    state = selector.init(jax.random.key(0))
    for _ in range(num_rounds):
        ids = rng.permutation(num_prompts)[: num_prompts // 2]
        state = observe(state, ids, rng.binomial(8, rates[ids]), np.full(ids.size, 8))
    return state


def pick_slowly(scores, groups, quotas, batch_size, exclude=()):
    """Returns the ids of turns, quotas and the best, in this order."""
    order = sorted(range(len(scores)), key=lambda n: -scores[n])
    allowed = [n for n in order if n not in exclude]
    in_quota = [n for g, size in quotas.items() for n in [n for n in allowed if groups[n] == g][:size]]
    turns = [n for n in allowed if scores[n] >= _picking.TURN_SCORE]
    quota = sorted((n for n in in_quota if n not in turns), key=lambda n: -scores[n])
    rest = [n for n in allowed if n not in turns and n not in quota]
    return (turns + quota + rest + [n for n in order if n in exclude])[:batch_size]


def lists_of(scores, groups, quotas, size, ties):
    def best(mask):
        masked = np.where(mask, scores, -np.inf)
        order = sorted(range(len(scores)), key=lambda n: (-masked[n], -ties[n]))[:size]
        columns = (np.asarray(order, np.int32), masked[order].astype(np.float32), ties[order].astype(np.float32))
        return Ranking(*map(jnp.asarray, columns))

    whole = best(np.ones(len(scores), bool))
    return whole, [(best(groups == g), number) for g, number in quotas.items()]


@pytest.mark.parametrize("seed", range(30))
def test_picks_are_those_of_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=NUM_PROMPTS)
    late = rng.permutation(NUM_PROMPTS)[: rng.integers(0, 5)]
    scores[late] = _picking.TURN_SCORE * (1 + np.arange(late.size))
    groups = rng.integers(-1, 3, NUM_PROMPTS)
    quotas = {g: int(n) for g, n in enumerate(rng.integers(0, 3, 3)) if n}
    # Few lengths, of which each is compiled by itself.
    exclude = rng.permutation(NUM_PROMPTS)[: rng.choice([0, 1, 9])]
    size = min(BATCH_SIZE + 1 + exclude.size, NUM_PROMPTS)
    best, of_groups = lists_of(scores, groups, quotas, size, rng.permutation(NUM_PROMPTS) + 1.0)
    picks = _picking.pick(best, of_groups, BATCH_SIZE, jnp.asarray(exclude, jnp.int32))
    expected = pick_slowly(scores, groups, quotas, BATCH_SIZE, set(exclude.tolist()))
    np.testing.assert_array_equal(picks.ids, expected)


@jax.jit
def pick_two_and_one(best, first, second):
    """Returns picks with quotas of two and of one."""
    return _picking.pick(best, [(first, 2), (second, 1)], BATCH_SIZE)


@pytest.mark.parametrize("seed", range(30))
def test_thresholds_decide_who_is_picked(seed):
    rng = np.random.default_rng(100 + seed)
    scores = rng.normal(size=NUM_PROMPTS)
    scores[rng.permutation(NUM_PROMPTS)[: rng.integers(0, 6)]] = _picking.TURN_SCORE
    groups = rng.integers(-1, 3, NUM_PROMPTS)
    ties = rng.permutation(NUM_PROMPTS) + 1.0

    def picks_of(scores):
        best, of_groups = lists_of(scores, groups, {0: 2, 2: 1}, BATCH_SIZE + 1, ties)
        return pick_two_and_one(best, *(ranking for ranking, _ in of_groups))

    picks = picks_of(scores)
    for n, threshold in zip(np.asarray(picks.ids).tolist(), np.asarray(picks.thresholds), strict=True):
        if scores[n] >= _picking.TURN_SCORE:
            assert threshold == -np.inf
            continue
        # Certain of its place, it keeps it with the worst of scores.
        cases = ((-1e6, True),) if threshold == -np.inf else ((threshold + 1e-4, True), (threshold - 1e-4, False))
        for score, is_in in cases:
            moved = scores.copy()
            moved[n] = score
            assert (n in np.asarray(picks_of(moved).ids)) == is_in


@pytest.mark.parametrize(
    "options", [{}, {"quotas": [0.5, 0.0, 0.2]}, {"max_wait": 40}, {"max_wait": 20, "quotas": [0.2, 0.4, 0.2]}]
)
def test_inclusion_probabilities_make_sums_unbiased(options):
    groups = np.arange(NUM_PROMPTS) % 3 if "quotas" in options else None
    selector = selectors.binomial_hmm(NUM_PROMPTS, temperature=1.0, groups=groups, **options)
    state = experienced(selector)
    keys = jax.random.split(jax.random.key(1), 4000)
    ids, info = jax.jit(jax.vmap(lambda key: selector.select(state, key, BATCH_SIZE)))(keys)
    ids, probs = np.asarray(ids), np.asarray(info.inclusion_probs)
    assert 0 < probs.min() <= probs.max() <= 1
    for values in (np.ones(NUM_PROMPTS), np.random.default_rng(0).normal(size=NUM_PROMPTS)):
        sums = (values[ids] / probs).sum(axis=1)
        assert abs(sums.mean() - values.sum()) < 4 * sums.std() / np.sqrt(sums.size) + 1e-5


@pytest.mark.parametrize("method", ["binomial_hmm", "dps", "queue", "uniform"])
def test_no_prompt_waits_longer_than_promised(method):
    num_prompts, max_wait = 50, 10
    selector = selectors.build(method, num_prompts, max_wait=max_wait)
    select, observe = jax.jit(selector.select, static_argnums=2), jax.jit(selector.observe)
    state, last = selector.init(jax.random.key(0)), np.full(num_prompts, -1)
    extra = 0
    for index in range(60):
        ids = np.asarray(select(state, jax.random.key(index), BATCH_SIZE)[0])
        extra += np.sum(index - last[ids] < max_wait)
        last[ids] = index
        # Some prompts would always be chosen, others never.
        state = observe(state, ids, np.where(ids < 10, 4, 0), np.full(BATCH_SIZE, 8))
        assert np.max(index - last) < max_wait
    assert extra > 0


def test_without_the_promise_some_wait_longer():
    selector = selectors.dps(50, decay=1.0)
    select, observe = jax.jit(selector.select, static_argnums=2), jax.jit(selector.observe)
    state, last = selector.init(jax.random.key(0)), np.full(50, -1)
    for index in range(40):
        ids = np.asarray(select(state, jax.random.key(index), BATCH_SIZE)[0])
        last[ids] = index
        state = observe(state, ids, np.where(ids < 10, 4, 0), np.full(BATCH_SIZE, 8))
    assert np.max(40 - last) > 10


def test_quotas_are_kept_and_the_rest_goes_to_the_best():
    groups = np.arange(NUM_PROMPTS) % 4
    options = {"value": "informative", "temperature": 0.0, "quotas": [0.34, 0.0, 0.17, 0.17]}
    selector = selectors.binomial_hmm(NUM_PROMPTS, groups=groups, **options)
    state, (select, predict) = experienced(selector), compiled(selector)
    scores = np.asarray(predict(state).p_informative, np.float64)
    for candidates in (None, jnp.arange(3, NUM_PROMPTS)):
        ids = np.asarray(select(state, jax.random.key(0), BATCH_SIZE, candidates)[0])
        masked = scores.copy()
        left_out = () if candidates is None else (0, 1, 2)
        masked[list(left_out)] = -1
        assert set(ids.tolist()) == set(pick_slowly(masked, groups, {0: 2, 2: 1, 3: 1}, BATCH_SIZE))


def test_a_group_smaller_than_its_quota_gives_its_places_to_others():
    groups = np.where(np.arange(NUM_PROMPTS) == 7, 0, 1)
    selector = selectors.uniform(NUM_PROMPTS, quotas=[1.0, 0.0], groups=groups)
    ids = np.asarray(selector.select(selector.init(jax.random.key(0)), jax.random.key(1), BATCH_SIZE)[0])
    assert 7 in ids
    assert np.unique(ids).size == BATCH_SIZE


@pytest.mark.parametrize("method", DRAWING)
def test_draws_are_fair(method):
    selector = selectors.build(method, NUM_PROMPTS, thompson=True, temperature=0.0)
    state = experienced(selector, num_rounds=5)
    # One prompt by itself is its own batch: its score is what was drawn.
    value = {"mopps": "variance"}.get(method, "p_informative")
    candidate = jnp.asarray([3, 11, 17])
    draw = lambda key: selector.select(state, key, 3, candidate)
    ids, info = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(2), 3000))
    expected = getattr(compiled(selector)[1](state), value)
    # The prediction of arcsine is a sum over a grid of angles.
    slack = 2e-3 if method == "arcsine" else 1e-4
    for n in candidate.tolist():
        drawn = np.asarray(info.scores)[np.asarray(ids) == n]
        assert drawn.std() > 0
        assert abs(drawn.mean() - expected[n]) < 4 * drawn.std() / np.sqrt(drawn.size) + slack


def test_mopps_draws_from_its_beta_distribution():
    selector = selectors.mopps(2, thompson=True, decay=1.0)
    state = selector.observe(
        selector.init(jax.random.key(0)), jnp.asarray([0, 1]), jnp.asarray([7, 1]), jnp.asarray([8, 8])
    )
    keys = jax.random.split(jax.random.key(3), 3000)
    ids, info = jax.jit(jax.vmap(lambda key: selector.select(state, key, 2)))(keys)
    drawn = np.asarray(info.scores)[np.asarray(ids) == 0] / (1 - 1 / 8)
    rates = stats.beta(8, 2).rvs(3000, random_state=np.random.default_rng(0))
    assert stats.ks_2samp(drawn, rates * (1 - rates)).pvalue > 1e-3


def test_draws_differ_by_round_and_prompt():
    selector = selectors.binomial_hmm(NUM_PROMPTS, thompson=True, temperature=0.0)
    state, (select, _) = experienced(selector), compiled(selector)
    picked = [tuple(np.asarray(select(state, jax.random.key(k), BATCH_SIZE)[0]).tolist()) for k in range(8)]
    assert len(set(picked)) > 4


@pytest.mark.parametrize("method", ["binomial_hmm", "dps", "queue"])
def test_values_and_tokens_make_the_score(method):
    tokens = np.random.default_rng(0).uniform(10, 100, NUM_PROMPTS)
    options = {"value": "variance", "expected_tokens": tokens, "temperature": 0.0}
    selector = selectors.build(method, NUM_PROMPTS, **options)
    state, (select, predict) = experienced(selector), compiled(selector)
    ids, info = select(state, jax.random.key(0), BATCH_SIZE)
    scores = np.broadcast_to(predict(state).variance, NUM_PROMPTS) / tokens
    np.testing.assert_array_equal(ids, np.argsort(-scores)[:BATCH_SIZE])
    np.testing.assert_allclose(info.scores, np.sort(scores)[::-1][:BATCH_SIZE], rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("dps", {"value": "entropy"}, "value: expected one of 'informative', 'variance', got 'entropy'"),
        ("dps", {"max_wait": 0}, "max_wait: expected an integer >= 1 .*got 0"),
        ("dps", {"expected_tokens": np.ones(3)}, r"expected_tokens: expected 24 finite numbers > 0.* got shape \[3\]"),
        (
            "dps",
            {"expected_tokens": np.zeros(24)},
            "expected_tokens: expected 24 finite numbers > 0.* smallest value of 0.0",
        ),
        ("dps", {"quotas": [0.7, 0.7]}, "quotas: expected shares of a batch that sum to at most 1, got"),
        ("dps", {"quotas": [0.5, np.nan]}, "quotas: expected shares"),
        ("uniform", {"quotas": [0.5]}, "groups: expected 24 ids for the quotas of 1 groups, got None"),
        ("uniform", {"quotas": [0.5], "groups": [0, 0]}, "groups: expected 24 ids, one per prompt, got 2"),
        (
            "uniform",
            {"quotas": [0.5], "groups": [3] * 24},
            r"groups: expected ids in \[-1, 1\), one for every quota, got 3",
        ),
        (
            "queue",
            {"thompson": True},
            "thompson: expected False for a method that has no belief to draw from, got True",
        ),
        (
            "history",
            {"temperature": 0.5},
            "temperature: expected value='informative' or 'variance' along with this option",
        ),
        ("mopps", {"expected_tokens": np.ones(24)}, "expected_tokens: expected value='informative' or 'variance'"),
        ("arcsine", {"lam": 0.5}, "options of method 'arcsine': expected options among .*max_wait.*, got lam"),
    ],
)
def test_bad_options(method, options, message):
    with pytest.raises(ValueError, match=message):
        selectors.build(method, NUM_PROMPTS, **options)


def test_batches_too_small_for_the_promise():
    selector = selectors.dps(NUM_PROMPTS, max_wait=3)
    state = selector.init(jax.random.key(0))
    message = r"max_wait: expected at least num_prompts / batch_size = 4 rounds with batches of 6, got 3; use larger"
    with pytest.raises(ValueError, match=message):
        selector.select(state, jax.random.key(0), BATCH_SIZE)
    assert selector.select(state, jax.random.key(0), BATCH_SIZE, jnp.arange(10))[0].shape == (BATCH_SIZE,)
