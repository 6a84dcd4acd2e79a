"""The simulated policy that shares facts between prompts, and its training."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dps_jax import selectors
from dps_jax.traces import _shared_facts, _teaching
from dps_jax.traces._oracles import ORACLES, Oracle
from dps_jax.traces._shared_facts import MIXES, Level, Mix

# Small and asymmetric: three prompts of 1, 2 and 3 facts out of 4, with 3 answers.
LOGITS = jnp.array([[0.3, -0.2, 0.1], [1.0, 0.4, -1.0], [-0.5, 0.2, 0.9], [0.7, 0.7, 0.0]])
FACTS = jnp.array([[2, 4, 4], [0, 3, 4], [0, 1, 2]], jnp.int32)
NONE_BROKEN = jnp.zeros(3, bool)
SIZES = {"num_prompts": 300, "num_rounds": 12, "batch_size": 16, "pool_factor": 4}


def uniform(problems):
    return selectors.build("uniform", problems.num_prompts)


def dps(problems):
    return selectors.build("dps", problems.num_prompts)


def test_success_rates_equal_enumeration():
    probs = np.exp(np.asarray(LOGITS, np.float64))
    probs /= probs.sum(axis=1, keepdims=True)
    for row, rate in zip(np.asarray(FACTS), _shared_facts.success_rates(LOGITS, FACTS), strict=True):
        facts = row[row < 4]
        total, right = 0.0, 0.0
        for answers in itertools.product(range(3), repeat=facts.size):
            chance = np.prod([probs[fact, answer] for fact, answer in zip(facts, answers, strict=True)])
            total += chance
            right += chance * all(answer == 0 for answer in answers)
        np.testing.assert_allclose(total, 1)
        np.testing.assert_allclose(rate, right, rtol=1e-5)
    broken = _shared_facts.success_rates(LOGITS, FACTS, jnp.array([False, True, False]))
    np.testing.assert_array_equal(broken > 0, [True, False, True])


def test_informative_probs_equal_the_binomial_distribution():
    rates = np.array([0.0, 0.1, 0.5, 0.93, 1.0])
    expected = stats.binom.cdf(4, 5, rates) - stats.binom.cdf(0, 5, rates)
    np.testing.assert_allclose(_shared_facts.informative_probs(rates, 5), expected, atol=1e-12)


def test_rollouts_follow_the_policy():
    num_draws = 20_000
    answers, is_correct = _shared_facts.rollout(jax.random.key(0), LOGITS, FACTS, NONE_BROKEN, num_draws)
    rates = np.asarray(_shared_facts.success_rates(LOGITS, FACTS))
    for count, rate in zip(np.asarray(is_correct).sum(axis=1), rates, strict=True):
        assert stats.binomtest(int(count), num_draws, float(rate)).pvalue > 1e-3
    probs = np.asarray(jax.nn.softmax(LOGITS), np.float64)
    for prompt, place in np.argwhere(np.asarray(FACTS) < 4):
        counts = np.bincount(np.asarray(answers)[prompt, :, place], minlength=3)
        expected = num_draws * probs[FACTS[prompt, place]]
        assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3
    np.testing.assert_array_equal(np.asarray(answers).transpose(0, 2, 1)[np.asarray(FACTS) == 4], 0)
    np.testing.assert_array_equal(is_correct, (np.asarray(answers) == 0).all(axis=2))


def test_prompts_with_a_wrong_reference_are_never_correct():
    certain = jnp.zeros((4, 3)).at[:, 0].set(50.0)
    is_broken = jnp.array([False, True, False])
    _, is_correct = _shared_facts.rollout(jax.random.key(1), certain, FACTS, is_broken, 50)
    np.testing.assert_array_equal(np.asarray(is_correct).sum(axis=1), [50, 0, 50])


def reference_loss(logits, facts, answers, is_correct):
    """Returns the loss, written as a loop over all answers."""
    total, num_tokens = 0.0, 0
    for prompt, row in enumerate(np.asarray(facts)):
        rewards = np.asarray(is_correct[prompt], np.float64)
        deviation = rewards.std(ddof=1)
        scaled = (rewards - rewards.mean()) / deviation if deviation > 0 else np.zeros_like(rewards)
        for completion, advantage in enumerate(scaled):
            for place, fact in enumerate(row):
                if fact < logits.shape[0]:
                    answer = answers[prompt, completion, place]
                    total += advantage * jax.nn.log_softmax(logits[fact])[answer]
                    num_tokens += 1
    return -total / num_tokens


def test_gradient_is_that_of_an_independent_loss():
    answers, is_correct = _shared_facts.rollout(jax.random.key(2), LOGITS, FACTS, jnp.array([False, False, True]), 4)
    # One informative group, one whose rewards are all equal as all are wrong.
    assert 0 < int(is_correct[:2].sum()) < 8
    assert int(is_correct[2].sum()) == 0
    expected = jax.grad(reference_loss)(LOGITS, FACTS, np.asarray(answers), np.asarray(is_correct))
    found = _shared_facts.loss_gradient(LOGITS, FACTS, answers, is_correct)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert float(jnp.abs(found).max()) > 0.01
    # Padding of a batch counts neither in the sum nor in the number of answers.
    of_two = _shared_facts.loss_gradient(LOGITS, FACTS, answers, is_correct, jnp.array([True, True, False]))
    expected = jax.grad(reference_loss)(LOGITS, FACTS[:2], np.asarray(answers), np.asarray(is_correct))
    np.testing.assert_allclose(of_two, expected, atol=1e-6)


def test_gradient_is_exactly_zero_without_contrast():
    answers = jnp.zeros((3, 6, 3), jnp.int32).at[1].set(1)
    is_correct = jnp.zeros((3, 6), bool).at[0].set(True)
    np.testing.assert_array_equal(_shared_facts.advantages(is_correct), 0)
    np.testing.assert_array_equal(_shared_facts.loss_gradient(LOGITS, FACTS, answers, is_correct), 0)


def test_mean_gradient_ascends_the_success_rate():
    """With large groups the advantage is (reward - p) / sd, so that the gradient is that of p over sd and length."""
    facts = FACTS[1:2]
    rate = lambda logits: _shared_facts.success_rates(logits, facts)[0]
    p = rate(LOGITS)
    answers, is_correct = _shared_facts.rollout(jax.random.key(3), LOGITS, facts, jnp.zeros(1, bool), 100_000)
    found = -_shared_facts.loss_gradient(LOGITS, facts, answers, is_correct)
    expected = jax.grad(rate)(LOGITS) / (2 * jnp.sqrt(p * (1 - p)))
    np.testing.assert_allclose(found, expected, atol=4e-3)


def test_first_policy_slips_as_the_mix_says():
    mix = Mix((Level(2, 1.0),), num_facts=3000, num_answers=6, slip_rates=(0.2, 0.5), test_levels=(2,))
    probs = np.asarray(jax.nn.softmax(_shared_facts.first_logits(jax.random.key(4), mix)))
    slips = 1 - probs[:, 0]
    assert slips.min() >= 0.2 - 1e-6
    assert slips.max() <= 0.5 + 1e-6
    assert stats.kstest(slips, stats.uniform(0.2, 0.3).cdf).pvalue > 1e-3
    wrong = np.sort(probs[:, 1:], axis=1)
    np.testing.assert_allclose(wrong[:, -1], slips / 2, rtol=1e-5)
    np.testing.assert_allclose(wrong[:, :-1], np.repeat(slips[:, None] / 8, 4, axis=1), rtol=1e-5)
    habits = np.bincount(probs[:, 1:].argmax(axis=1), minlength=5)
    assert stats.chisquare(habits).pvalue > 1e-3


@pytest.mark.parametrize("name", MIXES)
def test_prompts_have_the_facts_of_their_level(name):
    mix = MIXES[name]
    problems = _shared_facts.draw_problems(mix, 800)
    assert (problems.facts.dtype, problems.groups.dtype, problems.features.dtype) == (np.int32, np.int32, np.float32)
    assert problems.features.shape == (800, 8)
    for row, group in zip(problems.facts, problems.groups, strict=True):
        facts, level = row[row < mix.table_size], mix.levels[group]
        assert np.unique(facts).size == facts.size == level.num_facts
        assert np.all((facts >= mix.num_facts) == level.is_apart)
    weights = np.array([level.weight for level in mix.levels])
    counts = np.bincount(problems.groups, minlength=weights.size)
    assert stats.chisquare(counts, 800 * weights / weights.sum()).pvalue > 1e-3
    assert set(np.sum(problems.test_facts < mix.num_facts, axis=1)) == set(mix.test_levels)
    assert not {row.tobytes() for row in problems.facts} & {row.tobytes() for row in problems.test_facts}
    again, other = (_shared_facts.draw_problems(mix, 800, seed) for seed in (0, 1))
    chex.assert_trees_all_equal(problems, again)
    assert not np.array_equal(problems.facts, other.facts)


@pytest.mark.parametrize("method", [dps, ORACLES["ds_free"]], ids=["dps", "ds_free"])
def test_seeds_together_equal_seeds_alone(method):
    together = _teaching.run(method, "typical", num_seeds=3, **SIZES)
    alone = _teaching.run(method, "typical", num_seeds=1, first_seed=2, **SIZES)
    np.testing.assert_array_equal(alone.ids[0], together.ids[2])
    jax.tree.map(lambda one, three: np.testing.assert_allclose(one[0], three[2], rtol=1e-4, atol=1e-5), alone, together)
    assert not np.array_equal(together.ids[0], together.ids[1])


def test_record_agrees_with_itself():
    options = SIZES | {"pool_factor": 0, "reports_moves": True}
    record = _teaching.run(uniform, "typical", num_seeds=2, **options)
    assert record.accuracy.shape == (2, 13)
    assert record.ids.shape == record.successes.shape == (2, 12, 16)
    assert all(np.unique(ids).size == 16 for ids in record.ids.reshape(-1, 16))
    is_informative = (record.successes > 0) & (record.successes < 8)
    np.testing.assert_allclose(record.effective_sample_ratio, is_informative.mean(axis=2), atol=1e-6)
    np.testing.assert_allclose(record.moves.held_out, np.diff(record.accuracy, axis=1), atol=1e-6)
    assert record.gradient_cosine is None
    coverage = _teaching.coverage(record.ids, 300)
    assert coverage.shape == (2, 12)
    np.testing.assert_allclose(coverage[:, 0], 16 / 300)
    np.testing.assert_allclose(coverage[1, -1], np.unique(record.ids[1]).size / 300)
    np.testing.assert_allclose(_teaching.area(record.accuracy)[0], record.accuracy[0].mean(), rtol=1e-6)


def test_learning_rate_may_be_mapped():
    simulate = _teaching.simulator(uniform, "rich", **SIZES)
    found = jax.jit(jax.vmap(simulate, in_axes=(None, 0)))(0, jnp.array([1e-9, 0.1]))
    np.testing.assert_allclose(found.accuracy[0], found.accuracy[0, 0], atol=1e-5)
    assert found.accuracy[1, -1] > found.accuracy[1, 0] + 0.02


def test_oracles_teach_more_than_uniform_picks_in_lean_data():
    """As a mean over rounds; and dynamic sampling whose rollouts are free trains on informative groups alone."""
    sizes = {"num_seeds": 6, "num_rounds": 40}
    hard = _teaching.run(ORACLES["oracle_i_hard"], "lean", reports_signal=True, reports_moves=True, **sizes)
    dynamic = _teaching.run(ORACLES["ds_free"], "lean", **sizes)
    baseline = _teaching.area(_teaching.run(uniform, "lean", **sizes).accuracy)
    for record in (hard, dynamic):
        assert stats.ttest_rel(_teaching.area(record.accuracy), baseline, alternative="greater").pvalue < 1e-3
    # What is trained on moves most, what shares its facts moves too, and a gradient is mostly noise.
    assert hard.moves.picked.mean() > hard.moves.same_level.mean() > 0
    assert hard.moves.held_out.mean() > 0
    assert 0.05 < hard.gradient_cosine.mean() < 0.6
    is_found = dynamic.ids >= 0
    assert np.all((dynamic.successes > 0)[is_found])
    assert np.all((dynamic.successes < 8)[is_found])
    assert np.all(dynamic.successes[~is_found] == 0)


def test_random_informative_picks_are_informative():
    scores = ORACLES["oracle_informative"].scores
    rates = jnp.array([0.0, 1.0, 0.5, 0.3, 0.999, 0.7])
    picked = jax.lax.top_k(scores(rates, jax.random.key(5), 8), 3)[1]
    assert set(picked.tolist()) == {2, 3, 5}


def test_draws_are_in_proportion_to_the_weight():
    rates = jnp.array([0.9, 0.5, 0.2])
    scores = ORACLES["oracle_i_hard"].scores
    first = jax.vmap(lambda key: jnp.argmax(scores(rates, key, 8)))(jax.random.split(jax.random.key(6), 20_000))
    weights = (1 - rates**8 - (1 - rates) ** 8) * (1 - rates)
    expected = 20_000 * np.asarray(weights / weights.sum(), np.float64)
    counts = np.bincount(np.asarray(first), minlength=3)
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Mix(()), "levels: expected at least one level, got none"),
        (lambda: Mix((Level(0, 1.0),)), "num_facts of a level: expected an integer >= 1 and <= 240, got 0"),
        (
            lambda: Mix((Level(3, 1.0, is_apart=True),), num_apart=2),
            "num_facts of a level: expected .* <= 2, got 3",
        ),
        (lambda: Mix((Level(2, -1.0),)), "weight of a level: expected a finite number > 0, got -1.0"),
        (lambda: Mix((Level(2, 1.0),), broken_share=1.0), r"broken_share: expected a share in \[0, 1\), got 1.0"),
        (lambda: Mix((Level(2, 1.0),), slip_rates=(0.5, 0.2)), "slip_rates: expected 0 < lowest <= highest < 1"),
        (lambda: Mix((Level(2, 1.0),), num_answers=2), "num_answers: expected an integer >= 3, got 2"),
        (
            lambda: _shared_facts.draw_problems(Mix((Level(1, 1.0),), num_facts=2, test_levels=(1,)), 50),
            "num_facts: expected enough for 400 prompts",
        ),
        (lambda: _shared_facts.draw_problems(MIXES["rich"], 0), "num_prompts: expected an integer >= 1, got 0"),
        (lambda: _teaching.run(uniform, "dense"), "mix: expected one of 'lean', .* got 'dense'"),
        (lambda: _teaching.run(uniform, "rich", num_seeds=0), "num_seeds: expected an integer >= 1, got 0"),
        (lambda: _teaching.run(uniform, "rich", first_seed=-1), "first_seed: expected an integer >= 0, got -1"),
        (lambda: _teaching.run(uniform, "rich", learning_rate=0.0), "learning_rate: expected a finite number > 0"),
        (lambda: _teaching.run(uniform, "rich", group_size=1), "group_size: expected an integer >= 2, got 1"),
        (lambda: _teaching.run(uniform, "rich", num_rounds=0), "num_rounds: expected an integer >= 1, got 0"),
        (
            lambda: _teaching.run(uniform, "rich", num_prompts=20),
            "batch_size: expected an integer >= 1 and <= 20, got 32",
        ),
        (lambda: _teaching.run(uniform, "rich", pool_factor=-1), "pool_factor: expected an integer >= 0, got -1"),
        (lambda: _teaching.run(uniform, "rich", max_norm=0.0), "max_norm: expected a finite number > 0 or None"),
        (lambda: _teaching.run("dps", "rich"), "method: expected a function of Problems or an Oracle, got 'dps'"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_oracle_is_what_a_user_makes_of_it():
    """The lowest true rates first: nothing is learned from them in lean data."""
    hopeless = Oracle(lambda rates, key, group_size: -rates)
    record = _teaching.run(hopeless, "lean", num_seeds=2, **SIZES)
    np.testing.assert_array_equal(record.effective_sample_ratio, 0)
    np.testing.assert_allclose(record.accuracy, record.accuracy[:, :1].repeat(13, axis=1))
