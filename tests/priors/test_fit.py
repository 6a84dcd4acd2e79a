"""Fits to simulated traces whose truth is known. Compiling a fit takes seconds, so tests share a few of them."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax import PromptSelector, priors, selectors, traces
from dps_jax.hmm import emissions
from dps_jax.hmm._transitions import TransitionPrior
from dps_jax.priors._result import certain_starts

NUM_PROMPTS, NUM_ROUNDS = 100, 15
INITIAL = np.array([0.6, 0.3, 0.1])
# States go round in a circle; the transpose goes the other way round.
MATRIX = np.array([[0.6, 0.35, 0.05], [0.05, 0.55, 0.4], [0.35, 0.05, 0.6]])
AGAINST = np.array([[0.6, 0.05, 0.35], [0.4, 0.55, 0.05], [0.05, 0.35, 0.6]])
# Nine prompts in ten are visited in a round, so some 1,100 moves are seen, 370 per row: the standard deviation of an
# entry is at most sqrt(0.25 / 370) = 0.026, and four of it are less than half of what the transpose is off by, 0.3.
TOLERANCE = 0.11


def simulated(seed, matrix, initial=INITIAL, **options):
    sizes = {"num_rounds": NUM_ROUNDS, "num_prompts": NUM_PROMPTS, "batch_size": 90}
    return traces.simulate_hmm(np.random.default_rng(seed), initial, matrix, emissions.exact(3), **sizes, **options)


def quiet_fit(*args, **options):
    """Fits that are kept short say so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return priors.fit(*args, jax.random.key(0), progress=False, **options)


def means(result):
    return {name: columns["mean"] for name, columns in result.summary().items()}


def row_means(counts):
    return counts / counts.sum(axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def outcomes():
    return priors.prepare(simulated(0, MATRIX).trace)


@pytest.fixture(scope="module")
def by_map(outcomes):
    return priors.fit(priors.shared(), outcomes, jax.random.key(0), method="map", progress=False)


@pytest.fixture(scope="module")
def by_svi(outcomes):
    return quiet_fit(priors.shared(), outcomes, method="svi", num_steps=500)


@pytest.fixture(scope="module")
def by_nuts(outcomes):
    return quiet_fit(priors.shared(), outcomes, method="nuts", num_warmup=200, num_samples=300)


def test_map_finds_the_matrix(by_map):
    found = means(by_map)
    np.testing.assert_allclose(found["transition_matrix"], MATRIX, atol=TOLERANCE)
    assert np.max(np.abs(found["transition_matrix"] - MATRIX.T)) > 2 * TOLERANCE
    # 90 prompts: four times sqrt(0.25 / 90).
    np.testing.assert_allclose(found["initial_probs"], INITIAL, atol=0.21)
    assert (by_map.model, by_map.method) == ("shared", "map")
    assert all(np.ptp(values, axis=(0, 1)).max() == 0 for values in by_map.draws.values())
    assert by_map.judgement.warnings == ()
    # L-BFGS needs some ten evaluations per parameter at most, of which there are eight.
    assert by_map.judgement.losses.size < 80
    np.testing.assert_allclose(row_means(by_map.prior.concentration), found["transition_matrix"], atol=1e-6)


def test_the_mode_is_that_of_counted_moves(outcomes, by_map):
    """Where every prompt is seen in every round, the mode under uniform rows is the share of moves."""
    # Nearly every round is: the moves between successive visits say nearly all.
    codes = np.asarray(outcomes.codes)
    successes, counts = np.asarray(outcomes.successes)[codes], np.asarray(outcomes.counts)[codes]
    states = np.where(successes == 0, 0, np.where(successes == counts, 2, 1))
    moves = np.zeros((3, 3))
    is_pair = (codes[:-1] > 0) & (codes[1:] > 0)
    np.add.at(moves, (states[:-1][is_pair], states[1:][is_pair]), 1)
    # A fifth of the moves lead to or from a round without a visit, and say less: they shift an entry by less than a
    # standard deviation. Numbers are unconstrained, so the mode is that of another density: less than one count.
    np.testing.assert_allclose(means(by_map)["transition_matrix"], row_means(moves), atol=0.03)


def test_svi_and_nuts_agree(by_map, by_svi, by_nuts):
    svi, nuts = by_svi.summary(), by_nuts.summary()
    for name in ("transition_matrix", "initial_probs"):
        sd = nuts[name]["sd"]
        # Means of 500 draws and of at least 100 effective ones: 4 * sqrt(1 / 500 + 1 / 100) = 0.44 standard deviations.
        # The rest is what the normal approximation may be off by.
        assert np.max(np.abs(svi[name]["mean"] - nuts[name]["mean"]) / sd) < 0.6
        assert np.max(np.abs(np.log(svi[name]["sd"] / sd))) < np.log(1.4)
        assert np.max(np.abs(means(by_map)[name] - nuts[name]["mean"]) / sd) < 1
    np.testing.assert_allclose(nuts["transition_matrix"]["mean"], MATRIX, atol=TOLERANCE)


def test_nuts_has_diagnostics(by_nuts):
    assert by_nuts.draws["transition_matrix"].shape == (2, 300, 3, 3)
    judgement = by_nuts.judgement
    assert judgement.num_divergent == 0
    assert 0.99 < judgement.r_hat < 1.05
    assert 100 < judgement.num_effective < 2000
    assert judgement.losses is None
    # Chains are not copies of each other.
    assert not np.array_equal(*by_nuts.draws["transition_matrix"])


def test_a_nuts_run_that_is_too_short_says_so(outcomes):
    sizes = {"num_warmup": 8, "num_samples": 8, "num_chains": 1, "progress": False, "is_tuned": False}
    with pytest.warns(UserWarning, match=r"shared, nuts: .*") as caught:
        result = priors.fit(priors.shared(), outcomes, jax.random.key(0), **sizes)
    words = " ".join(str(warning.message) for warning in caught)
    assert "effective draws of" in words
    assert "draw more" in words
    assert len(result.judgement.warnings) == len(caught)
    assert result.draws["transition_matrix"].shape == (1, 8, 3, 3)


def test_two_draws_are_too_few_for_diagnostics_and_that_is_said_in_words():
    draws = {"initial_probs": np.random.default_rng(0).dirichlet(np.ones(3), (1, 2))}
    found = priors._result.judge_draws(draws, num_divergent=1)
    words = " ".join(found.warnings)
    assert "1 of 2 transitions diverged" in words
    assert "draw more" in words
    assert "nan" not in words


def test_a_search_that_is_cut_short_says_so(outcomes):
    options = {"method": "map", "num_steps": 8, "is_tuned": False, "progress": False}
    with pytest.warns(UserWarning, match=r"shared, map: the loss was still falling after \d+ steps: take more steps"):
        priors.fit(priors.shared(), outcomes, jax.random.key(0), **options)


@pytest.mark.parametrize(
    ("fall", "num_steps", "words"),
    [
        (0.0, 400, None),
        # 20 steps of 100 fall by 10, the standard error of a difference of means of 10 is 3 / sqrt(5) = 1.3.
        (50.0, 100, "the loss was still falling (1"),
        (50.0, 15, "15 steps are too few to tell"),
    ],
)
def test_losses_of_noisy_steps_are_judged(fall, num_steps, words):
    noise = 3 * np.random.default_rng(0).normal(size=num_steps)
    found = priors._result.judge_losses(1000 - fall * np.linspace(0, 1, num_steps) + noise)
    assert found.warnings == () if words is None else words in found.warnings[0]


def test_a_prior_that_is_certain_of_a_start_state_is_doubted():
    certain, open_ = TransitionPrior([0.9995, 0.0005], np.ones((2, 2))), TransitionPrior([0.9, 0.1], np.ones((2, 2)))
    (words,) = certain_starts(certain)
    assert words.startswith(
        "the fit is certain that all prompts start in state 0 (probability 0.99950): first outcomes"
    )
    assert certain_starts(open_) == ()
    whole = dataclasses.replace(open_, groups=(open_, certain))
    assert [words.split(" start")[0] for words in certain_starts(whole)] == ["the fit is certain that group 1"]
    (words,) = certain_starts(dataclasses.replace(whole, group_ids=(2**40, 7)))
    assert words.startswith("the fit is certain that group 7 start")


def test_no_prompt_is_nothing_to_fit_to(outcomes):
    with pytest.raises(ValueError, match=r"outcomes: expected at least one prompt to fit to, got none"):
        priors.fit(priors.shared(), outcomes.take(np.zeros(0, int)), jax.random.key(0))


def test_losses_that_only_the_annealing_stopped_are_not_called_converged():
    # The way travelled with a cosine schedule, toward a minimum that is far away.
    rate = 1 + np.cos(np.linspace(0, np.pi, 300))
    losses = 9000 - np.cumsum(rate) + np.random.default_rng(0).normal(size=300)
    assert abs(losses[-30:].mean() - losses[-60:-30].mean()) < 2
    assert "still falling" in priors._result.judge_losses(losses).warnings[0]


def test_a_mode_that_one_start_alone_found_is_doubted():
    ends = [priors._mode.Mode(np.zeros(2), np.array([100.0, loss]), True) for loss in (3.0, 8.5, 9.0)]
    assert "only one of 3 starts reached the best mode, and the second-best loss is 5.5 nats higher" in " ".join(
        priors._result.judge_modes(ends).warnings
    )
    assert not priors._result.judge_modes([ends[0], ends[0], ends[2]]).warnings
    assert not priors._result.judge_modes(ends[:1]).warnings


def test_minibatches_reach_about_the_same_mode(outcomes, by_map):
    result = quiet_fit(
        priors.shared(), outcomes, method="map", num_steps=400, learning_rate=0.05, batch_size=25, is_tuned=False
    )
    # Noise of a gradient from a quarter of the prompts, averaged over the steps of the annealed end: well below the
    # standard deviation of the posterior, 0.026.
    np.testing.assert_allclose(means(result)["transition_matrix"], means(by_map)["transition_matrix"], atol=0.03)
    np.testing.assert_allclose(means(result)["initial_probs"], means(by_map)["initial_probs"], atol=0.06)


@pytest.mark.slow
def test_map_of_a_matrix_per_prompt_finds_the_population():
    rng = np.random.default_rng(3)
    rows = np.stack([rng.dirichlet(8 * row, NUM_PROMPTS) for row in MATRIX], axis=1)  # [N, K, K]
    data = priors.prepare(simulated(4, np.moveaxis(rows, 0, -1)).trace)
    result = quiet_fit(priors.hierarchical(), data, method="map", num_steps=600, learning_rate=0.1, is_tuned=False)
    concentration = means(result)["concentration"]
    # Rows of prompts vary by sqrt(0.25 / 9) = 0.17 and are seen 4 times, by 0.25: together 0.3, of 100 prompts 0.03.
    np.testing.assert_allclose(row_means(concentration), MATRIX, atol=0.12)
    # The sums are 8. With all states in sight (Dirichlet-multinomial counts of moves) their mode is 8.9, 4.3 and 6.2,
    # and the standard deviation of their logs 0.3: a factor of 3 is four of them.
    np.testing.assert_array_less(np.abs(np.log(concentration.sum(axis=1) / [8.9, 4.3, 6.2])), np.log(3))
    assert float(result.prior.decay) == 1
    np.testing.assert_allclose(result.prior.concentration, concentration, rtol=1e-5)


@pytest.fixture(scope="module")
def groups():
    """Two groups that move in opposite directions, one of a single prompt, and some of which nothing is known."""
    groups = np.arange(NUM_PROMPTS) % 2
    groups[:10] = -1
    groups[10] = 2
    return groups


@pytest.fixture(scope="module")
def by_groups(groups):
    turned = (groups == 1)[None, None]
    matrices = np.where(turned, AGAINST[..., None], MATRIX[..., None])
    data = priors.prepare(simulated(5, matrices).trace, groups=groups)
    model = priors.build("grouped", data)
    return data, quiet_fit(model, data, method="map", num_steps=600, learning_rate=0.1)


def test_groups_are_told_apart(by_groups, groups):
    _, result = by_groups
    rows = means(result)["group_rows"]
    # Half of the moves each: 0.026 * sqrt(2) * 4.
    np.testing.assert_allclose(rows[0], MATRIX, atol=0.15)
    np.testing.assert_allclose(rows[1], AGAINST, atol=0.15)
    assert len(result.prior.groups) == 3
    for group, mean in zip(result.prior.groups, rows, strict=True):
        np.testing.assert_allclose(row_means(group.concentration), mean, atol=1e-5)
        assert group.decay == result.prior.decay


def test_a_group_of_one_is_uncertain(by_groups):
    _, result = by_groups
    sd = result.summary()["group_rows"]["sd"]
    # 45 prompts against one: 170 moves out of a state against 4, both beside the counts of the population, some ten,
    # make it sqrt(180 / 14) = 3.6 times as uncertain.
    assert sd[2].mean() > 2.5 * max(sd[0].mean(), sd[1].mean())
    assert np.all(np.isfinite(result.draws["group_rows"]))


def test_all_parts_of_a_prior_with_groups_are_used(by_groups, groups):
    data, result = by_groups
    found = np.asarray(priors.log_predictive_probs(result.prior, data)).sum(axis=0)
    ids = np.asarray(data.prompt_ids)
    for group, prior in enumerate(result.prior.groups):
        alone = np.asarray(priors.log_predictive_probs(prior, data)).sum(axis=0)
        np.testing.assert_allclose(found[groups[ids] == group], alone[groups[ids] == group], rtol=1e-4)
    population = TransitionPrior(result.prior.initial_probs, result.prior.concentration, result.prior.decay)
    alone = np.asarray(priors.log_predictive_probs(population, data)).sum(axis=0)
    np.testing.assert_allclose(found[groups[ids] == -1], alone[groups[ids] == -1], rtol=1e-4)


@pytest.mark.parametrize(("successes", "seen"), [(8, 2), (0, 0)], ids=["all_solved", "none_solved"])
def test_what_was_never_seen_stays_unknown(outcomes, successes, seen):
    kinds = jnp.where(outcomes.counts > 0, successes, 0)
    result = quiet_fit(priors.shared(), outcomes._replace(successes=kinds), method="svi", num_steps=800)
    summary = result.summary()["transition_matrix"]
    assert all(np.all(np.isfinite(values)) for values in result.draws.values())
    assert summary["mean"][seen, seen] > 0.95
    # Uniform rows have a standard deviation of sqrt(1 / 18) = 0.24 per entry, and of the row that was seen, 1,400
    # times, 0.002. Normal in stick-breaking logits is not quite uniform. The trace says where such rows do not
    # lead: away from what was seen.
    for row in {0, 1, 2} - {seen}:
        assert summary["sd"][row].max() > 0.15
    assert summary["sd"][seen].max() < 0.02
    assert np.all(np.isfinite(result.prior.concentration))
    assert np.all(result.prior.concentration > 0)


def test_saved_fits_are_read_again(by_map, by_svi, tmp_path):
    folder = tmp_path / "new" / "fit"
    by_svi.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["fit.json", "posterior.npz", "prior.json"]
    loaded = TransitionPrior.load(folder / "prior.json")
    np.testing.assert_array_equal(loaded.concentration, by_svi.prior.concentration)
    with np.load(folder / "posterior.npz") as draws:
        assert set(draws) == set(by_svi.draws)
        for name, values in by_svi.draws.items():
            np.testing.assert_array_equal(draws[name], values)
    facts = json.loads((folder / "fit.json").read_text())
    assert (facts["model"], facts["method"], facts["emission"], facts["num_states"]) == ("shared", "svi", "exact", 3)
    assert "losses" not in facts["judgement"]
    mean = by_svi.summary()["transition_matrix"]["mean"]
    np.testing.assert_allclose(facts["summary"]["transition_matrix"]["mean"], mean, atol=1e-6)
    by_map.save(folder)  # over the old
    assert json.loads((folder / "fit.json").read_text())["method"] == "map"


def test_a_known_emission_is_saved_too(by_map, tmp_path):
    space = dataclasses.replace(by_map.space, emission=emissions.binomial([0.1, 0.5, 0.9], 20.0))
    dataclasses.replace(by_map, space=space).save(tmp_path)
    assert json.loads((tmp_path / "fit.json").read_text())["emission"]["precision"] == 20


@pytest.mark.parametrize("fixture", ["by_map", "by_groups"])
def test_fitted_priors_drive_selectors(request, fixture, tmp_path, groups):
    result = request.getfixturevalue(fixture)
    result = result[1] if isinstance(result, tuple) else result
    result.save(tmp_path)
    path = tmp_path / "prior.json"
    options = {"groups": groups} if result.prior.groups else {}
    by_path = PromptSelector(NUM_PROMPTS, prior=str(path), **options)
    by_value = PromptSelector(NUM_PROMPTS, prior=result.prior, **options)
    for selector in (by_path, by_value):
        ids = selector.select(10)
        selector.observe(ids, np.arange(10) % 9, 8)
    np.testing.assert_array_equal(by_path.select(20), by_value.select(20))

    bare = selectors.dps(NUM_PROMPTS, prior=result.prior, **options)
    belief = np.asarray(bare.predict(bare.init(jax.random.key(0))).p_informative)
    parts = [*result.prior.groups, result.prior]
    expected = np.array([part.initial_probs[1] for part in parts])
    of_prompts = expected[groups] if result.prior.groups else np.full(NUM_PROMPTS, expected[-1])
    np.testing.assert_allclose(belief, of_prompts, atol=1e-5)


@pytest.mark.parametrize("method", ["map", "svi", "nuts"])
def test_the_same_key_gives_the_same(outcomes, method):
    sizes = {"num_steps": 20, "num_warmup": 5, "num_samples": 5, "num_chains": 1, "is_tuned": False}
    some = outcomes.take(np.arange(20))
    one, other = (quiet_fit(priors.shared(), some, method=method, batch_size=8, **sizes) for _ in range(2))
    for name, values in one.draws.items():
        np.testing.assert_array_equal(values, other.draws[name])
    np.testing.assert_array_equal(one.prior.concentration, other.prior.concentration)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "mcmc"}, r"method: expected one of 'nuts', 'svi', 'map', got 'mcmc'"),
        ({"num_steps": 0}, r"num_steps: expected an integer >= 1, got 0"),
        ({"num_starts": 0}, r"num_starts: expected an integer >= 1, got 0"),
        ({"num_samples": 0}, r"num_samples: expected an integer >= 1, got 0"),
        ({"num_chains": 0}, r"num_chains: expected an integer >= 1, got 0"),
        ({"num_warmup": -1}, r"num_warmup: expected an integer >= 1, got -1"),
        ({"batch_size": 0}, r"batch_size: expected an integer >= 1, got 0"),
        ({"learning_rate": 0}, r"learning_rate: expected a finite number > 0, got 0"),
        ({"learning_rate": float("nan")}, r"learning_rate: expected a finite number > 0, got nan"),
    ],
)
def test_bad_options(outcomes, options, message):
    with pytest.raises(ValueError, match=message):
        priors.fit(priors.shared(), outcomes, jax.random.key(0), **{"method": "map", "progress": False} | options)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("nuts", r"model 'covariates': expected a finite likelihood at the start, got"),
        ("map", r"covariates: expected a finite loss at one of 2 starts, got none; .* features contain NaN"),
    ],
)
def test_features_of_nan_break_a_fit(outcomes, method, message):
    features = jnp.full((outcomes.num_prompts, 1), jnp.nan)
    with pytest.raises(priors.FitError, match=message):
        priors.fit(
            priors.covariates(1),
            outcomes._replace(features=features),
            jax.random.key(0),
            method=method,
            num_starts=2,
            num_steps=20,
            num_warmup=2,
            num_samples=2,
            progress=False,
        )


def test_a_learning_rate_far_too_large_breaks_a_fit(outcomes):
    sizes = {"method": "svi", "num_steps": 20, "learning_rate": 1e6, "progress": False}
    with pytest.raises(priors.FitError, match=r"model 'shared': expected a finite loss, .*lower learning_rate"):
        priors.fit(priors.shared(), outcomes, jax.random.key(0), **sizes)
