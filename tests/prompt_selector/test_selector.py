import copy
import pickle

import numpy as np
import pytest

import dps_jax

METHODS = ["binomial_hmm", "dps", "history", "queue", "uniform"]
pytestmark = pytest.mark.usefixtures("compiled_once")


def outcomes(ids, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 9, len(ids)), np.full(len(ids), 8)


def run(selector, num_rounds, batch_size=8, first=0):
    picks = []
    for index in range(first, first + num_rounds):
        ids = selector.select(batch_size)
        selector.observe(ids, *outcomes(ids, index))
        picks.append(ids.tolist())
    return picks


def grouped_prior(seed, num_groups=3):
    rng = np.random.default_rng(seed)
    parts = lambda: (
        rng.dirichlet(np.ones(3)),
        rng.gamma(1.0, size=(3, 3)) + 0.1,
        0.8,
        None,
        rng.gamma(1.0, size=(3, 3)),
    )
    groups = tuple(dps_jax.TransitionPrior(*parts()) for _ in range(num_groups))
    return dps_jax.TransitionPrior(*parts(), groups)


def assert_same(selector, state):
    np.testing.assert_equal(selector.state_dict(), state)


@pytest.fixture(params=METHODS)
def selector(request):
    return dps_jax.PromptSelector(50, method=request.param, seed=3)


def test_shapes_and_dtypes():
    selector = dps_jax.PromptSelector(50, method="dps", prior="progress", decay=0.5)
    ids = selector.select(7)
    assert ids.shape == (7,)
    assert ids.dtype == np.int64
    assert np.unique(ids).size == 7
    assert selector.predicted_probs().shape == (50, 3)
    assert selector.predicted_probs().dtype == np.float32
    prediction = selector.predict()
    assert set(prediction) == {"p_informative", "success_rate"}
    assert all(values.shape == (50,) and values.dtype == np.float32 for values in prediction.values())
    assert all(isinstance(value, float) for value in selector.metrics().values())


def test_seed_decides(selector):
    same = dps_jax.PromptSelector(50, method=selector.method, seed=3)
    other = dps_jax.PromptSelector(50, method=selector.method, seed=4)
    picks = run(selector, 4)
    assert run(same, 4) == picks
    assert run(other, 4) != picks


def test_state_dict_is_exact(selector):
    run(selector, 5)
    selector.select(8)
    ids = selector.select(8)
    selector.observe(ids[:3], [1, 2, 3], 8)
    saved = pickle.loads(pickle.dumps(selector.state_dict()))
    restored = dps_jax.PromptSelector(50, method=selector.method, seed=99)
    restored.load_state_dict(saved)
    assert_same(restored, selector.state_dict())
    kept = copy.deepcopy(saved)
    assert run(restored, 5, first=9) == run(selector, 5, first=9)
    np.testing.assert_equal(saved, kept)
    assert_same(restored, selector.state_dict())


def test_observations_add_up_in_any_order():
    ids = np.array([4, 9, 30])
    at_once = dps_jax.PromptSelector(50)
    at_once.observe(ids, [8, 0, 5], [8, 8, 8])
    in_pieces = dps_jax.PromptSelector(50)
    in_pieces.observe([30, 4], [2, 4], 4)
    in_pieces.observe([9], [0], [8])
    in_pieces.observe([30, 4, 30], [1, 4, 2], [2, 4, 2])
    by_row = dps_jax.PromptSelector(50)
    row_ids = np.repeat(ids, 8)
    is_correct = np.concatenate([np.arange(8) < m for m in (8, 0, 5)])
    order = np.random.default_rng(0).permutation(row_ids.size)
    by_row.observe_rows(row_ids[order], is_correct[order])
    for selector in (at_once, in_pieces, by_row):
        selector.commit()
    for selector in (in_pieces, by_row):
        np.testing.assert_array_equal(selector.predicted_probs(), at_once.predicted_probs())


def test_a_round_without_observations_is_no_round(selector):
    run(selector, 3)
    selector.commit()
    before = selector.state_dict()
    selector.commit()
    selector.observe([], [], 8)
    selector.observe_rows([], [])
    selector.commit()
    assert_same(selector, before)


def test_select_commits():
    selector = dps_jax.PromptSelector(10)
    ids = selector.select(4)
    selector.observe(ids, [0, 4, 8, 4], 8)
    assert selector.metrics()["num_pending"] == 4
    selector.select(2)
    metrics = selector.metrics()
    assert (metrics["num_pending"], metrics["num_rounds"], metrics["num_observed"]) == (0, 1, 4)
    assert metrics["effective_sample_ratio"] == 0.5
    assert metrics["predicted_informative"] == pytest.approx(1 / 3)
    assert metrics["brier"] == pytest.approx((2 * (2 / 3) ** 2 + 2 * (1 / 3) ** 2) / 4)


def test_prompts_in_flight_are_kept_back(selector):
    batches = [selector.select(15) for _ in range(3)]
    assert np.unique(np.concatenate(batches)).size == 45
    last = selector.select(15)  # five are left
    assert np.unique(last).size == 15
    assert set(range(50)) - set(np.concatenate(batches)) <= set(last)
    selector.observe(batches[0], *outcomes(batches[0], 0))
    again = selector.select(15)
    assert len(set(again) & set(batches[0])) >= 15 - len(set(range(50)) - set(last) - set(batches[0]))


def test_prompts_in_flight_among_candidates(selector):
    first = selector.select(4, candidates=np.arange(8))
    second = selector.select(4, candidates=np.arange(8))
    assert set(first) | set(second) == set(range(8))
    assert set(selector.select(5, candidates=np.arange(8))) <= set(range(8))


def test_prompts_never_observed_come_back():
    selector = dps_jax.PromptSelector(3000, method="uniform")
    lost = selector.select(8)
    seen = set()
    for index in range(400):
        ids = selector.select(8)
        seen |= set(ids)
        if index % 2:
            selector.observe(ids, *outcomes(ids, index))
    assert seen & set(lost)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.observe([50], [1], 8), r"prompt_ids: expected ids in \[0, 50\), got 50 at position 0"),
        (lambda s: s.observe([3, -1], [1, 1], 8), r"prompt_ids: expected ids in \[0, 50\), got -1 at position 1"),
        (lambda s: s.observe([[3]], [1], 8), r"prompt_ids: expected one dimension, got shape \[1, 1\]"),
        (
            lambda s: s.observe(["a"], [1], 8),
            r"prompt_ids: expected integers in \[0, \d+\), got texts such as .*'a'.*; pass the ids",
        ),
        (lambda s: s.observe([3], [9], 8), r"successes: expected values in \[0, count\], got 9 of 8 at position 0"),
        (lambda s: s.observe([3], [-1], 8), r"successes: expected values in \[0, count\], got -1 of 8"),
        (lambda s: s.observe([3], [float("nan")], 8), "successes: expected whole numbers, got nan at position 0"),
        (lambda s: s.observe([3], [0.5], 8), "successes: expected whole numbers, got 0.5"),
        (lambda s: s.observe([3], [0], 0), "counts: expected at least 1, got 0 at position 0; leave out"),
        (lambda s: s.observe([3], [1], [float("nan")]), "counts: expected whole numbers, got nan"),
        (lambda s: s.observe([3, 4], [1], 8), "successes: expected 2 values, one per prompt id, got 1"),
        (lambda s: s.observe([3], [1], [8, 8]), "counts: expected 1 values, one per prompt id, got 2"),
        (lambda s: s.observe_rows([3], [0.1]), "row_is_correct: expected 0 or 1, .*, got 0.1 at position 0"),
        (lambda s: s.observe_rows([3], [float("nan")]), "row_is_correct: expected 0 or 1, .* got nan"),
        (lambda s: s.observe_rows([3, 3], [1]), "row_is_correct: expected 2 values, one per row, got 1"),
        (lambda s: s.observe_rows([99], [1]), r"row_ids: expected ids in \[0, 50\), got 99"),
        (lambda s: s.select(51), r"batch_size: expected at most 50 \(num_prompts\), got 51"),
        (lambda s: s.select(0), "batch_size: expected an integer >= 1, got 0"),
        (lambda s: s.select(2.5), "batch_size: expected an integer >= 1, got 2.5"),
        (lambda s: s.select(3, [1, 2]), r"batch_size: expected at most 2 \(the number of candidates\), got 3"),
        (lambda s: s.select(2, [1, 2, 1]), "candidates: expected distinct ids, got 1 more than once"),
        (lambda s: s.select(1, []), "candidates: expected at least batch_size ids, got none"),
        (lambda s: s.select(1, [50]), r"candidates: expected ids in \[0, 50\), got 50"),
        (lambda s: s.select(1, [1.5]), "candidates: expected whole numbers, got 1.5"),
    ],
)
def test_refused_calls_change_nothing(selector, call, message):
    run(selector, 2)
    before = selector.state_dict()
    with pytest.raises(ValueError, match=message):
        call(selector)
    assert_same(selector, before)


def test_a_batch_too_small_for_the_promise_commits_nothing():
    selector = dps_jax.PromptSelector(50, max_wait=5)
    selector.observe([3], [1], 8)
    before = selector.state_dict()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"max_wait: expected at least num_prompts / batch_size = 13 rounds"):
            selector.select(4)
        assert_same(selector, before)
    assert selector.select(10).size == 10
    assert selector.metrics()["num_pending"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("pending"), "state: expected a dict from state_dict.*, got one without pending"),
        (lambda state: state.update(version=0), r"state\['version'\]: expected 3, got 0"),
        (lambda state: state.update(method="best"), r"state\['method'\]: expected '\w+', got 'best'"),
        (lambda state: state.update(num_prompts=51), r"state\['num_prompts'\]: expected 50, got 51"),
        (
            lambda state: state["leaves"].pop(),
            r"state\['leaves'\]: expected .*; build the selector with the same",
        ),
    ],
)
def test_refused_states_change_nothing(selector, change, message):
    run(selector, 2)
    state, before = selector.state_dict(), selector.state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        selector.load_state_dict(state)
    assert_same(selector, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "best"}, r"method: expected one of 'arcsine', 'binomial_hmm', .*'uniform', got 'best'"),
        ({"lam": 0.5}, "options of method 'dps': expected options among decay, .*, prior, quotas, .*, got lam"),
        ({"decay": 1.5}, r"decay: expected a number in \[0.0, 1.0\], got 1.5"),
        ({"prior": "flat"}, "prior: expected one of uniform, progress, stability, local, a .K, K. array.* got 'flat'"),
        ({"initial": 7}, "initial: expected an integer >= 0 and <= 2, got 7"),
        ({"num_states": 4}, "num_states: expected one of 2, 3, 5, 7, got 4"),
        ({"seed": -1}, "seed: expected an integer >= 0"),
        ({"groups": [1, 2]}, "groups: expected 50 ids, one per prompt, got 2"),
        ({"groups": [0.5] * 50}, "groups: expected whole numbers, got 0.5"),
        ({"groups": [3] * 50, "prior": grouped_prior(0)}, r"groups: expected ids in \[-1, 3\), .* got 3 at position 0"),
        ({"features": np.zeros(50)}, r"features: expected finite numbers of shape \[50, D\], got shape \[50\]"),
        ({"features": np.full((50, 2), np.nan)}, "features: expected finite numbers"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dps_jax.PromptSelector(50, **options)


def test_groups_reach_the_methods_that_use_them(selector):
    groups = np.arange(50) % 4 - 1
    options = {"prior": grouped_prior(0)} if selector.method == "dps" else {}
    grouped = dps_jax.PromptSelector(50, method=selector.method, seed=3, groups=groups, **options)
    run(grouped, 2)
    if selector.method == "dps":
        probs = dps_jax.PromptSelector(50, groups=groups, **options).predicted_probs()
        np.testing.assert_allclose(probs[groups == 2], probs[groups == 2][:1].repeat(np.sum(groups == 2), 0))
        assert np.unique(probs[:, 1].round(6)).size == 4
    restored = dps_jax.PromptSelector(50, method=selector.method, groups=groups, **options)
    restored.load_state_dict(grouped.state_dict())
    assert_same(restored, grouped.state_dict())


@pytest.mark.parametrize("form", ["name", "array", "prior", "path"])
def test_set_prior_before_the_first_round_is_the_option(form, tmp_path):
    prior = {"name": "progress", "array": [[1, 0.9, 0.4], [0.5, 1.3, 0.8], [0.2, 0.7, 2.0]]}.get(form)
    if prior is None:
        prior = dps_jax.TransitionPrior([0.2, 0.3, 0.5], [[1, 2, 1], [3, 1, 2], [1, 1, 5]], 0.9)
    if form == "path":
        prior.save(tmp_path / "prior.json")
        prior = str(tmp_path / "prior.json")
    for options in ({}, {"decay": 0.3, "initial": 1}):
        changed = dps_jax.PromptSelector(50, prior="local", seed=3, **options)
        changed.set_prior(prior)
        expected = dps_jax.PromptSelector(50, prior=prior, seed=3, **options)
        assert run(changed, 4) == run(expected, 4)
        np.testing.assert_allclose(changed.predicted_probs(), expected.predicted_probs(), atol=1e-6)


def test_set_prior_keeps_what_is_pending_and_what_was_learned():
    selector = dps_jax.PromptSelector(50, decay=0.9)
    run(selector, 4)
    before = selector.predicted_probs()
    metrics = selector.metrics()
    selector.observe([7], [8], 8)
    selector.set_prior("stability")
    assert selector.metrics() == metrics | {"num_pending": metrics["num_pending"] + 1}
    assert np.abs(selector.predicted_probs() - before).max() > 0.01
    selector.set_prior("uniform")
    np.testing.assert_allclose(selector.predicted_probs(), before, atol=1e-5)


def test_a_state_brings_its_prior():
    selector = dps_jax.PromptSelector(50, prior="progress", decay=0.5)
    run(selector, 3)
    selector.set_prior("stability")
    restored = dps_jax.PromptSelector(50, prior="local", decay=0.5)
    restored.load_state_dict(selector.state_dict())
    np.testing.assert_array_equal(restored.predicted_probs(), selector.predicted_probs())
    assert run(restored, 4, first=3) == run(selector, 4, first=3)
    np.testing.assert_array_equal(restored.predicted_probs(), selector.predicted_probs())


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ("flat", "prior: expected one of uniform, progress, .* got 'flat'"),
        (np.ones((5, 5)), "prior: expected the emission .*num_states=3.*, got .*num_states=5"),
        ([[1, 1, 1], [1, -1, 1], [1, 1, 1]], "prior: expected finite entries >= 0"),
        (
            dps_jax.TransitionPrior([0.2, 0.3, 0.5], np.ones((3, 3)), 0.7, dps_jax.binomial([0.1, 0.5, 0.9])),
            "prior: expected the emission .*exact.*, got .*binomial",
        ),
        (grouped_prior(0), "prior: expected 3 states, 0 groups, .* got 3 states, 3 groups"),
    ],
    ids=["name", "states", "entries", "emission", "groups"],
)
def test_refused_priors_change_nothing(prior, message):
    selector = dps_jax.PromptSelector(50)
    run(selector, 2)
    before = selector.state_dict()
    with pytest.raises(ValueError, match=message):
        selector.set_prior(prior)
    assert_same(selector, before)


@pytest.mark.parametrize("method", ["history", "uniform"])
def test_methods_without_a_prior_cannot_be_given_one(method):
    selector = dps_jax.PromptSelector(50, method=method)
    with pytest.raises(ValueError, match=f"method: expected a method with a prior, such as 'dps', got '{method}'"):
        selector.set_prior("uniform")


def test_num_prompts_is_checked():
    with pytest.raises(ValueError, match="num_prompts: expected an integer >= 1, got 0"):
        dps_jax.PromptSelector(0)


def test_methods_without_states_have_no_predicted_probs():
    with pytest.raises(
        ValueError, match=r"method: expected a method with solve states, .* got 'uniform'; use predict\(\)"
    ):
        dps_jax.PromptSelector(3, method="uniform").predicted_probs()


def test_impossible_observations_are_reported():
    selector = dps_jax.PromptSelector(5, prior="local", initial=0)
    selector.observe([0], [8], 8)
    selector.commit()
    assert selector.metrics()["num_impossible"] == 1
    assert np.all(np.isfinite(selector.predicted_probs()))


def test_one_prompt_and_binomial_emission():
    prior = dps_jax.TransitionPrior([0.5, 0.5], np.ones((2, 2)), 0.9, dps_jax.binomial([0.1, 0.8]))
    selector = dps_jax.PromptSelector(1, prior=prior, group_size=4)
    for count in (1, 4, 16):
        assert selector.select(1).tolist() == [0]
        selector.observe([0], [count], count)
    selector.commit()
    assert selector.predicted_probs()[0, 1] > 0.5
