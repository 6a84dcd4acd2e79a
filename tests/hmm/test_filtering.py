import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dps_jax.hmm import emissions, filtering, in_place, transitions
from tests.reference import array_filter, loop_filter

ASYMMETRIC = [[0.3, 1.2, 0.1], [2.0, 0.4, 0.7], [0.05, 0.9, 3.0]]
DECAYS = (0.0, 0.3, 0.5, 0.7, 0.95, 1.0)
NUM_PROMPTS = 6


def loop_likelihood(emission):
    if emission.kind == "exact":
        return functools.partial(loop_filter.exact_likelihood, emission.num_states)
    return functools.partial(loop_filter.binomial_likelihood, emission.success_rates)


def random_round(rng, num_prompts, num_observed, max_count=8):
    """Returns ids, successes, counts; about half of the outcomes are at an end."""
    ids = rng.permutation(num_prompts)[:num_observed].astype(np.int32)
    counts = rng.integers(1, max_count + 1, num_observed).astype(np.int32)
    inside = rng.integers(0, counts + 1)
    ends = rng.integers(0, 2, num_observed) * counts
    return ids, np.where(rng.random(num_observed) < 0.5, ends, inside).astype(np.int32), counts


def stepper(prior, transform=jax.jit):
    """Returns observe with the decay as an argument, so that one compilation serves all decays."""

    def step(state, decay, ids, successes, counts):
        return filtering.observe(state, dataclasses.replace(prior, decay=decay), ids, successes, counts)

    return transform(step)


def largest_error(state, prior, oracle):
    pairs = (
        (filtering.predicted_probs(state, prior), oracle.predicted_probs()),
        (filtering.filtered_probs(state), oracle.filtered_probs()),
        (filtering.concentration(state, prior), oracle.concentration()),
    )
    return max(np.abs(np.asarray(ours) - reference).max() for ours, reference in pairs)


@pytest.mark.parametrize("initial", ["uniform", 0, 1, 2, (0.2, 0.7, 0.1)], ids=str)
@pytest.mark.parametrize("concentration", ["progress", "local", ASYMMETRIC], ids=["progress", "local", "asymmetric"])
def test_filter_matches_float64_loop(concentration, initial, strict):
    base = transitions.resolve_prior(concentration, initial=initial)
    step = stepper(base)
    rng = np.random.default_rng(3)
    for decay in DECAYS:
        prior = dataclasses.replace(base, decay=decay)
        state = filtering.init(NUM_PROMPTS, prior)
        oracle = loop_filter.LoopFilter(
            NUM_PROMPTS, prior.initial_probs, prior.concentration, decay, loop_likelihood(prior.emission)
        )
        for _ in range(100):
            ids, successes, counts = random_round(rng, NUM_PROMPTS, 3)
            state = step(state, jnp.float32(decay), ids, successes, counts)
            oracle.observe({int(n): (int(m), int(g)) for n, m, g in zip(ids, successes, counts, strict=True)})
            assert largest_error(state, prior, oracle) < 1e-5
            np.testing.assert_allclose(state.predicted_value, oracle.predicted_probs()[1], atol=1e-5)
        assert int(state.num_impossible) == oracle.num_impossible


def test_a_transposed_prior_is_noticed():
    """The tolerance of the test above would be worth nothing if confusing rows with columns passed it."""
    prior = transitions.resolve_prior("progress", decay=0.7)
    transposed = transitions.resolve_prior(prior.concentration.T, decay=0.7)
    oracle = loop_filter.LoopFilter(
        NUM_PROMPTS, prior.initial_probs, prior.concentration, 0.7, loop_likelihood(prior.emission)
    )
    rng, state, step = np.random.default_rng(0), filtering.init(NUM_PROMPTS, transposed), stepper(transposed)
    for _ in range(60):
        ids, successes, counts = random_round(rng, NUM_PROMPTS, 3)
        state = step(state, jnp.float32(0.7), ids, successes, counts)
        oracle.observe({int(n): (int(m), int(g)) for n, m, g in zip(ids, successes, counts, strict=True)})
    assert np.abs(filtering.predicted_probs(state, transposed) - oracle.predicted_probs()).max() > 0.05


EMISSIONS = {
    "exact-2": emissions.exact(2),
    "exact-3": emissions.exact(3),
    "exact-5": emissions.exact(5),
    "exact-7": emissions.exact(7),
    "binomial-3": emissions.binomial([0.03, 0.4, 0.95]),
    "binomial-4": emissions.binomial([0.02, 0.3, 0.6, 0.9]),
}


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("name", EMISSIONS)
def test_filter_matches_path_enumeration(name, transform, strict):
    emission = EMISSIONS[name]
    num_states = emission.num_states
    rng = np.random.default_rng(5)
    prior = transitions.TransitionPrior(
        rng.dirichlet(np.ones(num_states)), rng.gamma(1.0, size=(num_states, num_states)) + 0.05, 0.6, emission
    )
    state, step = filtering.init(1, prior), stepper(prior, transform)
    paths_probs = {(k,): p for k, p in enumerate(prior.initial_probs)}
    num_rounds = 4 if num_states < 6 else 3
    for index in range(num_rounds):
        ids, successes, counts = random_round(rng, 1, 1)
        if index == 1:
            ids = np.array([-1], np.int32)
        else:
            seen = loop_likelihood(emission)(int(successes[0]), int(counts[0]))
            paths_probs = {path: p * seen[path[-1]] for path, p in paths_probs.items()}
        state = step(state, jnp.float32(0.6), ids, successes, counts)
        counts_now = np.asarray(filtering.concentration(state, prior), np.float64)[..., 0]
        matrix = counts_now / counts_now.sum(axis=1, keepdims=True)
        paths_probs = {
            (*path, j): p * matrix[path[-1], j]
            for (path, p), j in itertools.product(paths_probs.items(), range(num_states))
        }
        by_state = np.array([sum(p for path, p in paths_probs.items() if path[-1] == j) for j in range(num_states)])
        predicted = filtering.predicted_probs(state, prior)[:, 0]
        np.testing.assert_allclose(predicted, by_state / by_state.sum(), atol=1e-5)


@pytest.mark.parametrize("name", EMISSIONS)
def test_every_emission_matches_float64_loop(name, strict):
    emission = EMISSIONS[name]
    num_states = emission.num_states
    rng = np.random.default_rng(7)
    prior = transitions.TransitionPrior(
        rng.dirichlet(np.ones(num_states)), rng.gamma(0.7, size=(num_states, num_states)) + 0.02, 0.8, emission
    )
    value = emissions.informative_probs(emission, 8)
    state, step = filtering.init(NUM_PROMPTS, prior, value), stepper(prior)
    oracle = loop_filter.LoopFilter(
        NUM_PROMPTS, prior.initial_probs, prior.concentration, 0.8, loop_likelihood(emission)
    )
    for _ in range(60):
        ids, successes, counts = random_round(rng, NUM_PROMPTS, 4)
        state = step(state, jnp.float32(0.8), ids, successes, counts)
        oracle.observe({int(n): (int(m), int(g)) for n, m, g in zip(ids, successes, counts, strict=True)})
        assert largest_error(state, prior, oracle) < 1e-5
        np.testing.assert_allclose(state.predicted_value, value @ oracle.predicted_probs(), atol=1e-5)


def test_impossible_observation_stands_and_is_counted():
    prior = transitions.resolve_prior("local", initial=0, decay=0.5)
    with jax.debug_nans(True):
        state = filtering.init(2, prior)
        state = filtering.observe(state, prior, np.array([0]), np.array([8]), np.array([8]))
    assert int(state.num_impossible) == 1
    np.testing.assert_allclose(filtering.filtered_probs(state)[:, 0], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(filtering.concentration(state, prior)[0, :, 0], [1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(filtering.filtered_probs(state)[:, 1], [1, 0, 0], atol=1e-6)


def test_padding_and_empty_groups_change_nothing():
    prior = transitions.resolve_prior("progress")
    state = filtering.init(5, prior)
    ids, successes, counts = np.array([1, 3]), np.array([2, 0]), np.array([4, 4])
    plain = filtering.observe(state, prior, ids, successes, counts)
    padded = filtering.observe(
        state, prior, np.array([1, -1, 3, 5, 2]), np.array([2, 1, 0, 1, 0]), np.array([4, 4, 4, 4, 0])
    )
    jax.tree.map(np.testing.assert_array_equal, plain, padded)


@pytest.mark.parametrize("is_compact", [False, True])
def test_chunks_equal_one_pass(monkeypatch, is_compact):
    prior = transitions.resolve_prior("progress", initial=1)
    results = []
    for chunk_size in (10**6, 7):
        monkeypatch.setattr(in_place, "CHUNK_SIZE", chunk_size)
        rng = np.random.default_rng(1)
        state, step = filtering.init(38, prior, is_compact=is_compact), stepper(prior)
        for _ in range(5):
            state = step(state, jnp.float32(0.7), *random_round(rng, 38, 9))
        results.append(state)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), *results)


@pytest.mark.parametrize("is_compact", [False, True])
def test_a_round_is_compiled_in_place(is_compact):
    num_prompts = 10 * in_place.CHUNK_SIZE
    prior = transitions.resolve_prior("progress")
    state = jax.eval_shape(lambda: filtering.init(num_prompts, prior, is_compact=is_compact))
    few = jax.ShapeDtypeStruct((256,), jnp.int32)
    step = jax.jit(lambda *arrays: filtering.observe(arrays[0], prior, *arrays[1:]), donate_argnums=0)
    compiled = step.lower(state, few, few, few).compile()
    copies = [line for line in compiled.as_text().splitlines() if f"[{num_prompts}]" in line and " copy(" in line]
    assert not copies
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * num_prompts
    per_prompt = filtering.state_bytes(state) / num_prompts
    assert per_prompt < (30.1 if is_compact else 48.1)


def test_compact_counts_lose_little():
    prior = transitions.resolve_prior("progress", decay=0.95)
    rng, step = np.random.default_rng(2), stepper(prior)
    full, compact = filtering.init(200, prior), filtering.init(200, prior, is_compact=True)
    largest = 0.0
    for _ in range(200):
        outcome = random_round(rng, 200, 60)
        full, compact = (step(state, jnp.float32(0.95), *outcome) for state in (full, compact))
        difference = filtering.predicted_probs(full, prior) - filtering.predicted_probs(compact, prior)
        largest = max(largest, float(jnp.abs(difference).max()))
    assert 1e-5 < largest < 0.01


def test_state_structure_is_fixed_and_prompts_are_exchangeable():
    prior = transitions.resolve_prior(ASYMMETRIC, decay=0.9)
    state, step = filtering.init(9, prior), stepper(prior)
    permutation = np.random.default_rng(0).permutation(9)
    permuted, rng = state, np.random.default_rng(4)
    for _ in range(6):
        ids, successes, counts = random_round(rng, 9, 4)
        state = step(state, jnp.float32(0.9), ids, successes, counts)
        permuted = step(permuted, jnp.float32(0.9), permutation[ids].astype(np.int32), successes, counts)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, filtering.init(9, prior))
    np.testing.assert_allclose(
        filtering.predicted_probs(permuted, prior)[:, permutation], filtering.predicted_probs(state, prior), atol=1e-6
    )
    assert step._cache_size() == 1


def test_vmap_over_decays_equals_a_loop():
    prior = transitions.resolve_prior("stability")
    outcome = random_round(np.random.default_rng(0), NUM_PROMPTS, 3)

    def two_rounds(decay):
        swept = dataclasses.replace(prior, decay=decay)
        state = filtering.observe(filtering.init(NUM_PROMPTS, swept), swept, *outcome)
        return filtering.predicted_probs(filtering.observe(state, swept, *outcome), swept)

    decays = jnp.array([0.0, 0.4, 1.0])
    np.testing.assert_allclose(
        jax.jit(jax.vmap(two_rounds))(decays), jnp.stack([jax.jit(two_rounds)(d) for d in decays]), atol=1e-6
    )


@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_prior_stays_sane(data):
    num_states = data.draw(st.sampled_from([2, 3, 5]))
    entries = st.sampled_from([0.0, 0.0, 1e-3, 0.5, 1.0, 40.0])
    rows = st.lists(entries, min_size=num_states, max_size=num_states).filter(lambda row: sum(row) > 0)
    concentration = np.array(data.draw(st.lists(rows, min_size=num_states, max_size=num_states)))
    initial = data.draw(st.sampled_from(["uniform", 0, num_states - 1]))
    decay = data.draw(st.sampled_from([0.0, 1e-3, 0.7, 1.0]))
    num_prompts = data.draw(st.sampled_from([1, 4]))
    max_count = data.draw(st.sampled_from([1, 8]))
    prior = transitions.resolve_prior(concentration, initial=initial, decay=decay)
    oracle = loop_filter.LoopFilter(
        num_prompts, prior.initial_probs, prior.concentration, decay, loop_likelihood(prior.emission)
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    state, step = filtering.init(num_prompts, prior), stepper(prior)
    with jax.debug_nans(True):
        for _ in range(8):
            ids, successes, counts = random_round(rng, num_prompts, num_prompts, max_count)
            ids = np.where(rng.random(num_prompts) < 0.7, ids, -1).astype(np.int32)
            state = step(state, jnp.float32(decay), ids, successes, counts)
            outcomes = zip(ids, successes, counts, strict=True)
            oracle.observe({int(n): (int(m), int(g)) for n, m, g in outcomes if n >= 0})
            np.testing.assert_allclose(filtering.predicted_probs(state, prior).sum(axis=0), 1, atol=1e-5)
    assert int(state.num_impossible) == oracle.num_impossible
    assert largest_error(state, prior, oracle) < 1e-4 * max(1.0, concentration.max())


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.7, 0.98, 1.0])
def test_ten_thousand_rounds(decay):
    """float32 against float64 on 10^4 prompts; nothing drifts, nothing becomes NaN."""
    num_prompts, num_rounds, num_observed = 10_000, 10_000, 64
    prior = transitions.resolve_prior("progress", decay=decay)
    rng = np.random.default_rng(11)
    ids = rng.integers(0, num_prompts // num_observed, (num_rounds, num_observed)).astype(np.int32)
    ids += np.arange(num_observed, dtype=np.int32) * (num_prompts // num_observed)  # distinct within a round
    successes = rng.integers(0, 9, (num_rounds, num_observed)).astype(np.int32)
    counts = np.full((num_rounds, num_observed), 8, np.int32)

    @jax.jit
    def run(state):
        observe = lambda state, outcome: (filtering.observe(state, prior, *outcome), None)
        return jax.lax.scan(observe, state, (ids, successes, counts))[0]

    with jax.debug_nans(True):
        state = run(filtering.init(num_prompts, prior))
    oracle = array_filter.ArrayFilter(num_prompts, prior.initial_probs, prior.concentration, decay)
    for row_ids, row_successes in zip(ids, successes, strict=True):
        oracle.observe(row_ids, np.where(row_successes == 0, 0, np.where(row_successes == 8, 2, 1)))
    predicted = np.asarray(filtering.predicted_probs(state, prior))
    np.testing.assert_allclose(predicted.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(filtering.filtered_probs(state).sum(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(predicted, oracle.predicted_probs, atol=2e-5)
    assert int(state.num_impossible) == 0
