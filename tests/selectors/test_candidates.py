"""Selecting among candidates: nothing is computed for other prompts, and scores are those among all prompts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from dps_jax import selectors

# A prime, so that no other axis has this size.
NUM_PROMPTS, NUM_CANDIDATES, BATCH_SIZE = 1009, 100, 8
TOKENS, GROUPS = np.random.default_rng(0).uniform(1, 2, NUM_PROMPTS), np.arange(NUM_PROMPTS) % 3
CHANCE = {"value": "variance", "temperature": 0.5, "explore": 0.1, "expected_tokens": TOKENS}
TURNS = {"hardness": 1.0, "max_wait": 200, "quotas": [0.2, 0.1, 0.2], "groups": GROUPS}
METHODS = sorted(set(selectors.SELECTORS) - {"instructive"})
DRAWING = ("arcsine", "binomial_hmm", "dps", "logit_kalman", "mopps")
CASES = [
    *((method, {}) for method in METHODS),
    *((method, options) for method in METHODS if method != "uniform" for options in (CHANCE, TURNS)),
    *((method, {"thompson": True}) for method in DRAWING),
]


def equations(jaxpr):
    """Yields all operations of a program, those of inner programs too."""
    is_program = lambda value: isinstance(value, (core.ClosedJaxpr, core.Jaxpr))
    for equation in jaxpr.eqns:
        yield equation
        for value in filter(is_program, jax.tree.leaves(equation.params, is_leaf=is_program)):
            yield from equations(getattr(value, "jaxpr", value))


def results_of_size_n(selector, num_candidates):
    """Returns name and shape of all intermediate results with an axis of N, or of a multiple of N."""
    state = jax.eval_shape(selector.init, jax.random.key(0))
    candidates = None if num_candidates is None else jax.ShapeDtypeStruct((num_candidates,), jnp.int32)
    select = lambda state, key, candidates: selector.select(state, key, BATCH_SIZE, candidates)
    program = jax.make_jaxpr(select)(state, jax.random.key(0), candidates)
    results = [(str(eqn.primitive), result.aval.shape) for eqn in equations(program.jaxpr) for result in eqn.outvars]
    return [(name, shape) for name, shape in results if any(size and size % NUM_PROMPTS == 0 for size in shape)]


@pytest.mark.parametrize(("method", "options"), CASES)
def test_nothing_is_computed_for_other_prompts(method, options):
    assert results_of_size_n(selectors.build(method, NUM_PROMPTS, **options), NUM_CANDIDATES) == []


def test_the_size_of_what_is_computed_for_all_is_noticed():
    assert results_of_size_n(selectors.dps(NUM_PROMPTS), None)


def test_no_compiled_temporary_grows_with_the_number_of_prompts():
    def temporary_bytes(num_prompts):
        selector = selectors.mopps(num_prompts, value="variance", temperature=0.5)
        state = jax.eval_shape(selector.init, jax.random.key(0))
        few = jax.ShapeDtypeStruct((NUM_CANDIDATES,), jnp.int32)
        program = jax.jit(selector.select, static_argnums=2).lower(state, jax.random.key(0), BATCH_SIZE, few).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(1_000_000) == temporary_bytes(10_000)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dps", CHANCE | {"explore": 0.0}),
        ("mopps", CHANCE | {"explore": 0.0}),
        ("dps", TURNS),
        ("last_state", TURNS),
        ("dps", {"thompson": True}),
        ("logit_kalman", {"thompson": True}),
    ],
)
def test_candidates_score_what_they_score_among_all(method, options):
    # The temperature is the same for a pool of every size, but exploring depends on it.
    selector = selectors.build(method, NUM_PROMPTS, **options)
    observe, select = jax.jit(selector.observe), jax.jit(selector.select, static_argnums=2)
    state, rng = selector.init(jax.random.key(0)), np.random.default_rng(0)
    for _ in range(3):
        ids = rng.permutation(NUM_PROMPTS)[:300]
        state = observe(state, ids, rng.binomial(8, ids / NUM_PROMPTS), np.full(300, 8))
    candidates = rng.permutation(NUM_PROMPTS)[:NUM_CANDIDATES]
    all_ids, of_all = select(state, jax.random.key(1), NUM_PROMPTS)
    ids, some = select(state, jax.random.key(1), NUM_CANDIDATES, jnp.asarray(candidates))
    assert set(np.asarray(ids).tolist()) == set(candidates.tolist())
    scores = np.zeros(NUM_PROMPTS, np.float32)
    scores[np.asarray(all_ids)] = of_all.scores
    # Loops of other lengths are vectorised otherwise, which changes the last bits.
    np.testing.assert_allclose(some.scores, scores[np.asarray(ids)], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("method", "options"),
    [("uniform", {}), ("history", {}), ("dps", {}), ("dps", {"temperature": 0.5, "max_wait": 30})],
)
def test_lists_do_as_well_as_arrays(method, options):
    selector = selectors.build(method, 20, **options)
    state, key = selector.init(jax.random.key(0)), jax.random.key(1)
    ids, _ = selector.select(state, key, 2, [3, 5, 7, 9], [3, 5], [True, True])
    same, _ = selector.select(state, key, 2, np.array([3, 5, 7, 9]), np.array([3, 5]), np.array([True, True]))
    assert sorted(np.asarray(ids).tolist()) == [7, 9]
    np.testing.assert_array_equal(ids, same)
