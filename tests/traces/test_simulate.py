import tracemalloc

import chex
import numpy as np
import pytest
from scipy import stats

from dps_jax.hmm import emissions
from dps_jax.traces import REGIMES, simulate_hmm, simulate_learners, write_trace

# Asymmetric, a zero in each.
IDLE = np.array([[0.7, 0.25, 0.05], [0.4, 0.5, 0.1], [0.0, 0.15, 0.85]])
TRAINED = np.array([[0.3, 0.6, 0.1], [0.05, 0.35, 0.6], [0.2, 0.8, 0.0]])
INITIAL = np.array([0.5, 0.2, 0.3])
SIZES = {"num_rounds": 60, "num_prompts": 400, "batch_size": 100}
# Of a test that holds; the seeds are literals, so it holds always or never.
LEAST_P = 1e-3


def p_value(observed, probs):
    """Returns the p-value of counts under probabilities; an outcome of probability 0 must not occur."""
    observed, probs = np.asarray(observed), np.asarray(probs)
    if np.any(observed[probs == 0]):
        return 0.0
    observed, probs = observed[probs > 0], probs[probs > 0]
    if probs.size == 1:
        return 1.0
    return stats.chisquare(observed, observed.sum() * probs / probs.sum()).pvalue


def was_visited(simulated):
    is_visited = np.zeros(simulated.states.shape, bool)
    is_visited[simulated.trace.rounds, simulated.trace.prompt_ids] = True
    return is_visited


def num_moves(states, is_counted, num_states):
    """Returns how often a move [from, to] was made, int [K, K], out of the cells [T, N] that are counted."""
    moves = np.zeros((num_states, num_states), int)
    np.add.at(moves, (states[:-1][is_counted[:-1]], states[1:][is_counted[:-1]]), 1)
    return moves


def assert_moves(moves, matrix):
    assert moves.sum(axis=1).min() > 500
    assert min(p_value(*pair) for pair in zip(moves, matrix, strict=True)) > LEAST_P
    assert min(p_value(*pair) for pair in zip(moves.T, matrix, strict=True)) < 1e-12  # A transposed matrix fails.


def states_of_visits(simulated):
    return simulated.states[simulated.trace.rounds, simulated.trace.prompt_ids]


def test_moves_follow_the_matrix():
    simulated = simulate_hmm(np.random.default_rng(0), INITIAL, IDLE, emissions.exact(3), **SIZES)
    is_visited = was_visited(simulated)
    assert_moves(num_moves(simulated.states, is_visited, 3), IDLE)
    assert_moves(num_moves(simulated.states, ~is_visited, 3), IDLE)


def test_moves_out_of_a_visited_round_follow_the_trained_matrix():
    simulated = simulate_hmm(
        np.random.default_rng(1), INITIAL, IDLE, emissions.exact(3), trained_matrix=TRAINED, **SIZES
    )
    is_visited = was_visited(simulated)
    assert_moves(num_moves(simulated.states, is_visited, 3), TRAINED)
    assert_moves(num_moves(simulated.states, ~is_visited, 3), IDLE)


@pytest.mark.parametrize("is_trained_shared", [False, True])
def test_every_prompt_has_a_matrix_of_its_own(is_trained_shared):
    is_odd = np.arange(SIZES["num_prompts"]) % 2 == 1
    other = np.roll(IDLE, 1, axis=(0, 1))
    idle = np.where(is_odd, other[..., None], IDLE[..., None])
    trained = TRAINED if is_trained_shared else np.where(is_odd, IDLE[..., None], TRAINED[..., None])
    initial = np.where(is_odd, INITIAL[::-1, None], INITIAL[:, None])
    rng = np.random.default_rng(2)
    simulated = simulate_hmm(rng, initial, idle, emissions.exact(3), trained_matrix=trained, **SIZES)
    is_visited = was_visited(simulated)
    for is_counted, idle_matrix, trained_matrix in (
        (is_odd, other, TRAINED if is_trained_shared else IDLE),
        (~is_odd, IDLE, TRAINED),
    ):
        assert_moves(num_moves(simulated.states, ~is_visited & is_counted, 3), idle_matrix)
        assert_moves(num_moves(simulated.states, is_visited & is_counted, 3), trained_matrix)
    for is_counted, probs in ((is_odd, INITIAL[::-1]), (~is_odd, INITIAL)):
        assert p_value(np.bincount(simulated.states[0, is_counted], minlength=3), probs) > LEAST_P


def test_the_first_states_follow_the_initial_probs():
    rng = np.random.default_rng(3)
    sizes = {"num_rounds": 1, "num_prompts": 5000, "batch_size": 10}
    states = simulate_hmm(rng, [0.6, 0.0, 0.4], IDLE, emissions.exact(3), **sizes).states
    assert states.shape == (1, 5000)
    assert p_value(np.bincount(states[0], minlength=3), [0.6, 0.0, 0.4]) > LEAST_P


def test_a_deterministic_chain_is_followed_to_the_letter():
    cycle = np.eye(3)[[1, 2, 0]]
    simulated = simulate_hmm(
        np.random.default_rng(4), [0, 1, 0], cycle, emissions.exact(3), num_rounds=7, num_prompts=5, batch_size=5
    )
    np.testing.assert_array_equal(simulated.states, np.broadcast_to((1 + np.arange(7)[:, None]) % 3, (7, 5)))


# The classes of m/G of METHOD.md section 3, written out.
EXACT_OUTCOMES = {
    (2, 4): [[0, 4], [1, 2, 3]],
    (3, 8): [[0], [1, 2, 3, 4, 5, 6, 7], [8]],
    (3, 2): [[0], [1], [2]],
    (5, 8): [[0], [1, 2], [3, 4, 5], [6, 7], [8]],
    (7, 10): [[0], [1], [2, 3], [4, 5], [6, 7], [8, 9], [10]],
}


@pytest.mark.parametrize(("num_states", "group_size"), EXACT_OUTCOMES)
def test_exact_outcomes_are_uniform_in_the_class_of_the_state(num_states, group_size):
    rng = np.random.default_rng(5)
    matrix = rng.dirichlet(np.ones(num_states) * 2, num_states)
    initial = np.full(num_states, 1 / num_states)
    simulated = simulate_hmm(rng, initial, matrix, emissions.exact(num_states), group_size=group_size, **SIZES)
    states = states_of_visits(simulated)
    for state, outcomes in enumerate(EXACT_OUTCOMES[num_states, group_size]):
        observed = np.bincount(simulated.trace.successes[states == state], minlength=group_size + 1)
        assert observed.sum() > 100
        probs = np.isin(np.arange(group_size + 1), outcomes) / len(outcomes)
        assert p_value(observed, probs) > LEAST_P


@pytest.mark.parametrize("precision", [None, 2.5])
@pytest.mark.parametrize("group_size", [1, 5])
def test_binomial_outcomes_follow_the_rate_of_the_state(precision, group_size):
    rates = np.array([0.08, 0.35, 0.9])
    emission = emissions.binomial(rates, precision)
    simulated = simulate_hmm(np.random.default_rng(6), INITIAL, IDLE, emission, group_size=group_size, **SIZES)
    states = states_of_visits(simulated)
    outcomes = np.arange(group_size + 1)
    for state, rate in enumerate(rates):
        observed = np.bincount(simulated.trace.successes[states == state], minlength=group_size + 1)
        if precision is None:
            distribution = stats.binom(group_size, rate)
        else:
            distribution = stats.betabinom(group_size, rate * precision, (1 - rate) * precision)
        assert observed.sum() > 500
        # Outcomes of probability below 0.01 are too rare each: they are merged.
        probs = distribution.pmf(outcomes)
        is_rare = probs < 0.01
        merged = (
            np.append(probs[~is_rare], probs[is_rare].sum()),
            np.append(observed[~is_rare], observed[is_rare].sum()),
        )
        assert p_value(merged[1], merged[0]) > LEAST_P


def rollouts_of(simulate):
    if simulate == "hmm":
        emission = emissions.binomial([0.2, 0.5, 0.9])
        return simulate_hmm(
            np.random.default_rng(7), INITIAL, IDLE, emission, num_rounds=300, num_prompts=40, batch_size=9
        )
    return simulate_learners(np.random.default_rng(7), num_rounds=300, num_prompts=40, batch_size=9)


@pytest.mark.parametrize("simulate", ["hmm", "learners"])
def test_visits_are_distinct_and_uniform(simulate, tmp_path):
    trace = rollouts_of(simulate).trace
    assert {column.dtype for column in trace[:4]} == {np.dtype(np.int32)}
    np.testing.assert_array_equal(trace.rounds, np.repeat(np.arange(300), 9))
    assert all(np.unique(ids).size == 9 for ids in trace.prompt_ids.reshape(300, 9))
    assert np.all(trace.counts == 8)
    # Visits without replacement vary less than those of a multinomial, by (N - B) / (N - 1).
    visits = np.bincount(trace.prompt_ids, minlength=40)
    expected = 300 * 9 / 40
    statistic = np.sum((visits - expected) ** 2) / expected * (40 - 1) / (40 - 9)
    assert 1e-3 < stats.chi2(39).sf(statistic) < 1 - 1e-3
    write_trace(tmp_path / "trace.npz", trace)


@pytest.mark.parametrize("simulate", ["hmm", "learners"])
def test_the_seed_decides(simulate):
    chex.assert_trees_all_equal(rollouts_of(simulate), rollouts_of(simulate))


SMALL = {"num_rounds": 4, "num_prompts": 6, "batch_size": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rng": 0}, "rng: expected a numpy.random.Generator, got 0"),
        (
            {"initial_probs": [0.5, 0.5]},
            r"initial_probs: expected shape \[3\] or \[3, 6\], got \[2\]; prompts come last",
        ),
        ({"initial_probs": [0.5, 0.6, 0.5]}, "initial_probs: expected non-negative probabilities that sum to 1"),
        ({"initial_probs": np.full((3, 5), 1 / 3)}, r"initial_probs: expected shape .*, got \[3, 5\]"),
        ({"transition_matrix": IDLE.T}, "transition_matrix: expected rows of non-negative probabilities that sum to 1"),
        ({"transition_matrix": np.ones((6, 3, 3)) / 3}, r"transition_matrix: expected shape \[3, 3\] or \[3, 3, 6\]"),
        ({"transition_matrix": IDLE - [1, -1, 0]}, "transition_matrix: expected rows of non-negative probabilities"),
        ({"trained_matrix": np.full((3, 3), np.nan)}, "trained_matrix: expected rows of non-negative probabilities"),
        ({"trained_matrix": np.eye(2)}, r"trained_matrix: expected shape \[3, 3\] or \[3, 3, 6\], got \[2, 2\]"),
        ({"emission": "exact"}, "emission: expected an Emission, got 'exact'"),
        ({"group_size": 1}, "group_size: expected an outcome for each of the 3 states .* got 1, which leaves state 1"),
        ({"group_size": 0}, "group_size: expected an integer >= 1, got 0"),
        ({"num_rounds": 0}, "num_rounds: expected an integer >= 1, got 0"),
        ({"num_prompts": 0}, "num_prompts: expected an integer >= 1, got 0"),
        ({"batch_size": 7}, "batch_size: expected an integer >= 1 and <= 6, got 7"),
    ],
)
def test_bad_arguments_of_the_hmm_are_named(change, message):
    arguments = {
        "rng": np.random.default_rng(0),
        "initial_probs": INITIAL,
        "transition_matrix": IDLE,
        "emission": emissions.exact(3),
        **SMALL,
    }
    simulate_hmm(**arguments)
    with pytest.raises(ValueError, match=message):
        simulate_hmm(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"regime": "easy"},
            "regime: expected one of 'mixed', 'hard', 'fast_drift', 'forgetting', 'grouped', 'cold', got 'easy'",
        ),
        ({"rng": np.random.RandomState(0)}, "rng: expected a numpy.random.Generator"),
        ({"group_size": 2.0}, "group_size: expected an integer >= 1, got 2.0"),
        ({"batch_size": 0}, "batch_size: expected an integer >= 1 and <= 6, got 0"),
    ],
)
def test_bad_arguments_of_the_learners_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        simulate_learners(**({"rng": np.random.default_rng(0), **SMALL} | change))


def logits_of(rates):
    return np.log(rates / (1 - rates))


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("group_size", [1, 8])
def test_learners_succeed_at_their_rates(regime, group_size):
    simulated = simulate_learners(np.random.default_rng(8), regime, group_size=group_size)
    rates, trace = simulated.success_rates, simulated.trace
    assert rates.shape == (100, 2000)
    assert rates.dtype == np.float64
    assert np.all((rates > 0) & (rates < 1))
    assert np.all(trace.counts == group_size)
    seen = rates[trace.rounds, trace.prompt_ids]
    np.testing.assert_allclose(simulated.visited_rates.ravel(), seen, rtol=1e-14)
    error = trace.successes - group_size * seen
    scale = np.sqrt(np.sum(group_size * seen * (1 - seen)))
    assert abs(error.sum()) < 4 * scale
    assert 0.9 < np.sum(error**2) / scale**2 < 1.1


@pytest.mark.parametrize("regime", REGIMES)
def test_rates_stay_inside_in_a_long_run(regime):
    rng = np.random.default_rng(9)
    rates = simulate_learners(rng, regime, num_prompts=20, num_rounds=3000, batch_size=5).success_rates
    assert np.all((rates > 0) & (rates < 1))
    assert rates[-1].mean() > rates[0].mean()


def test_partially_solved_prompts_jump_and_all_drift_up():
    simulated = simulate_learners(np.random.default_rng(10), "mixed")
    trace = simulated.trace
    steps = np.diff(logits_of(simulated.success_rates), axis=0)
    is_partial = np.zeros(simulated.success_rates.shape, bool)
    is_partial[trace.rounds, trace.prompt_ids] = (trace.successes > 0) & (trace.successes < trace.counts)
    is_free = np.abs(logits_of(simulated.success_rates))[:-1] < 9  # Not at the limits.
    mixed = REGIMES["mixed"]
    jumps, others = steps[is_partial[:-1] & is_free], steps[~is_partial[:-1] & is_free]
    assert abs(jumps.mean() - mixed.practice - mixed.transfer) < 4 * mixed.noise / np.sqrt(jumps.size)
    assert abs(others.mean() - mixed.transfer) < 4 * mixed.noise / np.sqrt(others.size)


def test_hard_is_mostly_unsolved_at_first():
    first = {}
    for regime in ("mixed", "hard"):
        simulated = simulate_learners(np.random.default_rng(11), regime)
        first[regime] = np.mean(simulated.trace.successes[simulated.trace.rounds < 10] == 0)
    assert first["hard"] > 0.6
    assert first["mixed"] < 0.4


def test_groups_say_most_in_grouped_and_much_in_cold():
    explained = {}
    for regime in REGIMES:
        simulated = simulate_learners(np.random.default_rng(12), regime)
        assert simulated.groups.dtype == np.int32
        assert np.unique(simulated.groups).tolist() == list(range(6))
        logits = logits_of(simulated.success_rates[0])
        means = np.array([logits[simulated.groups == group].mean() for group in range(6)])
        assert np.all(np.diff(means) < 0)
        explained[regime] = np.var(means[simulated.groups]) / np.var(logits)
    assert explained.pop("grouped") > 0.85
    assert 0.55 < explained.pop("cold") < 0.75
    assert max(explained.values()) < 0.5


def test_what_is_not_repeated_is_forgotten():
    falls = {}
    for regime in ("mixed", "forgetting"):
        sizes = {"num_prompts": 3000, "num_rounds": 60, "batch_size": 30}
        simulated = simulate_learners(np.random.default_rng(13), regime, **sizes)
        trace = simulated.trace
        is_early = (trace.rounds < 10) & (trace.successes > 0) & (trace.successes < trace.counts)
        is_once = is_early & (np.bincount(trace.prompt_ids, minlength=3000)[trace.prompt_ids] == 1)
        logits = logits_of(simulated.success_rates)
        rows, ids = trace.rounds[is_once], trace.prompt_ids[is_once]
        assert ids.size > 50
        falls[regime] = np.mean(logits[rows + 1, ids] - logits[59, ids])
    assert falls["mixed"] < 0
    assert falls["forgetting"] > 0.5


def test_fast_drift_moves_faster():
    moved = {}
    for regime in ("mixed", "fast_drift"):
        rates = simulate_learners(np.random.default_rng(14), regime).success_rates
        moved[regime] = np.mean(np.abs(rates[50:] - rates[:-50]))
    assert moved["fast_drift"] > 1.5 * moved["mixed"]


def test_a_million_cold_prompts_need_no_array_over_rounds_and_prompts():
    num_prompts, num_rounds, batch_size = 10**6, 40, 500
    tracemalloc.start()
    simulated = simulate_learners(
        np.random.default_rng(15), "cold", num_prompts=num_prompts, num_rounds=num_rounds, batch_size=batch_size
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 120e6  # All success rates would be 320 MB.
    assert simulated.success_rates is None
    assert simulated.visited_rates.shape == (num_rounds, batch_size)
    trace, rates = simulated.trace, simulated.visited_rates.ravel()
    visits = np.bincount(trace.prompt_ids, minlength=num_prompts)
    assert visits.max() < 5
    assert np.mean(visits <= 1) > 0.999
    error = trace.successes - 8 * rates
    assert abs(error.sum()) < 4 * np.sqrt(np.sum(8 * rates * (1 - rates)))
    groups = simulated.groups[trace.prompt_ids]
    assert rates[groups == 0].mean() > 0.7 > 0.1 > rates[groups == 5].mean()
