"""Hardness: what groups are expected to be worth when hard prompts count for more; the selector that ranks by it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dps_jax import selectors
from dps_jax.predictors import _binomial_hmm as predictor
from dps_jax.predictors._outcomes import worth_of_outcomes

NUM_PROMPTS = 60


def observed(selector, num_rounds=3):
    """Returns a state in which some prompts were solved rarely, some often, some never."""
    state, rates = selector.init(jax.random.key(0)), np.linspace(0, 1, 30)
    rng, observe = np.random.default_rng(0), jax.jit(selector.observe)
    for _ in range(num_rounds):
        successes = jnp.asarray(rng.binomial(8, rates), jnp.int32)
        state = observe(state, jnp.arange(30), successes, jnp.full(30, 8))
    return state


@pytest.mark.parametrize("hardness", [0.0, 0.5, 2.0])
def test_worth_is_an_expectation_over_outcomes(hardness):
    worth = worth_of_outcomes(8, hardness)
    for rate in (0.03, 0.4, 0.9):
        by_hand = sum(scipy.stats.binom.pmf(m, 8, rate) * (1 - m / 8) ** hardness for m in range(1, 8))
        np.testing.assert_allclose(scipy.stats.binom.pmf(np.arange(9), 8, rate) @ worth, by_hand, rtol=1e-12)
    assert worth[0] == worth[8] == 0


@pytest.mark.parametrize("method", ["dps", "mopps", "arcsine"])
def test_any_method_that_predicts_can_rank_by_it(method):
    selector = selectors.build(method, NUM_PROMPTS, hardness=2.0)
    state = observed(selector)
    ids, info = jax.jit(selector.select, static_argnums=2)(state, jax.random.key(1), NUM_PROMPTS)
    plain = selectors.build(method, NUM_PROMPTS)
    # The score of a prompt, recomputed from the plain method's predicted success rates, orders by hardness: of two
    # prompts about equally surely informative the one with fewer successes comes first.
    rates = np.asarray(plain.predict(observed(plain)).success_rate)
    order = [int(i) for i in ids if i < 30]
    rank = {prompt: place for place, prompt in enumerate(order)}
    assert np.all(np.diff(info.scores) <= 0)
    assert rates[8] < rates[21]
    assert rank[8] < rank[21]
    easy = selectors.build(method, NUM_PROMPTS, hardness=0.0)
    scores = easy.select(observed(easy), jax.random.key(1), NUM_PROMPTS)[1].scores
    assert not np.allclose(np.sort(scores), np.sort(info.scores))


def test_scores_of_dps_are_those_of_its_outcomes_by_hand():
    selector = selectors.build("dps", NUM_PROMPTS, hardness=1.0)
    state = observed(selector)
    ids, info = selector.select(state, jax.random.key(1), NUM_PROMPTS)
    probs = np.asarray(selector.predicted_probs(state), np.float64)
    # Partially solved is any of m = 1, ..., 7 at equal odds, of which 1 - m / 8 is a half on average.
    np.testing.assert_allclose(info.scores, probs[1, np.asarray(ids)] * 0.5, rtol=1e-5)


def test_scores_of_binomial_hmm_by_hand():
    options = {"num_states": 8, "group_size": 6}
    build = lambda hardness: predictor.binomial_hmm(is_corrected=False, hardness=hardness, **options)
    rng = np.random.default_rng(2)
    hard, plain = build(1.5), build(0.0)
    states, observes = [one.init(20) for one in (hard, plain)], [jax.jit(one.observe) for one in (hard, plain)]
    for _ in range(4):
        ids, successes = jnp.asarray(rng.permutation(20)[:8]), jnp.asarray(rng.integers(0, 7, 8))
        outcome = ids, successes, jnp.full(8, 6)
        states = [observe(state, *outcome) for observe, state in zip(observes, states, strict=True)]
    # The predicted distribution of m is the same; without networks scores are its expectations.
    probs = np.asarray(plain.outcome_probs(states[1], jnp.arange(20)), np.float64)
    np.testing.assert_allclose(states[0].score, worth_of_outcomes(6, 1.5) @ probs, atol=1e-5)
    np.testing.assert_allclose(states[1].score, probs[1:-1].sum(axis=0), atol=1e-5)


def test_instructive_is_binomial_hmm_with_other_defaults():
    one = selectors.build("instructive", NUM_PROMPTS)
    other = selectors.build("binomial_hmm", NUM_PROMPTS, hardness=1.0, temperature=0.3)
    states = [observed(selector, 1) for selector in (one, other)]
    chex.assert_trees_all_equal(*states)
    picks = [selector.select(state, jax.random.key(4), 9) for selector, state in zip((one, other), states, strict=True)]
    chex.assert_trees_all_equal(*picks)
    assert picks[0][1].inclusion_probs is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hardness": -1.0}, r"hardness: expected a finite number >= 0, got -1\.0"),
        ({"hardness": float("nan")}, r"hardness: expected a finite number >= 0, got nan"),
        ({"hardness": 1.0, "value": "variance"}, r"hardness: expected 0 along with value='variance', got 1\.0"),
        ({"hardness": 1.0, "thompson": True}, r"hardness: expected 0 along with thompson=True, got 1\.0"),
    ],
)
@pytest.mark.parametrize("method", ["dps", "binomial_hmm"])
def test_bad_hardness_is_refused(method, options, message):
    with pytest.raises(ValueError, match=message):
        selectors.build(method, NUM_PROMPTS, **options)
