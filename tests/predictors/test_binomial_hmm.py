"""The binomial HMM against a slow float64 oracle, and what it should be good at."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax.predictors import _binomial_hmm as module
from dps_jax.predictors import _rate_bank
from dps_jax.predictors._binomial_hmm import binomial_hmm
from tests.reference.binomial_hmm import BinomialHMM

NUM_PROMPTS, NUM_STATES = 9, 5
GROUPS = np.array([0, 1, 1, -1, 0, 2, 2, -1, 1])


def oracle(groups, decays):
    constants = {
        "anywhere": _rate_bank._ANYWHERE_SHARE,
        "neighbours": _rate_bank._NEIGHBOUR_SHARES,
        "move_count": _rate_bank._MOVE_COUNT,
        "row_count": _rate_bank._ROW_COUNT,
        "row_width": _rate_bank._ROW_WIDTH,
        "population_count": _rate_bank._POPULATION_COUNT,
        "group_count": _rate_bank._GROUP_COUNT,
        "weight_decay": _rate_bank._WEIGHT_DECAY,
    }
    options = {
        "rates": 1 / (1 + np.exp(-np.array([-6.0, -3.0, 0.0, 3.0, 6.0]))),
        "decays": decays,
        "constants": constants,
        "group_size": 8,
    }
    return BinomialHMM(NUM_PROMPTS, groups, **options)


def rounds(seed, num_rounds=60, size=3):
    """Yields ids, successes and counts; the last three prompts are idle from round 3 to round 50."""
    rng = np.random.default_rng(seed)
    for index in range(num_rounds):
        pool = NUM_PROMPTS if index < 3 or index > 50 else NUM_PROMPTS - 3
        ids = rng.choice(pool, size, replace=False)
        counts = rng.integers(1, 12, size)
        yield ids, rng.binomial(counts, (ids + 1) / 11), counts


@pytest.mark.parametrize("groups", [None, GROUPS], ids=["alone", "groups"])
def test_predictions_match_the_oracle(strict, groups):
    """The last prompts are away for longer than the radix, so that both tables of powers are used."""
    decays = (0.9, 1.0)
    slow = oracle(groups, decays)
    fast = binomial_hmm(group_ids=groups, num_states=NUM_STATES, decays=decays, is_compact=False, is_corrected=False)
    state, observe = fast.init(NUM_PROMPTS), jax.jit(fast.observe)
    all_prompts, outcome_probs = jnp.arange(NUM_PROMPTS, dtype=jnp.int32), jax.jit(fast.outcome_probs)
    for ids, successes, counts in rounds(0):
        expected = np.stack([slow.outcome_probs(prompt) for prompt in range(NUM_PROMPTS)], axis=1)
        np.testing.assert_allclose(outcome_probs(state, all_prompts), expected, atol=2e-5)
        slow.observe(ids, successes, counts)
        padded = (np.append(column, [extra] * 2) for column, extra in ((ids, -1), (successes, 0), (counts, 0)))
        state = observe(state, *(jnp.asarray(column, jnp.int32) for column in padded))
    for index, member in enumerate(slow.members):
        np.testing.assert_allclose(state.learned.bank.moves[index], member.moves, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(state.learned.bank.initial[index], member.initial, rtol=2e-3, atol=2e-3)
    weights = jax.nn.softmax(state.learned.bank.log_weights)
    np.testing.assert_allclose(weights, slow.weights(), atol=2e-3)


def run(predictor, num_prompts, seed=0, num_rounds=30, size=4):
    rng = np.random.default_rng(seed)
    state, observe = predictor.init(num_prompts), jax.jit(predictor.observe)
    for _ in range(num_rounds):
        ids = rng.choice(num_prompts, size, replace=False)
        successes = rng.binomial(8, ids / num_prompts)
        state = observe(state, *(jnp.asarray(column, jnp.int32) for column in (ids, successes, np.full(size, 8))))
    return state


@pytest.mark.parametrize("is_corrected", [False, True])
def test_predict_agrees_with_outcome_probs(is_corrected):
    predictor = binomial_hmm(group_ids=np.arange(40) % 3 - 1, is_corrected=is_corrected)
    state = run(predictor, 40)
    probs = np.asarray(jax.jit(predictor.outcome_probs)(state, jnp.arange(40)))
    np.testing.assert_allclose(probs.sum(axis=0), 1, atol=1e-4)
    found, share = jax.jit(predictor.predict)(state), np.arange(9) / 8
    np.testing.assert_allclose(found.p_informative, probs[1:-1].sum(axis=0), atol=1e-4)
    np.testing.assert_allclose(found.success_rate, share @ probs, atol=1e-4)
    np.testing.assert_allclose(found.variance, (share * (1 - share)) @ probs, atol=1e-4)
    if not is_corrected:
        np.testing.assert_allclose(state.score, found.p_informative, atol=1e-5)


def run_streams(predictor, num_streams=12, num_prompts=40, num_rounds=60, size=8):
    """Returns P(0 < m < G) and scores after several streams of visits, [S, N] each."""
    rngs = [np.random.default_rng(seed) for seed in range(num_streams)]
    state = jax.tree.map(lambda leaf: jnp.stack([leaf] * num_streams), predictor.init(num_prompts))
    observe = jax.jit(jax.vmap(predictor.observe))
    for _ in range(num_rounds):
        ids = np.stack([rng.choice(num_prompts, size, replace=False) for rng in rngs])
        successes = np.stack([rng.binomial(8, row / num_prompts) for rng, row in zip(rngs, ids, strict=True)])
        state = observe(state, *(jnp.asarray(table, jnp.int32) for table in (ids, successes, np.full(ids.shape, 8))))
    return np.asarray(jax.jit(jax.vmap(predictor.predict))(state).p_informative), np.asarray(state.score)


@pytest.mark.parametrize("is_corrected", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sixteen_bits_are_enough(is_corrected):
    """Training makes more of what rounding leaves in the inputs of the networks, but less than they differ anyway."""
    exact, compact = (run_streams(binomial_hmm(is_compact=bits, is_corrected=is_corrected)) for bits in (False, True))
    difference = np.abs(exact[0] - compact[0])
    if is_corrected:
        without_optimism = run_streams(binomial_hmm(is_compact=False, optimism=0.0))
        one_deviation = exact[1] - without_optimism[1]
        assert difference.mean() < 0.5 * one_deviation.mean()
    else:
        assert difference.max() < 1e-3
    # Log losses of either form on the outcomes that the rounds are drawn from are the same.
    rates = np.arange(40) / 40
    chances = 1 - rates**8 - (1 - rates) ** 8
    losses = [-np.mean(chances * np.log(p) + (1 - chances) * np.log1p(-p)) for p, _ in (exact, compact)]
    assert abs(losses[0] - losses[1]) < 1e-3


def test_scores_are_brought_up_to_date_in_turns(monkeypatch):
    monkeypatch.setattr(module, "_REFRESH_SIZE", 16)
    predictor = binomial_hmm(is_corrected=False)
    state = run(predictor, 40, num_rounds=30)
    observe, exact = jax.jit(predictor.observe), lambda state: np.asarray(predictor.predict(state).p_informative)
    no_visits = jnp.full(2, -1, jnp.int32), jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.int32)
    is_fresh = np.zeros(40, bool)
    for _ in range(3):
        state = observe(state, *no_visits)
        is_fresh |= np.abs(np.asarray(state.score) - exact(state)) < 1e-6
    assert is_fresh.all()
    # What was just visited is exact at once.
    ids = jnp.asarray([0, 39], jnp.int32)
    state = observe(state, ids, jnp.asarray([3, 5], jnp.int32), jnp.full(2, 8, jnp.int32))
    np.testing.assert_allclose(state.score[ids], exact(state)[ids], atol=1e-5)


@pytest.mark.parametrize("num_rounds", [0, 7])
def test_scores_of_unseen_prompts_are_those_of_their_group(num_rounds):
    predictor = binomial_hmm(group_ids=np.arange(40) % 3 - 1)
    model, state = predictor.observe.args[0], run(predictor, 40, num_rounds=num_rounds)
    expected = module._mapped(model, state, functools.partial(module._score, model), jnp.arange(40, dtype=jnp.int32))
    assert (state.visit < 0).any()
    np.testing.assert_allclose(state.score, expected, atol=1e-6)
    for group in range(3):
        assert np.unique(np.asarray(state.score)[(state.visit < 0) & (state.group == group)]).size == 1


def test_unseen_prompts_of_a_group_are_like_it():
    groups = np.arange(200) % 2
    predictor = binomial_hmm(group_ids=groups)
    state, observe, rng = predictor.init(200), jax.jit(predictor.observe), np.random.default_rng(0)
    for start in range(0, 100, 10):
        ids = np.arange(start, start + 10)
        successes = rng.binomial(8, np.where(groups[ids], 0.9, 0.1))
        state = observe(state, *(jnp.asarray(c, jnp.int32) for c in (ids, successes, np.full(10, 8))))
    rates = np.asarray(predictor.predict(state).success_rate)[100:]
    assert rates[groups[100:] == 1].min() > 0.75
    assert rates[groups[100:] == 0].max() < 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_states": 2}, r"num_states: expected an integer >= 3"),
        ({"decays": ()}, r"decays: expected one or more numbers in \(0, 1\], got \(\)"),
        ({"decays": (0.5, 1.5)}, r"decays: expected one or more numbers in \(0, 1\]"),
        ({"group_ids": [0, -2]}, r"group_ids: expected ids >= 0, or -1 for an unknown group, got -2"),
        ({"group_size": 0}, r"group_size: expected an integer >= 1 .*got 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        binomial_hmm(**options)
