import collections
import fractions
import itertools
import json
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax.training._evaluation import estimate, evaluator, pass_at_k, to_metrics
from dps_jax.training._run_log import MetricsLog, read_metrics

NUM_TOKENS = 5


class Completions(NamedTuple):
    tokens: jax.Array
    log_probs: jax.Array
    mask: jax.Array


class Score(NamedTuple):
    is_correct: jax.Array
    rewards: jax.Array


class Problems(NamedTuple):
    prompts: np.ndarray
    facts: np.ndarray
    groups: np.ndarray


def make_problems(num_problems):
    prompts = np.arange(num_problems * 2, dtype=np.int32).reshape(num_problems, 2)
    facts = np.stack([np.arange(num_problems) % NUM_TOKENS, np.arange(num_problems)], axis=1).astype(np.int32)
    groups = (np.arange(num_problems) % 7 > 4).astype(np.int32)
    return Problems(prompts=prompts, facts=facts, groups=groups)


def make_sample(num_samples):
    """Returns a policy of one token per completion whose logits are a table, followed by as many pads."""

    def sample(table, prompts, key):
        logits = table[prompts[:, 0] // 2]
        tokens = jax.random.categorical(key, logits[:, None], shape=(prompts.shape[0], num_samples))
        mask = jnp.arange(NUM_TOKENS) <= tokens[..., None]
        return Completions(tokens=jnp.where(mask, tokens[..., None], 9), log_probs=jnp.zeros(mask.shape), mask=mask)

    return sample


def score(facts, completions):
    is_correct = completions[..., 0] == facts[..., 0]
    return Score(is_correct=is_correct, rewards=is_correct + 0.25 * (completions[..., 0] == 4))


def test_pass_at_k_is_the_share_of_subsets_with_a_success():
    for count in range(1, 7):
        for successes, k in itertools.product(range(count + 1), range(1, count + 1)):
            completions = [1] * successes + [0] * (count - successes)
            subsets = list(itertools.combinations(completions, k))
            expected = sum(any(subset) for subset in subsets) / len(subsets)
            np.testing.assert_allclose(pass_at_k([successes], count, k), [expected], rtol=0, atol=1e-15)


def test_pass_at_k_is_unbiased():
    rate, count, k = 0.3, 6, 4
    outcomes = np.arange(count + 1)
    probs = np.array([math.comb(count, c) * rate**c * (1 - rate) ** (count - c) for c in outcomes])
    np.testing.assert_allclose(probs @ pass_at_k(outcomes, count, k), 1 - (1 - rate) ** k, rtol=1e-14)


def test_pass_at_k_does_not_overflow():
    count, k = 5000, 1200
    successes = np.array([0, 1, 3, 2500, 3799, 3801, 5000])
    exact = [1 - fractions.Fraction(math.comb(count - c, k), math.comb(count, k)) for c in successes.tolist()]
    result = pass_at_k(successes, np.full(successes.size, count), k)
    np.testing.assert_allclose(result, [float(value) for value in exact], rtol=1e-13, atol=1e-13)
    assert result.dtype == np.float64
    assert result[0] == 0
    assert result[-1] == 1


def test_bad_counts_are_refused():
    with pytest.raises(ValueError, match="k: expected an integer >= 1 and <= 4, got 5"):
        pass_at_k([1, 2], [8, 4], 5)
    with pytest.raises(ValueError, match=r"successes: expected values in \[0, count\], got 9 of 8"):
        pass_at_k([9], 8, 2)
    assert pass_at_k([], 8, 2).shape == (0,)


def test_the_standard_error_is_that_of_the_mean_over_problems():
    # Problems differ, and completions of one problem are alike: it is problems that count.
    rng = np.random.default_rng(0)
    rates = rng.beta(0.4, 0.8, size=(4000, 50))
    shares = rng.binomial(8, rates) / 8
    errors = [estimate(row).error for row in shares]
    np.testing.assert_allclose(np.mean(errors), shares.mean(axis=1).std(ddof=1), rtol=0.03)
    assert estimate(np.array([0.5])).num_problems == 1
    assert math.isnan(estimate(np.array([0.5])).error)
    assert math.isnan(estimate(np.zeros(0)).mean)


@pytest.mark.parametrize("batch_size", [4, 5, 17, 100])
def test_an_evaluation_matches_a_loop(batch_size):
    num_problems, num_samples = 17, 3
    problems, sample = make_problems(num_problems), make_sample(num_samples)
    table = jnp.asarray(np.random.default_rng(1).normal(size=(num_problems, NUM_TOKENS)), jnp.float32)
    key = jax.random.key(5)
    evaluate = evaluator(
        sample, score, problems, num_samples=num_samples, batch_size=batch_size, group_names=("easy", "hard")
    )
    result = evaluate(table, key)

    # As few chunks as possible, as even as possible.
    num_chunks = math.ceil(num_problems / batch_size)
    size = math.ceil(num_problems / num_chunks)
    correct, tokens, rewards, by_group = np.zeros(num_problems), 0, [], collections.defaultdict(list)
    for chunk in range(num_chunks):
        ids = [n % num_problems for n in range(chunk * size, (chunk + 1) * size)]
        sampled = sample(table, jnp.asarray(problems.prompts[ids]), jax.random.fold_in(key, chunk))
        tokens_of = np.asarray(sampled.tokens)
        for row, n in enumerate(range(chunk * size, min((chunk + 1) * size, num_problems))):
            for g in range(num_samples):
                token = int(tokens_of[row, g, 0])
                correct[n] += token == n % NUM_TOKENS
                rewards.append((token == n % NUM_TOKENS) + 0.25 * (token == 4))
                tokens += token + 1
            by_group["hard" if n % 7 > 4 else "easy"].append(correct[n] / num_samples)
    np.testing.assert_array_equal(result.successes, correct)
    rates = correct / num_samples
    assert result.accuracy.mean == pytest.approx(sum(rates) / num_problems, abs=1e-12)
    variance = sum((rate - sum(rates) / num_problems) ** 2 for rate in rates) / (num_problems - 1)
    assert result.accuracy.error == pytest.approx(math.sqrt(variance / num_problems), abs=1e-12)
    assert result.accuracy.num_problems == num_problems
    assert result.reward == pytest.approx(np.mean(rewards), abs=1e-6)
    assert result.completion_tokens == pytest.approx(tokens / (num_problems * num_samples), abs=1e-12)
    for name, values in by_group.items():
        assert result.accuracy_by_group[name].mean == pytest.approx(np.mean(values), abs=1e-12)
        assert result.accuracy_by_group[name].num_problems == len(values)
    any_of_two = [1 - math.comb(3 - int(c), 2) / 3 for c in correct]
    assert result.pass_at_k[2].mean == pytest.approx(np.mean(any_of_two), abs=1e-12)
    assert result.pass_at_k[3].mean == pytest.approx(np.mean(correct > 0), abs=1e-12)
    assert sorted(result.pass_at_k) == [2, 3]


def test_accuracy_is_that_of_a_known_policy():
    num_problems, num_samples = 300, 32
    problems = make_problems(num_problems)
    probs = np.full((num_problems, NUM_TOKENS), 0.175)
    probs[np.arange(num_problems), problems.facts[:, 0]] = 0.3
    evaluate = evaluator(make_sample(num_samples), score, problems, num_samples=num_samples, batch_size=64)
    result = evaluate(jnp.log(probs), jax.random.key(0))
    assert abs(result.accuracy.mean - 0.3) < 4 * result.accuracy.error
    assert result.accuracy.error == pytest.approx(math.sqrt(0.3 * 0.7 / (num_problems * num_samples)), rel=0.2)
    for k in (2, 4, 8, 16):
        assert abs(result.pass_at_k[k].mean - (1 - 0.7**k)) < 4 * result.pass_at_k[k].error
    assert result.accuracy_by_group == {}


def test_it_is_compiled_once_and_a_function_of_the_key():
    traces = []
    sample = make_sample(2)

    def counted(*arguments):
        traces.append(1)
        return sample(*arguments)

    evaluate = evaluator(counted, score, make_problems(11), num_samples=2, batch_size=4)
    tables = [jnp.zeros((11, NUM_TOKENS)), jnp.ones((11, NUM_TOKENS)).at[:, 0].set(3.0)]
    results = [evaluate(table, jax.random.key(seed)) for table in tables for seed in (0, 0, 1)]
    assert len(traces) == 1
    np.testing.assert_array_equal(results[0].successes, results[1].successes)
    assert np.any(results[0].successes != results[2].successes)


def test_completions_without_a_score_are_left_out():
    def some_scored(facts, completions):
        found = score(facts, completions)
        row = facts[..., 1]
        place = jnp.arange(completions.shape[1]) * jnp.ones_like(row)
        is_missing = (row == 0) | ((row == 1) & (place >= 1))
        return Score(is_correct=found.is_correct, rewards=jnp.where(is_missing, jnp.nan, found.rewards))

    problems = make_problems(3)
    # The policy always answers with token 1, which is correct for the second problem.
    table = jnp.full((3, NUM_TOKENS), -50.0).at[:, 1].set(0.0)
    evaluate = evaluator(make_sample(2), some_scored, problems, num_samples=2, batch_size=4, ks=[1, 2])
    found = evaluate(table, jax.random.key(0))
    assert (found.accuracy.mean, found.accuracy.num_problems) == (0.5, 2)
    assert (found.pass_at_k[2].mean, found.pass_at_k[2].num_problems) == (0.0, 1)
    assert found.reward == pytest.approx(1 / 3)
    nothing = lambda *rest: score(*rest)._replace(rewards=jnp.full(rest[1].shape[:2], jnp.nan))
    metrics = to_metrics(
        evaluator(make_sample(2), nothing, problems, num_samples=2, batch_size=4)(table, jax.random.key(0))
    )
    assert metrics["test_accuracy"] is None
    assert metrics["test_reward"] is None
    json.dumps(metrics, allow_nan=False)


def test_bad_arguments_are_refused():
    problems, sample = make_problems(5), make_sample(2)
    with pytest.raises(ValueError, match="num_samples: expected an integer >= 1, got 0"):
        evaluator(sample, score, problems, num_samples=0, batch_size=2)
    with pytest.raises(ValueError, match="ks: expected an integer >= 1 and <= 2, got 3"):
        evaluator(sample, score, problems, num_samples=2, batch_size=2, ks=[3])
    with pytest.raises(ValueError, match=r"group_names: expected at least 2 names, got \['easy'\]"):
        evaluator(sample, score, make_problems(7), num_samples=2, batch_size=2, group_names=["easy"])
    with pytest.raises(ValueError, match="the number of problems: expected an integer >= 1, got 0"):
        evaluator(sample, score, make_problems(0), num_samples=2, batch_size=2)
    with pytest.raises(ValueError, match="sample_fn: expected 3 completions of a prompt, got 2"):
        evaluator(sample, score, problems, num_samples=3, batch_size=2)(jnp.zeros((5, 5)), jax.random.key(0))


def test_metrics_are_flat_numbers(tmp_path):
    evaluate = evaluator(
        make_sample(2), score, make_problems(1), num_samples=2, batch_size=4, group_names=("easy", "hard")
    )
    metrics = to_metrics(evaluate(jnp.full((1, NUM_TOKENS), -30.0).at[0, 0].set(0.0), jax.random.key(0)))
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.append({"round": 0, **metrics})
    json.dumps(metrics, allow_nan=False)
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {
            "round": 0,
            "test_accuracy": 1.0,
            "test_accuracy_error": None,
            "test_reward": 1.0,
            "test_completion_tokens": 1.0,
            "test_pass_at_2": 1.0,
            "test_pass_at_2_error": None,
            "test_accuracy_by_group": {"easy": 1.0, "hard": None},
            "test_accuracy_error_by_group": {"easy": None, "hard": None},
        }
    ]
