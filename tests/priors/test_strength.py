import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from dps_jax import priors, traces
from dps_jax.hmm import emissions
from dps_jax.hmm._transitions import TransitionPrior
from dps_jax.priors import _strength
from tests.reference import loop_filter

NUM_PROMPTS, NUM_ROUNDS = 20, 8
INITIAL = np.array([0.5, 0.3, 0.2])
MATRIX = np.array([[0.7, 0.25, 0.05], [0.05, 0.55, 0.4], [0.35, 0.05, 0.6]])
TRAINED = np.array([[0.2, 0.5, 0.3], [0.1, 0.3, 0.6], [0.05, 0.15, 0.8]])
GROUPS = np.arange(NUM_PROMPTS) % 3 - 1
RATES = np.array([0.1, 0.5, 0.85])


def likelihood_of(emission):
    """Returns (successes, count) -> p(successes | state), K numbers, without binomial coefficients."""
    if emission.kind == "exact":
        return lambda successes, count: loop_filter.exact_likelihood(3, successes, count)
    if emission.precision is None:
        return lambda successes, count: loop_filter.binomial_likelihood(RATES, successes, count)
    a, b = RATES * emission.precision, (1 - RATES) * emission.precision
    return lambda successes, count: stats.betabinom.pmf(successes, count, a, b) / math.comb(count, successes)


EMISSIONS = {
    "exact": emissions.exact(3),
    "binomial": emissions.binomial(RATES.tolist()),
    "beta-binomial": emissions.binomial(RATES.tolist(), 12.0),
}


def random_trace(seed=0, num_prompts=NUM_PROMPTS):
    return traces.simulate_hmm(
        np.random.default_rng(seed),
        INITIAL,
        MATRIX,
        EMISSIONS["binomial"],
        num_rounds=NUM_ROUNDS,
        num_prompts=num_prompts,
        batch_size=num_prompts // 2,
        trained_matrix=TRAINED,
    ).trace


def prior_of(emission, *, is_split=False, num_groups=0):
    rng = np.random.default_rng(1)
    trained = lambda: 3 * rng.dirichlet(np.ones(3), 3) + 0.1 if is_split else None
    decay = 0.85
    groups = tuple(
        TransitionPrior(rng.dirichlet(np.ones(3)), 8 * rng.dirichlet(np.ones(3), 3), decay, emission, trained())
        for _ in range(num_groups)
    )
    return TransitionPrior(INITIAL, 4 * MATRIX, decay, emission, trained(), groups)


def oracle_of(prior, outcomes, trace):
    """Returns log p(seen | rounds before) and beliefs, [T, N] and [T, K, N], of prompts as in `outcomes`."""
    likelihood = likelihood_of(prior.emission)
    parts = [(one.initial_probs, one.concentration, one.trained_concentration) for one in prior.groups]
    initial, idle, trained = prior.initial_probs, prior.concentration, prior.trained_concentration
    filtered = loop_filter.LoopFilter(
        NUM_PROMPTS, initial, idle, float(prior.decay), likelihood, trained, parts, GROUPS if parts else None
    )
    logs = np.zeros((outcomes.num_rounds, NUM_PROMPTS))
    beliefs = np.zeros((outcomes.num_rounds, 3, NUM_PROMPTS))
    rows = list(zip(*(column.tolist() for column in trace[:4]), strict=True))
    for t in range(outcomes.num_rounds):
        beliefs[t] = filtered.predicted_probs()
        seen = {n: (m, g) for index, n, m, g in rows if index == t}
        for n, outcome in seen.items():
            logs[t, n] = math.log(np.dot(beliefs[t, :, n], likelihood(*outcome)))
        filtered.observe(seen)
    ids = np.asarray(outcomes.prompt_ids)
    return logs[:, ids], beliefs[:, :, ids]


@pytest.mark.parametrize("num_groups", [0, 2], ids=["alone", "groups"])
@pytest.mark.parametrize("is_split", [False, True], ids=["one", "split"])
@pytest.mark.parametrize("emission", list(EMISSIONS))
def test_predictions_are_those_of_the_reference(emission, is_split, num_groups):
    trace = random_trace()
    outcomes = priors.prepare(trace, groups=GROUPS)
    prior = prior_of(EMISSIONS[emission], is_split=is_split, num_groups=num_groups)
    logs, beliefs = oracle_of(prior, outcomes, trace)
    # Sums of at most some 40 nats in float32, and of soft counts over eight rounds.
    np.testing.assert_allclose(priors.log_predictive_probs(prior, outcomes), logs, atol=2e-4)
    np.testing.assert_allclose(priors.predicted_probs(prior, outcomes), beliefs, atol=2e-5)


def test_a_prior_with_groups_needs_them():
    prior = prior_of(EMISSIONS["exact"], num_groups=2)
    bare = priors.prepare(random_trace())
    for fn in (priors.log_predictive_probs, priors.predicted_probs, priors.tune):
        with pytest.raises(ValueError, match=r"outcomes: expected groups for a prior with 2 groups, got none"):
            fn(prior, bare)


def test_a_prior_with_too_few_groups_is_refused():
    """Group 2 of a prior of two must not be taken for the population, which comes after them."""
    prior = prior_of(EMISSIONS["exact"], num_groups=2)
    outcomes = priors.prepare(random_trace(), groups=np.full(NUM_PROMPTS, 2))
    with pytest.raises(ValueError, match=r"groups: expected"):
        priors.log_predictive_probs(prior, outcomes)


def test_a_prior_without_groups_ignores_them():
    prior, trace = prior_of(EMISSIONS["exact"]), random_trace()
    np.testing.assert_array_equal(
        priors.log_predictive_probs(prior, priors.prepare(trace, groups=GROUPS)),
        priors.log_predictive_probs(prior, priors.prepare(trace)),
    )


def test_scale_changes_sums_and_decay_of_all_parts():
    prior = prior_of(EMISSIONS["exact"], is_split=True, num_groups=2)
    scaled = _strength.scale(prior, 30.0, 0.5)
    assert scaled.concentration.sum(axis=1).mean() == pytest.approx(30)
    factor = 30 / prior.concentration.sum(axis=1).mean()
    for one, other in zip((prior, *prior.groups), (scaled, *scaled.groups), strict=True):
        assert other.decay == 0.5
        np.testing.assert_allclose(other.concentration, factor * one.concentration, rtol=1e-12)
        np.testing.assert_allclose(other.trained_concentration, factor * one.trained_concentration, rtol=1e-12)
        np.testing.assert_array_equal(other.initial_probs, one.initial_probs)
        assert other.emission == one.emission
    assert prior.decay == 0.85
    assert _strength.scale(prior_of(EMISSIONS["exact"]), 2.0, 1.0).trained_concentration is None


@pytest.mark.parametrize("is_split", [False, True], ids=["one", "split"])
@pytest.mark.parametrize("num_groups", [0, 2], ids=["alone", "groups"])
@pytest.mark.parametrize(("total", "decay"), [(1000.0, 0.0), (1.7, 1.0), (17.0, 0.93)])
def test_tuned_priors_predict_no_worse(total, decay, num_groups, is_split):
    """`shared` gives sums of 1000 and a decay of 0, `hierarchical` sums of its own and 1; 1.7 is best here."""
    outcomes = priors.prepare(random_trace(2), groups=GROUPS)
    prior = _strength.scale(prior_of(EMISSIONS["exact"], is_split=is_split, num_groups=num_groups), total, decay)
    before = float(priors.log_predictive_probs(prior, outcomes).sum())
    tuned = priors.tune(prior, outcomes)
    after = float(priors.log_predictive_probs(tuned, outcomes).sum())
    # Rounding of a sum of 80 numbers of order 1.
    assert after >= before - 1e-3


def test_tuning_picks_the_best_of_a_grid():
    outcomes = priors.prepare(random_trace(3))
    prior = prior_of(EMISSIONS["exact"])
    tuned = priors.tune(prior, outcomes)
    for value in (1.0, 10.0, 100.0):
        for decay in (0.0, 0.8, 1.0):
            other = dataclasses.replace(
                prior,
                concentration=value / 4 * prior.concentration * (4 / prior.concentration.sum(axis=1).mean()),
                decay=decay,
            )
            found = priors.log_predictive_probs(tuned, outcomes).sum()
            assert found >= priors.log_predictive_probs(other, outcomes).sum() - 1e-3
    np.testing.assert_allclose(
        tuned.concentration / tuned.concentration.sum(), prior.concentration / prior.concentration.sum(), rtol=1e-9
    )


def test_tuning_leaves_out_prompts_of_long_traces(monkeypatch):
    outcomes = priors.prepare(random_trace(4, 40), groups=np.arange(40) % 3 - 1)
    prior = prior_of(EMISSIONS["exact"], num_groups=2)
    monkeypatch.setattr(_strength, "_MAX_CELLS", NUM_ROUNDS * 10)
    seen = []
    found = _strength.log_predictive_probs
    monkeypatch.setattr(
        _strength,
        "log_predictive_probs",
        lambda one, some: (seen.append(some.prompt_ids.tolist()), found(one, some))[1],
    )
    priors.tune(prior, outcomes)
    assert {len(ids) for ids in seen} == {10}
    assert len({tuple(ids) for ids in seen}) == 1
