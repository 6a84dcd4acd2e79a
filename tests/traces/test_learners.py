import dataclasses

import numpy as np
import pytest

from dps_jax.traces import REGIMES, Learners, Regime, simulate_learners

SIZES = {"num_rounds": 40, "num_prompts": 300, "batch_size": 30}
every_regime = pytest.mark.parametrize("regime", REGIMES)


def logits_of(rates):
    return np.log(rates / (1 - rates))


def after_visits(seed):
    """Returns a generator that has drawn the visits of `simulate_learners` already, and these visits."""
    rng = np.random.default_rng(seed)
    visits = [rng.choice(SIZES["num_prompts"], SIZES["batch_size"], replace=False) for _ in range(SIZES["num_rounds"])]
    return rng, visits


@every_regime
def test_closed_loop_fed_the_same_ids_equals_open_loop(regime):
    simulated = simulate_learners(np.random.default_rng(0), regime, group_size=5, **SIZES)
    rng, visits = after_visits(0)
    np.testing.assert_array_equal(np.concatenate(visits), simulated.trace.prompt_ids)
    learners = Learners(rng, regime, num_prompts=SIZES["num_prompts"])
    np.testing.assert_array_equal(learners.groups, simulated.groups)
    np.testing.assert_array_equal(learners.features, simulated.features)
    outcomes = simulated.trace.successes.reshape(SIZES["num_rounds"], -1)
    for t, ids in enumerate(visits):
        np.testing.assert_array_equal(learners.rates(), simulated.success_rates[t])
        successes = learners.rollout(ids.astype(np.int32), 5)
        np.testing.assert_array_equal(successes, outcomes[t])
        learners.step(ids, successes, np.full(ids.size, 5))


def reference(seed, regime, num_rounds=SIZES["num_rounds"]):
    """Returns success rates [T, N], groups and successes, written as one loop without features."""
    parameters, num_prompts = REGIMES[regime], SIZES["num_prompts"]
    rng, visits = after_visits(seed)
    groups = rng.integers(6, size=num_prompts, dtype=np.int32)
    level = np.array([-5, -3, -1, 1, 3, 5])[groups] / np.sqrt(35 / 3)
    logits = parameters.ability - parameters.group_spread * level
    logits -= parameters.prompt_spread * rng.standard_normal(num_prompts)
    practised, rates, outcomes = np.zeros(num_prompts), [], []
    for ids in visits[:num_rounds]:
        rates.append(1 / (1 + np.exp(-np.clip(logits + practised, -10, 10))))
        outcomes.append(rng.binomial(8, rates[-1][ids]))
        kept = practised * (1 - parameters.forgetting)
        kept[ids] = practised[ids] + parameters.practice * ((outcomes[-1] > 0) & (outcomes[-1] < 8))
        practised = kept
        logits = logits + parameters.transfer + parameters.noise * rng.standard_normal(num_prompts)
    return np.array(rates), groups, np.array(outcomes)


@every_regime
def test_features_do_not_change_the_random_stream(regime):
    rates, groups, outcomes = reference(1, regime)
    simulated = simulate_learners(np.random.default_rng(1), regime, **SIZES)
    np.testing.assert_array_equal(simulated.groups, groups)
    np.testing.assert_array_equal(simulated.trace.successes, outcomes.ravel())
    np.testing.assert_allclose(simulated.success_rates, rates, rtol=1e-12)


@every_regime
def test_two_features_show_the_difficulty_and_two_are_noise(regime):
    learners = Learners(np.random.default_rng(2), regime, num_prompts=4000)
    features = learners.features
    assert features.shape == (4000, 4)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(features.std(axis=0), 1, atol=0.06)
    # Within the limits of `rates`: the correlation is that of the difficulty of such prompts.
    difficulty = -learners._logits
    correlations = np.corrcoef(features.T, difficulty)[-1, :4]
    share = 1 / np.hypot(1, REGIMES[regime].feature_noise)
    np.testing.assert_allclose(correlations, [share, -share, 0, 0], atol=0.05)
    noise = features[:, :2] - np.outer(difficulty, np.polyfit(difficulty, features[:, :2], 1)[0])
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.05


def test_groups_and_features_say_nearly_all_about_cold_prompts():
    open_share = {}
    for regime in ("cold", "mixed"):
        learners = Learners(np.random.default_rng(3), regime, num_prompts=4000)
        known = np.concatenate([np.eye(6)[learners.groups], learners.features], axis=1)
        logits = learners._logits
        residual = logits - known @ np.linalg.lstsq(known, logits, rcond=None)[0]
        open_share[regime] = np.var(residual) / np.var(logits)
    assert open_share["cold"] < 0.12
    assert open_share["mixed"] > 0.2


def test_only_what_is_trained_on_and_partially_solved_is_practised():
    learners = Learners(np.random.default_rng(4), "hard", num_prompts=50)
    before = learners.rates()
    learners.rollout(np.arange(50), 8)
    np.testing.assert_array_equal(learners.rates(), before)
    np.testing.assert_array_equal(learners.rates([7, 3]), before[[7, 3]])
    learners.step([4, 9, 2, 30], [1, 0, 8, 2], [8, 8, 8, 2])
    jumps = logits_of(learners.rates()) - logits_of(before)
    is_free = np.abs(logits_of(before)) < 9
    regime = REGIMES["hard"]
    assert jumps[4] > 0.7
    assert np.all(np.abs(jumps[is_free & (np.arange(50) != 4)] - regime.transfer) < 5 * regime.noise)
    moved = learners.rates()
    learners.step([], [], 8)
    assert np.all((learners.rates() != moved)[is_free])


def test_choosing_what_is_partially_solved_teaches_more_than_chance():
    final = {}
    for name in ("greedy", "uniform"):
        learners, rng = Learners(np.random.default_rng(5), "mixed", num_prompts=1000), np.random.default_rng(6)
        for _ in range(60):
            rates = learners.rates()
            ids = np.argsort(np.abs(rates - 0.5))[:40] if name == "greedy" else rng.choice(1000, 40, replace=False)
            successes = learners.rollout(ids)
            learners.step(ids, successes, 8)
        final[name] = learners.rates().mean()
    assert final["greedy"] > final["uniform"] + 0.02


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda one: Learners(0), "rng: expected a numpy.random.Generator, got 0"),
        (lambda one: Learners(np.random.default_rng(0), "easy"), "regime: expected one of 'mixed', .* got 'easy'"),
        (
            lambda one: Learners(np.random.default_rng(0), num_prompts=0),
            "num_prompts: expected an integer >= 1, got 0",
        ),
        (lambda one: one.rates([0, 6]), r"ids: expected ids in \[0, 6\), got 6 at position 1"),
        (lambda one: one.rollout([-1]), r"ids: expected ids in \[0, 6\), got -1 at position 0"),
        (lambda one: one.rollout([1], 0), "group_size: expected an integer >= 1, got 0"),
        (lambda one: one.step([1, 2, 1], [0, 1, 2], 8), "ids: expected distinct ids, got 1 more than once"),
        (lambda one: one.step([1, 2], [0, 9], 8), r"successes: expected values in \[0, count\], got 9 of 8"),
        (lambda one: one.step([1, 2], [0], 8), "successes: expected 2 values, one per prompt id, got 1"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(call, message):
    learners = Learners(np.random.default_rng(7), num_prompts=6)
    before = learners.rates()
    with pytest.raises(ValueError, match=message):
        call(learners)
    np.testing.assert_array_equal(learners.rates(), before)


def test_a_regime_of_ones_own_is_used_like_those_with_names():
    sizes = {"num_prompts": 40, "num_rounds": 5, "batch_size": 8}
    own = dataclasses.replace(REGIMES["hard"])
    found, named = (simulate_learners(np.random.default_rng(3), regime, **sizes) for regime in (own, "hard"))
    np.testing.assert_array_equal(found.success_rates, named.success_rates)
    easy = Learners(np.random.default_rng(3), Regime(ability=6.0), num_prompts=400)
    assert easy.rates().mean() > 0.8
    with pytest.raises(ValueError, match=r"forgetting: expected .*1.*, got 1\.5"):
        Regime(forgetting=1.5)
    with pytest.raises(ValueError, match=r"group_spread: expected .* got -1"):
        Regime(group_spread=-1)
