"""Scores of predicted outcomes against values worked out by hand and against other libraries."""

import numpy as np
import pytest
from scipy import stats

from dps_jax.traces import scores

# Laws of m = 0, 1, 2, and what came.
PROBS = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.0, 0.0, 1.0]])
SUCCESSES = np.array([0, 1, 1, 0])


def random_case(seed, size=400, group_size=8):
    rng = np.random.default_rng(seed)
    rates = rng.beta(0.5, 0.5, size)
    probs = stats.binom.pmf(np.arange(group_size + 1), group_size, rates[:, None])
    return probs, rng.binomial(group_size, rates)


def test_log_losses_and_brier_scores():
    expected = -np.log([0.5, 0.8, 0.2, scores._SMALLEST_PROB])
    np.testing.assert_allclose(scores.log_losses(PROBS, SUCCESSES), expected)
    np.testing.assert_allclose(scores.brier_scores(PROBS, SUCCESSES), [0.25**2, 0.2**2, 0.8**2, 0.0])


def test_reliability():
    table = scores.reliability(PROBS, SUCCESSES, num_bins=5)
    np.testing.assert_array_equal(table["visits"], [1, 2, 0, 0, 1])
    np.testing.assert_allclose(table["predicted"], [0.0, 0.225, np.nan, np.nan, 0.8])
    np.testing.assert_allclose(table["share"], [0.0, 0.5, np.nan, np.nan, 1.0])
    assert scores.reliability_error(PROBS, SUCCESSES, 5) == pytest.approx((0 + 2 * 0.275 + 0.2) / 4)


def test_pooled_reliability_is_that_of_all_visits():
    probs, successes = random_case(3)
    parts = [
        scores.reliability(probs[rows], successes[rows]) for rows in (slice(0, 5), slice(5, 150), slice(150, None))
    ]
    pooled = scores.pooled_reliability(parts)
    for name, expected in scores.reliability(probs, successes).items():
        np.testing.assert_allclose(pooled[name], expected)
    assert scores.distance_in_bins(pooled) == pytest.approx(scores.reliability_error(probs, successes))


def test_right_predictions_are_as_far_off_as_chance_says():
    tables = [scores.reliability(*random_case(seed)) for seed in range(200)]
    found = [scores.distance_in_bins(table) for table in tables]
    expected = np.mean([scores.chance_in_bins(table) for table in tables])
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / np.sqrt(200)
    together = scores.pooled_reliability(tables)
    assert scores.chance_in_bins(together) == pytest.approx(expected / np.sqrt(200), rel=0.05)


def test_true_laws_are_reliable_and_hold_what_they_say():
    probs, successes = random_case(0, size=20_000)
    # Some 2,000 visits per bin: four times sqrt(0.25 / 2000).
    assert scores.reliability_error(probs, successes) < 0.045
    assert abs(scores.interval_coverage(probs, successes)) < 4 * np.sqrt(0.1 / 20_000)
    sharpened = probs**3 / (probs**3).sum(axis=1, keepdims=True)
    assert scores.interval_coverage(sharpened, successes) < -0.05
    assert scores.reliability_error(sharpened, successes) > 0.05


def test_auc_is_the_share_of_pairs_in_order():
    probs, successes = random_case(1)
    predicted, came = scores.informative_probs(probs), scores.is_informative(probs, successes)
    pairs = predicted[came][:, None] - predicted[~came][None]
    expected = np.mean((pairs > 0) + 0.5 * (pairs == 0))
    assert scores.auc(probs, successes) == pytest.approx(expected)
    assert np.isnan(scores.auc(PROBS[:1], SUCCESSES[:1]))


def test_spearman_is_that_of_scipy():
    probs, successes = random_case(2)
    expected = stats.spearmanr(probs @ np.arange(9), successes)[0]
    assert scores.spearman(probs, successes) == pytest.approx(expected)
    assert scores.spearman(np.full((3, 9), 1 / 9), [1, 2, 3]) == 0


def test_confusion():
    expected = [[1, 0, 1], [0, 1, 1], [0, 0, 0]]
    np.testing.assert_array_equal(scores.confusion(PROBS, SUCCESSES), expected)


def test_bootstrap_draws_prompts_whole():
    rng = np.random.default_rng(3)
    ids = np.repeat(np.arange(50), 20)
    # All visits of a prompt are alike: the error is that of 50 numbers, not of 1,000.
    values = rng.normal(size=50)[ids]
    mean, low, high = scores.bootstrap_by_prompt(values, ids, rng)
    assert mean == pytest.approx(values.mean())
    assert (high - low) / (2 * 1.96) == pytest.approx(values.std() / np.sqrt(50), rel=0.25)
