import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dps_jax.hmm import _in_place, _transitions, emissions, filtering
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
    """Returns observe, which one compilation serves for all decays and prior counts."""
    return transform(lambda state, ids, *outcome: filtering.observe(state, prior.emission, ids, *outcome))


def replacer(**options):
    """Returns with_prior, compiled; wrapped, because caches of one function are shared."""
    return jax.jit(lambda state, prior: filtering.with_prior(state, prior), **options)


@functools.cache
def exact_stepper(num_states):
    return stepper(_transitions.resolve_prior(num_states=num_states))


@jax.jit
def views(state):
    """Returns what is compared with the oracle; compiled, as it is called thousands of times."""
    return filtering.predicted_probs(state), filtering.filtered_probs(state), filtering.concentration(state)


def largest_error(state, oracle):
    expected = oracle.predicted_probs(), oracle.filtered_probs(), oracle.concentration()
    return max(
        np.abs(np.asarray(ours) - reference).max() for ours, reference in zip(views(state), expected, strict=True)
    )


@pytest.mark.parametrize("initial", ["uniform", 0, 1, 2, (0.2, 0.7, 0.1)], ids=str)
@pytest.mark.parametrize("concentration", ["progress", "local", ASYMMETRIC], ids=["progress", "local", "asymmetric"])
def test_filter_matches_float64_loop(concentration, initial, strict):
    base = _transitions.resolve_prior(concentration, initial=initial)
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
            state = step(state, ids, successes, counts)
            oracle.observe({int(n): (int(m), int(g)) for n, m, g in zip(ids, successes, counts, strict=True)})
            assert largest_error(state, oracle) < 1e-5
            np.testing.assert_allclose(state.predicted_value, oracle.predicted_probs()[1], atol=1e-5)
        assert int(state.num_impossible) == oracle.num_impossible


def test_a_transposed_prior_is_noticed():
    """The tolerance of the test above would be worth nothing if confusing rows with columns passed it."""
    prior = _transitions.resolve_prior("progress", decay=0.7)
    transposed = _transitions.resolve_prior(prior.concentration.T, decay=0.7)
    oracle = loop_filter.LoopFilter(
        NUM_PROMPTS, prior.initial_probs, prior.concentration, 0.7, loop_likelihood(prior.emission)
    )
    rng, state, step = np.random.default_rng(0), filtering.init(NUM_PROMPTS, transposed), stepper(transposed)
    for _ in range(60):
        ids, successes, counts = random_round(rng, NUM_PROMPTS, 3)
        state = step(state, ids, successes, counts)
        oracle.observe({int(n): (int(m), int(g)) for n, m, g in zip(ids, successes, counts, strict=True)})
    assert np.abs(filtering.predicted_probs(state) - oracle.predicted_probs()).max() > 0.05


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
    prior = _transitions.TransitionPrior(
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
        state = step(state, ids, successes, counts)
        counts_now = np.asarray(filtering.concentration(state), np.float64)[..., 0]
        matrix = counts_now / counts_now.sum(axis=1, keepdims=True)
        paths_probs = {
            (*path, j): p * matrix[path[-1], j]
            for (path, p), j in itertools.product(paths_probs.items(), range(num_states))
        }
        by_state = np.array([sum(p for path, p in paths_probs.items() if path[-1] == j) for j in range(num_states)])
        predicted = filtering.predicted_probs(state)[:, 0]
        np.testing.assert_allclose(predicted, by_state / by_state.sum(), atol=1e-5)


@pytest.mark.parametrize("name", EMISSIONS)
def test_every_emission_matches_float64_loop(name, strict):
    emission = EMISSIONS[name]
    num_states = emission.num_states
    rng = np.random.default_rng(7)
    prior = _transitions.TransitionPrior(
        rng.dirichlet(np.ones(num_states)), rng.gamma(0.7, size=(num_states, num_states)) + 0.02, 0.8, emission
    )
    value = emissions.informative_probs(emission, 8)
    state, step = filtering.init(NUM_PROMPTS, prior, value), stepper(prior)
    oracle = loop_filter.LoopFilter(
        NUM_PROMPTS, prior.initial_probs, prior.concentration, 0.8, loop_likelihood(emission)
    )
    for _ in range(60):
        ids, successes, counts = random_round(rng, NUM_PROMPTS, 4)
        state = step(state, ids, successes, counts)
        oracle.observe({int(n): (int(m), int(g)) for n, m, g in zip(ids, successes, counts, strict=True)})
        assert largest_error(state, oracle) < 1e-5
        np.testing.assert_allclose(state.predicted_value, value @ oracle.predicted_probs(), atol=1e-5)


def test_impossible_observation_stands_and_is_counted():
    prior = _transitions.resolve_prior("local", initial=0, decay=0.5)
    with jax.debug_nans(True):
        state = filtering.init(2, prior)
        state = filtering.observe(state, prior.emission, np.array([0]), np.array([8]), np.array([8]))
    assert int(state.num_impossible) == 1
    np.testing.assert_allclose(filtering.filtered_probs(state)[:, 0], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(filtering.concentration(state)[0, :, 0], [1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(filtering.filtered_probs(state)[:, 1], [1, 0, 0], atol=1e-6)


def test_padding_and_empty_groups_change_nothing():
    prior = _transitions.resolve_prior("progress")
    state = filtering.init(5, prior)
    ids, successes, counts = np.array([1, 3]), np.array([2, 0]), np.array([4, 4])
    plain = filtering.observe(state, prior.emission, ids, successes, counts)
    padded = filtering.observe(
        state, prior.emission, np.array([1, -1, 3, 5, 2]), np.array([2, 1, 0, 1, 0]), np.array([4, 4, 4, 4, 0])
    )
    chex.assert_trees_all_equal(plain, padded)


@pytest.mark.parametrize("is_compact", [False, True])
def test_chunks_equal_one_pass(monkeypatch, is_compact):
    prior = _transitions.resolve_prior("progress", initial=1)
    results = []
    for chunk_size in (10**6, 7):
        monkeypatch.setattr(_in_place, "CHUNK_SIZE", chunk_size)
        rng = np.random.default_rng(1)
        state, step = filtering.init(38, prior, is_compact=is_compact), stepper(prior)
        for _ in range(5):
            state = step(state, *random_round(rng, 38, 9))
        results.append(state)
    chex.assert_trees_all_close(*results, rtol=1e-6)


def random_prior(rng, num_states=3, num_groups=0, has_trained=False, decay=0.7, emission=None):
    """Returns an asymmetric prior of any structure, with entries near zero too."""
    concentration = lambda: rng.gamma(0.8, size=(num_states, num_states)) + 0.02
    parts = lambda: (rng.dirichlet(np.ones(num_states)), concentration(), decay, emission)
    build = lambda groups: _transitions.TransitionPrior(*parts(), concentration() if has_trained else None, groups)
    return build(tuple(build(()) for _ in range(num_groups)))


def loop_fields(prior):
    """Returns the prior as the oracle takes it."""
    groups = [(group.initial_probs, group.concentration, group.trained_concentration) for group in prior.groups]
    return prior.initial_probs, prior.concentration, prior.decay, prior.trained_concentration, groups


def loop_of(prior, num_prompts, group_ids=None):
    initial_probs, concentration, decay, *rest = loop_fields(prior)
    likelihood = loop_likelihood(prior.emission)
    return loop_filter.LoopFilter(num_prompts, initial_probs, concentration, decay, likelihood, *rest, group_ids)


# Number of groups (the last is read by a gather), and whether trained prompts have their own prior.
STRUCTURES = {"plain": (0, False), "trained": (0, True), "groups": (3, False), "both": (3, True), "many": (12, True)}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_any_structure_matches_float64_loop_under_three_priors(structure, strict):
    num_prompts, (num_groups, has_trained) = 16, STRUCTURES[structure]
    rng = np.random.default_rng(13)
    replace, step = replacer(), None
    for decay in (0.0, 0.5, 0.95, 1.0):
        priors = [random_prior(rng, 3, num_groups, has_trained, d) for d in (decay, 0.8, decay)]
        step = step or stepper(priors[0])
        group_ids = rng.integers(-1, num_groups, num_prompts).astype(np.int32)
        state = filtering.init(num_prompts, priors[0], group_ids=jnp.asarray(group_ids))
        oracle = loop_of(priors[0], num_prompts, group_ids)
        for index in range(75):
            if index in (30, 55):
                state = replace(state, priors[index // 25])
                oracle.replace_prior(*loop_fields(priors[index // 25]))
                assert largest_error(state, oracle) < 1e-5
                np.testing.assert_allclose(state.predicted_value, oracle.predicted_probs()[1], atol=1e-5)
            # Half of the prompts are seen late, and one never.
            ids, successes, counts = random_round(rng, 8 if index < 40 else num_prompts - 1, 6)
            state = step(state, ids, successes, counts)
            oracle.observe({int(n): (int(m), int(g)) for n, m, g in zip(ids, successes, counts, strict=True)})
            assert largest_error(state, oracle) < 1e-5
            np.testing.assert_allclose(state.predicted_value, oracle.predicted_probs()[1], atol=1e-5)
    assert step._cache_size() == replace._cache_size() == 1


def test_groups_and_training_of_a_binomial_emission_match_float64_loop(strict):
    rng = np.random.default_rng(17)
    emission = EMISSIONS["binomial-4"]
    prior = random_prior(rng, 4, 2, True, 0.85, emission)
    value, group_ids = emissions.informative_probs(emission, 8), np.array([0, 1, -1, 1, 0, -1], np.int32)
    state, step = filtering.init(NUM_PROMPTS, prior, value, group_ids=group_ids), stepper(prior)
    oracle = loop_of(prior, NUM_PROMPTS, group_ids)
    for _ in range(60):
        ids, successes, counts = random_round(rng, NUM_PROMPTS, 2)
        state = step(state, ids, successes, counts)
        oracle.observe({int(n): (int(m), int(g)) for n, m, g in zip(ids, successes, counts, strict=True)})
        assert largest_error(state, oracle) < 1e-5
        np.testing.assert_allclose(state.predicted_value, value @ oracle.predicted_probs(), atol=1e-5)


def test_the_kind_of_a_move_is_that_of_the_round_before_it():
    """The tolerance above would be worth nothing if trained and idle prompts were confused unnoticed."""
    rng = np.random.default_rng(13)
    prior = random_prior(rng, 3, 3, True, 0.9)
    swapped = dataclasses.replace(
        prior, concentration=prior.trained_concentration, trained_concentration=prior.concentration, groups=()
    )
    group_ids = np.zeros(NUM_PROMPTS, np.int32)
    state, oracle = filtering.init(NUM_PROMPTS, swapped), loop_of(prior, NUM_PROMPTS, group_ids)
    others = filtering.init(NUM_PROMPTS, prior, group_ids=group_ids + 1)
    step = stepper(prior)
    for _ in range(10):
        ids, successes, counts = random_round(rng, NUM_PROMPTS, 3)
        state, others = step(state, ids, successes, counts), step(others, ids, successes, counts)
        oracle.observe({int(n): (int(m), int(g)) for n, m, g in zip(ids, successes, counts, strict=True)})
    assert largest_error(state, oracle) > 0.05
    assert largest_error(others, oracle) > 0.05


def test_unknown_groups_are_the_population():
    rng = np.random.default_rng(2)
    prior = random_prior(rng, num_groups=3)
    population = dataclasses.replace(prior, groups=())
    outcome = random_round(rng, 8, 4)
    states = [
        filtering.init(8, prior),
        filtering.init(8, prior, group_ids=np.full(8, -1)),
        filtering.init(8, prior, group_ids=np.full(8, 3)),
        filtering.init(8, population, group_ids=np.arange(8)),
    ]
    step = stepper(prior)
    probs = [filtering.predicted_probs(step(step(state, *outcome), *outcome)) for state in states]
    for other in probs[1:]:
        np.testing.assert_allclose(other, probs[0], atol=1e-6)
    assert states[0].group_ids.dtype == jnp.uint8
    assert states[3].group_ids is None
    with pytest.raises(ValueError, match=r"group_ids: expected shape \[8\], got \[7\]"):
        filtering.init(8, prior, group_ids=np.zeros(7, int))


@pytest.mark.parametrize("is_compact", [False, True])
@pytest.mark.parametrize("structure", ["plain", "both"])
def test_another_prior_moves_the_unseen_and_keeps_what_was_learned(structure, is_compact):
    rng = np.random.default_rng(23)
    replace, step = replacer(), None
    for decay in (0.0, 0.6, 1.0):
        old, new = (random_prior(rng, 3, *STRUCTURES[structure], decay=d) for d in (decay, 0.3))
        step = step or stepper(old)
        group_ids = rng.integers(-1, 3, 12)
        state, fresh = (filtering.init(12, prior, group_ids=group_ids, is_compact=is_compact) for prior in (old, new))
        for index in range(9):
            # Prompts 0 to 3 are seen in the first round only: at decay 0 nothing is left of their counts.
            ids, successes, counts = random_round(rng, 4, 3)
            ids += 4 * (index > 0)
            state, fresh = step(state, ids, successes, counts), step(fresh, ids, successes, counts)
        seen = np.unique(np.nonzero(np.stack(jax.tree.leaves(state.scaled_counts)))[1])
        assert seen.size == 7
        unseen = np.setdiff1d(np.arange(12), seen)
        changed = replace(state, new)
        probs = np.asarray(filtering.filtered_probs(changed))
        np.testing.assert_array_equal(probs[:, seen], filtering.filtered_probs(state)[:, seen])
        np.testing.assert_allclose(probs[:, unseen], filtering.filtered_probs(fresh)[:, unseen], atol=1e-6)
        np.testing.assert_allclose(changed.predicted_value[unseen], fresh.predicted_value[unseen], atol=1e-6)
        np.testing.assert_allclose(changed.predicted_value, filtering.predicted_probs(changed)[1], atol=1e-6)
        learned, kept = (
            filtering.concentration(full) - filtering.concentration(full._replace(scale=jnp.zeros(())))
            for full in (state, changed)
        )
        np.testing.assert_allclose(kept, learned, atol=3e-6)
        assert np.abs(filtering.concentration(changed) - filtering.concentration(state)).max() > 0.1
        later, expected = (step(filled, ids, successes, counts) for filled in (changed, fresh))
        np.testing.assert_allclose(
            filtering.predicted_probs(later)[:, unseen], filtering.predicted_probs(expected)[:, unseen], atol=1e-6
        )


@pytest.mark.parametrize("structure", STRUCTURES)
def test_another_prior_before_the_first_round_is_as_if_it_had_been_the_first(structure):
    rng = np.random.default_rng(29)
    old, new = (random_prior(rng, 3, *STRUCTURES[structure], decay=d) for d in (0.6, 0.3))
    group_ids = rng.integers(-1, 3, 8)
    state, expected = (filtering.init(8, prior, group_ids=group_ids) for prior in (old, new))
    chex.assert_trees_all_close(filtering.with_prior(state, new), expected, rtol=1e-6)


def test_other_priors_and_decays_compile_nothing():
    rng = np.random.default_rng(31)
    priors = [random_prior(rng, 3, 2, True, decay) for decay in (0.5, 1.0, np.float32(0.2))]
    step = jax.jit(lambda state, *outcome: filtering.observe(state, priors[0].emission, *outcome), donate_argnums=0)
    replace = replacer(donate_argnums=0)
    state = filtering.init(9, priors[0], group_ids=np.zeros(9, int))
    for prior in priors:
        state = step(state, *random_round(rng, 9, 4))
        state = replace(state, prior)
        state = step(state, *random_round(rng, 9, 4))
        state = filtering.with_prior(state, prior)
    assert step._cache_size() == 1
    # What was donated was the state's own: the priors still serve.
    assert float(priors[2].decay) == np.float32(0.2)


def test_a_smaller_decay_at_a_small_scale_is_finite():
    prior = _transitions.resolve_prior(ASYMMETRIC, decay=1e-6)
    outcome = np.array([0, 1]), np.array([3, 0]), np.array([8, 8])
    with jax.debug_nans(True):
        state = filtering.init(3, prior)
        for _ in range(2):
            state = filtering.observe(state, prior.emission, *outcome)
        assert float(state.scale) < 1e-11
        state = filtering.with_prior(state, dataclasses.replace(prior, decay=0.0))
        for _ in range(3):
            state = filtering.observe(state, prior.emission, *outcome)
            learned = filtering.concentration(state).sum(axis=(0, 1)) - np.sum(ASYMMETRIC)
            np.testing.assert_allclose(learned, [1, 1, 0], atol=1e-5)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_priors_built_otherwise_are_refused(structure):
    rng = np.random.default_rng(0)
    state = filtering.init(4, random_prior(rng, 3, *STRUCTURES[structure]))
    for name, shape in STRUCTURES.items():
        if name != structure:
            with pytest.raises(ValueError, match=r"prior: expected 3 states, .* trained_concentration, got 3 states"):
                filtering.with_prior(state, random_prior(rng, 3, *shape))
    with pytest.raises(ValueError, match=r"prior: expected 3 states, .*, got 5 states"):
        filtering.with_prior(state, random_prior(rng, 5, *STRUCTURES[structure]))


@pytest.mark.parametrize(
    ("structure", "is_compact"),
    [("plain", False), ("plain", True), ("trained", False), ("groups", True), ("both", False), ("many", True)],
)
def test_a_round_is_compiled_in_place(structure, is_compact):
    num_prompts, (num_groups, has_trained) = 10 * _in_place.CHUNK_SIZE, STRUCTURES[structure]
    prior = random_prior(np.random.default_rng(0), 3, num_groups, has_trained)
    state = jax.eval_shape(lambda: filtering.init(num_prompts, prior, is_compact=is_compact))
    few = jax.ShapeDtypeStruct((256,), jnp.int32)
    step = jax.jit(lambda *arrays: filtering.observe(arrays[0], prior.emission, *arrays[1:]), donate_argnums=0)
    replace = replacer(donate_argnums=0)
    for compiled in (step.lower(state, few, few, few).compile(), replace.lower(state, prior).compile()):
        copies = [line for line in compiled.as_text().splitlines() if f"[{num_prompts}]" in line and " copy(" in line]
        assert not copies
        # Of the size of a chunk, not of N.
        per_chunk = 80 if structure == "plain" else 140
        assert compiled.memory_analysis().temp_size_in_bytes < per_chunk * _in_place.CHUNK_SIZE
    per_prompt = filtering.state_bytes(state) / num_prompts
    assert per_prompt < (30.1 if is_compact else 48.1) + (num_groups > 0) + has_trained


def test_compact_counts_lose_little():
    prior = _transitions.resolve_prior("progress", decay=0.95)
    rng, step = np.random.default_rng(2), stepper(prior)
    full, compact = filtering.init(200, prior), filtering.init(200, prior, is_compact=True)
    largest = 0.0
    for _ in range(200):
        outcome = random_round(rng, 200, 60)
        full, compact = (step(state, *outcome) for state in (full, compact))
        largest = max(largest, np.abs(np.asarray(views(full)[0]) - views(compact)[0]).max())
    assert 1e-5 < largest < 0.01


def test_state_structure_is_fixed_and_prompts_are_exchangeable():
    prior = _transitions.resolve_prior(ASYMMETRIC, decay=0.9)
    state, step = filtering.init(9, prior), stepper(prior)
    permutation = np.random.default_rng(0).permutation(9)
    permuted, rng = state, np.random.default_rng(4)
    for _ in range(6):
        ids, successes, counts = random_round(rng, 9, 4)
        state = step(state, ids, successes, counts)
        permuted = step(permuted, permutation[ids].astype(np.int32), successes, counts)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, filtering.init(9, prior))
    np.testing.assert_allclose(
        filtering.predicted_probs(permuted)[:, permutation], filtering.predicted_probs(state), atol=1e-6
    )
    assert step._cache_size() == 1


def test_vmap_over_decays_equals_a_loop():
    prior = _transitions.resolve_prior("stability")
    outcome = random_round(np.random.default_rng(0), NUM_PROMPTS, 3)

    def two_rounds(decay):
        swept = dataclasses.replace(prior, decay=decay)
        state = filtering.observe(filtering.init(NUM_PROMPTS, swept), swept.emission, *outcome)
        return filtering.predicted_probs(filtering.observe(state, swept.emission, *outcome))

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
    prior = _transitions.resolve_prior(concentration, initial=initial, decay=decay)
    oracle = loop_filter.LoopFilter(
        num_prompts, prior.initial_probs, prior.concentration, decay, loop_likelihood(prior.emission)
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    state, step = filtering.init(num_prompts, prior), exact_stepper(num_states)
    with jax.debug_nans(True):
        for _ in range(8):
            ids, successes, counts = random_round(rng, num_prompts, num_prompts, max_count)
            ids = np.where(rng.random(num_prompts) < 0.7, ids, -1).astype(np.int32)
            state = step(state, ids, successes, counts)
            outcomes = zip(ids, successes, counts, strict=True)
            oracle.observe({int(n): (int(m), int(g)) for n, m, g in outcomes if n >= 0})
            np.testing.assert_allclose(np.asarray(views(state)[0]).sum(axis=0), 1, atol=1e-5)
    assert int(state.num_impossible) == oracle.num_impossible
    assert largest_error(state, oracle) < 1e-4 * max(1.0, concentration.max())


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.7, 0.98, 1.0])
def test_ten_thousand_rounds(decay):
    """float32 against float64 on 10^4 prompts; nothing drifts, nothing becomes NaN."""
    num_prompts, num_rounds, num_observed = 10_000, 10_000, 64
    prior = _transitions.resolve_prior("progress", decay=decay)
    rng = np.random.default_rng(11)
    ids = rng.integers(0, num_prompts // num_observed, (num_rounds, num_observed)).astype(np.int32)
    ids += np.arange(num_observed, dtype=np.int32) * (num_prompts // num_observed)  # distinct within a round
    successes = rng.integers(0, 9, (num_rounds, num_observed)).astype(np.int32)
    counts = np.full((num_rounds, num_observed), 8, np.int32)

    @jax.jit
    def run(state):
        observe = lambda state, outcome: (filtering.observe(state, prior.emission, *outcome), None)
        return jax.lax.scan(observe, state, (ids, successes, counts))[0]

    with jax.debug_nans(True):
        state = run(filtering.init(num_prompts, prior))
    oracle = array_filter.ArrayFilter(num_prompts, prior.initial_probs, prior.concentration, decay)
    for row_ids, row_successes in zip(ids, successes, strict=True):
        oracle.observe(row_ids, np.where(row_successes == 0, 0, np.where(row_successes == 8, 2, 1)))
    predicted = np.asarray(filtering.predicted_probs(state))
    np.testing.assert_allclose(predicted.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(filtering.filtered_probs(state).sum(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(predicted, oracle.predicted_probs, atol=2e-5)
    assert int(state.num_impossible) == 0
