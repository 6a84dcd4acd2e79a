import numpy as np
import pytest

from dps_jax import priors, traces
from dps_jax.hmm import emissions
from dps_jax.hmm._transitions import TransitionPrior, resolve_prior
from dps_jax.traces import Trace, concatenate
from tests.priors.test_strength import prior_of

INITIAL = np.array([0.7, 0.2, 0.1])
MATRIX = np.array([[0.75, 0.2, 0.05], [0.05, 0.6, 0.35], [0.3, 0.05, 0.65]])
TRAINED = np.array([[0.2, 0.75, 0.05], [0.05, 0.2, 0.75], [0.75, 0.05, 0.2]])
RATES = (0.05, 0.5, 0.95)
WINDOW = 20  # one shape for all tests here


def simulated(num_rounds=15, emission=None, trained=None, seed=0):
    return traces.simulate_hmm(
        np.random.default_rng(seed),
        INITIAL,
        MATRIX,
        emission or emissions.exact(3),
        num_rounds=num_rounds,
        num_prompts=60,
        batch_size=30,
        trained_matrix=trained,
    ).trace


def loss(prior, trace):
    """Returns the one-step log loss per visit, nats."""
    return -float(priors.log_predictive_probs(prior, priors.prepare(trace)).sum()) / trace.rounds.size


def shifted(trace, rounds):
    return trace._replace(rounds=trace.rounds + np.int32(rounds))


@pytest.fixture(scope="module")
def found():
    return priors.refit(resolve_prior("uniform"), simulated(), last_rounds=WINDOW)


def test_a_refit_predicts_better(found):
    before = resolve_prior("uniform")
    trace, other = simulated(), simulated(seed=1)
    # The uniform prior is some tenths of a nat above the truth; the mode of 13 numbers from 450 visits loses
    # 13 / 900 = 0.015 of it on another trace.
    assert loss(found, trace) < loss(before, trace) - 0.05
    assert loss(found, other) < loss(before, other) - 0.05
    truth = TransitionPrior(INITIAL, 1000 * MATRIX, 0.0)
    assert loss(found, other) < loss(truth, other) + 0.06
    assert found.emission == before.emission
    assert 0 <= float(found.decay) <= 1
    assert np.all(found.concentration > 0)
    # The circle goes the way it went: 0 -> 1 -> 2 -> 0.
    counts = found.concentration / found.concentration.sum(axis=1, keepdims=True)
    assert counts[1, 2] > counts[2, 1]
    assert counts[2, 0] > counts[0, 2]
    # 30 visits in round 0, and few numbers: four times sqrt(0.25 / 30) and what a uniform prior of 60 pulls.
    assert np.argmax(found.initial_probs) == 0
    np.testing.assert_allclose(found.initial_probs, INITIAL, atol=0.37)


def test_a_refit_depends_on_its_arguments_alone(found):
    again = priors.refit(resolve_prior("uniform"), simulated(), last_rounds=WINDOW)
    for name in ("initial_probs", "concentration", "decay"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))


def test_a_refit_goes_on_from_the_prior_at_hand(found):
    again = priors.refit(found, simulated(), last_rounds=WINDOW)
    assert loss(again, simulated()) < loss(found, simulated()) + 0.01


@pytest.mark.parametrize(
    "trace", [shifted(simulated(), 5), simulated(num_rounds=WINDOW + 5)], ids=["begins_later", "longer_than_window"]
)
def test_the_initial_belief_is_kept_once_round_0_is_gone(trace):
    before = resolve_prior("progress", initial=[0.2, 0.5, 0.3])
    after = priors.refit(before, trace, last_rounds=WINDOW)
    np.testing.assert_array_equal(after.initial_probs, before.initial_probs)
    assert not np.allclose(after.concentration, before.concentration)


def test_the_window_is_all_that_counts():
    early, late = simulated(seed=2), shifted(simulated(seed=3), WINDOW)
    both = concatenate([early, late])
    before = resolve_prior("uniform")
    one = priors.refit(before, both, last_rounds=15)
    other = priors.refit(before, late, last_rounds=15)
    np.testing.assert_array_equal(one.concentration, other.concentration)


def test_zeros_of_a_prior_are_no_obstacle():
    """The local prior has zeros, and the decays 0 and 1 are at the ends of their range."""
    for decay in (0.0, 1.0):
        before = resolve_prior("local", decay=decay, initial=0)
        after = priors.refit(before, simulated(), last_rounds=WINDOW)
        assert np.all(np.isfinite(after.concentration))
        assert loss(after, simulated()) < loss(before, simulated())


@pytest.mark.parametrize("precision", [pytest.param(None, marks=pytest.mark.slow), 15.0])
def test_binomial_emissions_are_kept(precision):
    emission = emissions.binomial(RATES, precision)
    before = TransitionPrior(np.full(3, 1 / 3), np.ones((3, 3)), 0.7, emission)
    trace = simulated(emission=emission)
    after = priors.refit(before, trace, last_rounds=WINDOW)
    assert after.emission == emission
    assert loss(after, trace) < loss(before, trace) - 0.02


def test_both_kinds_of_move_are_refitted():
    trace, other = simulated(trained=TRAINED), simulated(trained=TRAINED, seed=1)
    before = TransitionPrior(np.full(3, 1 / 3), np.ones((3, 3)), 0.7, trained_concentration=np.ones((3, 3)))
    after = priors.refit(before, trace, last_rounds=WINDOW, num_steps=100)
    assert loss(after, trace) < loss(before, trace) - 0.05
    assert loss(after, other) < loss(before, other) - 0.05
    trained = after.trained_concentration / after.trained_concentration.sum(axis=1, keepdims=True)
    # Half of the moves are trained: 210 in all, 70 a row, and half of those seen: 4 * sqrt(0.2 / 35) = 0.3 at worst.
    assert np.max(np.abs(trained - TRAINED)) < 0.3
    assert np.all(trained[[0, 1, 2], [1, 2, 0]] > trained[[1, 2, 0], [0, 1, 2]])


def test_a_part_of_many_prompts_is_used():
    before = resolve_prior("uniform")
    some = priors.refit(before, simulated(), last_rounds=WINDOW, max_prompts=40)
    assert loss(some, simulated()) < loss(before, simulated()) - 0.02


def test_bad_arguments():
    trace, before = simulated(), resolve_prior("uniform")
    empty = Trace(*(np.zeros(0, np.int32),) * 4)
    with pytest.raises(ValueError, match=r"prior: expected a prior without groups, got 2 groups"):
        priors.refit(prior_of(emissions.exact(3), num_groups=2), trace)
    with pytest.raises(ValueError, match=r"trace: expected at least one row, got an empty trace"):
        priors.refit(before, empty)
    with pytest.raises(ValueError, match=r"last_rounds: expected an integer >= 1, got 0"):
        priors.refit(before, trace, last_rounds=0)
    with pytest.raises(ValueError, match=r"num_steps: expected an integer >= 1, got 0"):
        priors.refit(before, trace, num_steps=0)
    with pytest.raises(ValueError, match=r"max_prompts: expected an integer >= 1, got 0"):
        priors.refit(before, trace, max_prompts=0)
