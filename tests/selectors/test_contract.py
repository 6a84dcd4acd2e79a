"""One contract over every selector; a new one is picked up by being registered."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dps_jax
from dps_jax import selectors
from dps_jax.hmm import _transitions
from dps_jax.predictors._hmm import hmm
from dps_jax.predictors._online_net import NetState
from dps_jax.selectors._judgement import judged

NUM_PROMPTS, BATCH_SIZE = 40, 6
# It is binomial_hmm with other defaults, which a test of its own says; what compiles for a minute is compiled once.
METHODS = sorted(set(selectors.SELECTORS) - {"instructive"})


build = functools.cache(selectors.build)


@pytest.fixture(params=METHODS, scope="module")
def selector(request):
    """Returns the selector of a method, which all its tests share, so that it is traced and compiled once."""
    return build(request.param, NUM_PROMPTS)


@functools.cache
def compiled(selector):
    """Returns select, observe, which keeps the state that it is given, and predict; all tests call these, in few sizes.

    A size of its own would be compiled for its own: `run` selects and observes BATCH_SIZE prompts.
    """
    keeping = lambda state, *outcome: donating(selector)(jax.tree.map(jnp.copy, state), *outcome)
    return jax.jit(selector.select, static_argnums=2), keeping, jax.jit(selector.predict)


@functools.cache
def donating(selector):
    return jax.jit(selector.observe, donate_argnums=0)


def outcomes(rng, size):
    counts = rng.integers(1, 9, size)
    return jnp.asarray(rng.integers(0, counts + 1)), jnp.asarray(counts)


@functools.cache
def run(selector, num_rounds):
    rng, key = np.random.default_rng(0), jax.random.key(1)
    state = selector.init(key)
    observe, select = donating(selector), compiled(selector)[0]
    for index in range(num_rounds):
        ids, _ = select(state, jax.random.fold_in(key, index), BATCH_SIZE)
        state = observe(state, ids, *outcomes(rng, BATCH_SIZE))
    return state


def is_net(node):
    return isinstance(node, NetState)


def without_exploring(method):
    """Returns select of a selector that does not explore, and a state, which does not depend on it.

    How much a prompt's weight is raised for exploring depends on the others to choose from, and on how many.
    """
    options = {"explore": 0.0} if "explore" in selectors.option_names(method) else {}
    select, *_ = compiled(build(method, NUM_PROMPTS, **options))
    return select, run(build(method, NUM_PROMPTS), 6)


def specs(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def test_state_structure_is_fixed(selector):
    assert specs(run(selector, 5)) == specs(selector.init(jax.random.key(0)))


@pytest.mark.parametrize("batch_size", [1, BATCH_SIZE, NUM_PROMPTS])
def test_ids_are_distinct_and_scores_descend(selector, batch_size):
    ids, info = compiled(selector)[0](run(selector, 4), jax.random.key(3), batch_size)
    assert ids.dtype == jnp.int32
    assert np.unique(ids).size == batch_size
    assert np.all((np.asarray(ids) >= 0) & (np.asarray(ids) < NUM_PROMPTS))
    assert np.all(np.diff(info.scores) <= 0)


def test_select_is_a_function_of_the_key(selector):
    """Called without jax.jit, too."""
    state = run(selector, 3)
    first, _ = selector.select(state, jax.random.key(3), BATCH_SIZE)
    again, _ = compiled(selector)[0](state, jax.random.key(3), BATCH_SIZE)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("method", METHODS)
def test_candidates_are_respected(method):
    select, state = without_exploring(method)
    candidates = jnp.array([3, 39, 17, 8, 21])
    ids, info = select(state, jax.random.key(0), 3, candidates)
    assert set(np.asarray(ids)) <= set(np.asarray(candidates))
    everything, all_info = select(state, jax.random.key(0), NUM_PROMPTS)
    rank = {int(n): place for place, n in enumerate(everything)}
    assert list(ids) == sorted(np.asarray(candidates), key=lambda n: rank[int(n)])[:3]
    np.testing.assert_array_equal(info.scores, [all_info.scores[rank[int(n)]] for n in ids])


@pytest.mark.parametrize("method", METHODS)
def test_excluded_prompts_come_last(method):
    select, state = without_exploring(method)
    exclude = jnp.array([4, 5, 6, -1, 7, -1])
    whole, _ = select(state, jax.random.key(0), NUM_PROMPTS)
    others = [int(n) for n in whole if n not in (4, 5, 6, 7)]
    ids, _ = select(state, jax.random.key(0), 10, None, exclude)
    assert list(ids) == others[:10]
    ids, _ = select(state, jax.random.key(0), NUM_PROMPTS, None, exclude)
    assert list(ids[:-4]) == others
    assert set(np.asarray(ids[-4:])) == {4, 5, 6, 7}
    ids, _ = select(state, jax.random.key(0), 3, jnp.array([4, 5, 9, 30]), exclude)
    assert {9, 30} <= set(np.asarray(ids)) <= {4, 5, 9, 30}


def test_predictions_are_probabilities(selector):
    prediction = compiled(selector)[2](run(selector, 6))
    for field in prediction:
        assert field.shape == (NUM_PROMPTS,)
        assert field.dtype == jnp.float32
        assert np.all((np.asarray(field) >= 0) & (np.asarray(field) <= 1 + 1e-6))


def test_some_predictions_are_those_of_all(selector):
    state = run(selector, 6)
    ids = jnp.array([3, -1, 39, 0, NUM_PROMPTS, 17])
    predict = compiled(selector)[2]
    some, all_ = predict(state, ids), predict(state)
    for field, whole in zip(some, all_, strict=True):
        assert field.dtype == jnp.float32
        expected = np.where([1, 0, 1, 1, 0, 1], np.asarray(whole)[np.asarray(ids) % NUM_PROMPTS], 0)
        np.testing.assert_allclose(field, expected, rtol=1e-4, atol=2e-6)


def test_padding_is_not_observed(selector):
    state = run(selector, 2)
    observe, (successes, counts) = compiled(selector)[1], outcomes(np.random.default_rng(1), BATCH_SIZE)
    ids, padding = jnp.array([2, 9, 31, 0, 5, 39]), np.array([1, 3])
    plain = observe(state, ids, successes, counts)
    insert = lambda array, value: jnp.insert(array, padding, value)
    paddings = [(-1, 0, 0), (jnp.array([-1, NUM_PROMPTS]), 3, 8), (jnp.array([7, 11]), 0, 0)]
    padded = [observe(state, *map(insert, (ids, successes, counts), padding)) for padding in paddings]
    # Networks are trained on sums over the visits, whose rounding depends on their number.
    is_trained = any(map(is_net, jax.tree.leaves(plain, is_leaf=is_net)))
    # Parameters are of the size of 1: this is some units in the last place.
    same = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=5e-7)
    for found in padded:
        jax.tree.map(same if is_trained else np.testing.assert_array_equal, plain, found)


def test_the_order_of_visits_does_not_matter(selector):
    state = run(selector, 2)
    observe, (successes, counts) = compiled(selector)[1], outcomes(np.random.default_rng(1), BATCH_SIZE)
    visits = (jnp.array([2, 9, 31, 0, 5, 39]), successes, counts)
    found = [selector.predict(observe(state, *given)) for given in (visits, [column[::-1] for column in visits])]
    for one, other in zip(*found, strict=True):
        # Sums over visits are rounded in another order.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-6)


def plain_loop(step, state, given):
    """Returns what jax.lax.scan returns."""
    found = []
    for of_round in zip(*given, strict=True):
        state, result = step(state, of_round)
        found.append(result)
    return state, jax.tree.map(lambda *results: jnp.stack(results), *found)


def test_selectors_run_under_scan_and_vmap(selector):
    """What networks learn from the same visits differs by rounding, which may swap picks that are equally good."""
    has_net = any(map(is_net, jax.tree.leaves(selector.init(jax.random.key(0)), is_leaf=is_net)))

    def rounds(select, observe, predict, loop, key):
        def step(state, given):
            key, fixed = given
            ids, _ = select(state, key, BATCH_SIZE)
            visited = fixed if has_net else ids
            state = observe(state, visited, visited % 9, jnp.full(BATCH_SIZE, 8))
            return state, (ids, predict(state).p_informative)

        given = jax.random.split(key, 4), jnp.arange(4 * BATCH_SIZE).reshape(4, BATCH_SIZE)
        return loop(step, selector.init(key), given)[1]

    keys = jax.random.split(jax.random.key(0), 3)
    scanned = functools.partial(rounds, selector.select, selector.observe, selector.predict, jax.lax.scan)
    ids, probs = jax.jit(jax.vmap(scanned))(keys)
    single = [rounds(*compiled(selector), plain_loop, key) for key in keys]
    compared = slice(0, 1) if has_net else slice(None)
    np.testing.assert_array_equal(ids[:, compared], jnp.stack([ids[compared] for ids, _ in single]))
    np.testing.assert_allclose(probs, jnp.stack([probs for _, probs in single]), atol=1e-4 if has_net else 1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda s, state: s.select(state, jax.random.key(0), 41),
            r"batch_size: expected 1 to 40 \(num_prompts\), got 41",
        ),
        (lambda s, state: s.select(state, jax.random.key(0), 0), "batch_size: expected 1 to 40"),
        (
            lambda s, state: s.select(state, jax.random.key(0), 3, jnp.arange(2)),
            r"batch_size: expected 1 to 2 \(the number of candidates\), got 3",
        ),
    ],
)
def test_bad_batches_are_refused(selector, call, message):
    with pytest.raises(ValueError, match=message):
        call(selector, selector.init(jax.random.key(0)))


def test_unknown_methods_and_options_list_the_known():
    with pytest.raises(ValueError, match=r"method: expected one of 'arcsine', 'binomial_hmm', .*'uniform', got 'best'"):
        selectors.build("best", 3)
    with pytest.raises(
        ValueError,
        match=r"options of method 'uniform': expected options among group_size, .*, quotas, got decay",
    ):
        selectors.build("uniform", 3, decay=0.5)
    with pytest.raises(ValueError, match="num_prompts: expected an integer >= 1"):
        selectors.build("uniform", 0)
    with pytest.raises(ValueError, match=r"group_size: expected an integer >= 1 .*got 0"):
        selectors.dps(3, group_size=0)
    with pytest.raises(ValueError, match=r"epoch_size: expected an integer >= 1 .*got 0"):
        selectors.history(3, epoch_size=0)


def test_dps_picks_the_most_probably_partial():
    selector = selectors.dps(6, decay=1.0, prior="stability")
    select, observe, predict = compiled(selector)
    state = selector.init(jax.random.key(0))
    for _ in range(3):
        state = observe(state, jnp.arange(5), jnp.array([0, 4, 8, 4, 0]), jnp.full(5, 8))
    ids, info = select(state, jax.random.key(0), 3)
    assert set(np.asarray(ids[:2])) == {1, 3}
    assert int(ids[2]) == 5
    np.testing.assert_allclose(info.scores, predict(state).p_informative[ids])


def test_history_drops_the_solved_until_the_epoch_ends():
    selector = selectors.history(6, epoch_size=5)
    select, observe, _ = compiled(selector)
    state = observe(selector.init(jax.random.key(0)), jnp.arange(3), jnp.array([8, 8, 4]), jnp.full(3, 8))
    for seed in range(5):
        assert not {0, 1} & set(np.asarray(select(state, jax.random.key(seed), 4)[0]))
    assert {0, 1} & set(np.asarray(select(state, jax.random.key(0), 5)[0]))
    state = observe(state, jnp.array([3, 4]), jnp.array([8, 0]), jnp.full(2, 8))
    picked = {int(n) for seed in range(20) for n in select(state, jax.random.key(seed), 2)[0]}
    assert picked == set(range(6))


def grouped_prior(seed, num_groups=3, decay=0.8):
    rng = np.random.default_rng(seed)
    parts = lambda: (
        rng.dirichlet(np.ones(3)),
        rng.gamma(1.0, size=(3, 3)) + 0.1,
        decay,
        None,
        rng.gamma(1.0, size=(3, 3)),
    )
    groups = tuple(dps_jax.TransitionPrior(*parts()) for _ in range(num_groups))
    return dps_jax.TransitionPrior(*parts(), groups)


def test_groups_have_priors_of_their_own():
    prior, groups = grouped_prior(0), np.array([0, 2, -1, 1, 0, 2])
    selector = selectors.dps(6, prior=prior, groups=groups)
    state = selector.init(jax.random.key(0))
    expected = np.stack([(*prior.groups, prior)[group].initial_probs for group in groups], axis=-1)
    np.testing.assert_allclose(selector.predicted_probs(state), expected, rtol=1e-6)
    np.testing.assert_allclose(selector.predict(state).p_informative, expected[1], rtol=1e-6)
    without = selectors.dps(6, prior=prior)
    np.testing.assert_allclose(
        without.predicted_probs(without.init(jax.random.key(0)))[:, 3], prior.initial_probs, rtol=1e-6
    )


def test_a_shard_has_its_part_of_the_groups():
    """Prompts past the end are of the population."""
    prior, groups = grouped_prior(0), np.array([0, 2, -1, 1, 0, 2])
    init = hmm(prior, group_ids=groups).init
    whole, shard = init(6), jax.jit(init, static_argnums=0)(4, 4)
    np.testing.assert_array_equal(whole.group_ids, [0, 2, 3, 1, 0, 2])
    np.testing.assert_array_equal(shard.group_ids, [0, 2, 3, 3])
    np.testing.assert_array_equal(shard.predicted_value[:2], whole.predicted_value[4:])


def test_groups_without_a_prior_for_them_have_no_effect():
    states = [selectors.dps(5, groups=groups).init(jax.random.key(0)) for groups in (None, [7, -3, 0, 1, 2])]
    chex.assert_trees_all_equal(*states)
    assert states[1].group_ids is None


def test_another_prior_is_as_if_it_had_been_the_first():
    groups = np.arange(NUM_PROMPTS) % 4 - 1
    selector, other = (selectors.dps(NUM_PROMPTS, prior=grouped_prior(seed), groups=groups) for seed in (0, 1))
    changed = jax.jit(selector.with_prior)(selector.init(jax.random.key(0)), grouped_prior(1))
    expected = other.init(jax.random.key(0))
    (select, observe, _), (other_select, other_observe, _) = compiled(selector), compiled(other)
    for index in range(3):
        outcome = jnp.arange(index, index + 5), jnp.array([8, 3, 0, 1, 5]), jnp.full(5, 8)
        changed, expected = observe(changed, *outcome), other_observe(expected, *outcome)
    np.testing.assert_allclose(selector.predicted_probs(changed), other.predicted_probs(expected), rtol=1e-5)
    np.testing.assert_array_equal(
        select(changed, jax.random.key(1), 7)[0], other_select(expected, jax.random.key(1), 7)[0]
    )


def test_methods_without_a_prior_cannot_have_another(selector):
    assert (selector.with_prior is None) == (selector.predicted_probs is None)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: selectors.dps(3, groups=[0, 1]), "groups: expected 3 ids, one per prompt, got 2"),
        (lambda: selectors.dps(3, groups=[0, 0.5, 1]), "groups: expected whole numbers, got 0.5 at position 1"),
        (
            lambda: selectors.dps(3, prior=grouped_prior(0), groups=[0, -1, 3]),
            r"groups: expected ids in \[-1, 3\), the groups of the prior, got 3 at position 2",
        ),
        (lambda: hmm(grouped_prior(0), group_ids=[0, -2]), r"group_ids: expected ids in \[-1, 3\), .* got -2"),
    ],
)
def test_bad_groups_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (_transitions.resolve_prior(num_states=5), "prior: expected the emission .*num_states=3.*, got .*num_states=5"),
        (
            dps_jax.TransitionPrior(np.full(3, 1 / 3), np.ones((3, 3)), 0.7, dps_jax.binomial([0.1, 0.5, 0.9])),
            "prior: expected the emission .*exact.*, got .*binomial",
        ),
        (grouped_prior(0), "prior: expected 3 states, 0 groups, without .*, got 3 states, 3 groups, with trained_conc"),
    ],
)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_priors_built_otherwise_are_refused(prior, message, transform):
    selector = selectors.dps(NUM_PROMPTS)
    with pytest.raises(ValueError, match=message):
        transform(selector.with_prior)(selector.init(jax.random.key(0)), prior)


def test_some_predictions_cost_nothing_of_the_size_of_all():
    """Of dps, whose prediction for all is cheap: nothing but the state itself has N entries."""
    num_prompts = 100_000
    selector = selectors.build("dps", num_prompts)
    state = jax.eval_shape(selector.init, jax.random.key(0))
    few = jax.ShapeDtypeStruct((16,), jnp.int32)
    program = jax.jit(lambda *arrays: judged(selector, *arrays)).lower(state, few, few, few).compile()
    assert program.memory_analysis().temp_size_in_bytes < num_prompts
    of_all = jax.jit(lambda state, ids: selector.predicted_probs(state)[:, ids]).lower(state, few).compile()
    assert of_all.memory_analysis().temp_size_in_bytes > num_prompts
