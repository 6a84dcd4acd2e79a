import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax.training import _config as configs
from dps_jax.training import _selection, _setup
from dps_jax.training._phases import Phases
from tests.training import runs

# Tolerances are for a policy whose first steps do not depend on rounding.
RANDOM = configs.ModelConfig(size="0.1m")
METHODS = {
    "dps": {},
    "uniform": {"selector": configs.SelectorConfig(method="uniform", pool_factor=4)},
    "history": {"selector": configs.SelectorConfig(method="history", pool_factor=4)},
    "all ranked": {"selector": configs.SelectorConfig(method="dps", pool_factor=0)},
    "dynamic": {
        "rollout": configs.RolloutConfig(batch_size=4, group_size=4, collection="dynamic", max_batches=3),
        "selector": configs.SelectorConfig(method="uniform"),
    },
    "weighted": {
        "selector": configs.SelectorConfig(method="dps", temperature=0.5, pool_factor=4),
        "learner": configs.LearnerConfig(inclusion_weights="self-normalised"),
    },
    "turns": {
        "selector": configs.SelectorConfig(method="dps", value="variance", thompson=True, max_wait=13, pool_factor=0)
    },
    "levels": {"selector": configs.SelectorConfig(method="binomial_hmm", temperature=0.0, num_states=5)},
    "reference": {"learner": configs.LearnerConfig(kl_coef=0.1, num_minibatches=2, num_epochs=2)},
}


@functools.cache
def build(name: str) -> _setup.Parts:
    return _setup.build(runs.tiny("unused", model=RANDOM, **METHODS[name]))


def start(parts: _setup.Parts, seed: int = 0):
    return jax.jit(parts.round.init)(parts.params, jax.random.key(seed))


def select(parts: _setup.Parts, state):
    return jax.jit(parts.round.select)(state)


def collect(parts: _setup.Parts, state):
    """Returns what `Phases` would collect, by the same program."""
    return jax.jit(parts.round.collect)(state._replace(selector=None), parts.graded, select(parts, state))


def assert_close(one, other, rtol=1e-4, atol=1e-6):
    raw = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    jax.tree.map(lambda a, b: np.testing.assert_allclose(raw(a), raw(b), rtol=rtol, atol=atol), one, other)


@pytest.mark.parametrize("name", METHODS)
def test_round_keeps_the_structure_and_advances(name):
    parts = build(name)
    state = start(parts)
    specs = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    # Phases: methods share the programs of sampling and of the update.
    after, _, info, _ = Phases(parts.round, parts.collect).run(state)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == specs
    assert int(after.round_index) == 1
    assert int(info.num_rollouts) >= 16
    assert int(info.num_tokens) >= int(info.num_rollouts)
    assert bool(info.update.is_finite)
    groups = int(info.num_rollouts) // 4
    if name in ("dps", "all ranked", "reference"):
        assert int(info.confusion.sum()) == groups


def test_scan_over_rounds_and_vmap_over_seeds_equal_phases_one_by_one():
    """All at once, as compiling a step takes long."""
    parts, num_rounds = build("dps"), 3

    def rounds(state, problems):
        return jax.lax.scan(lambda state, _: parts.round.step(state, problems), state, None, length=num_rounds)

    keys = jax.random.split(jax.random.key(7), 2)
    states = jax.vmap(parts.round.init, in_axes=(None, 0))(parts.params, keys)
    states, infos = jax.jit(jax.vmap(rounds, in_axes=(0, None)))(states, parts.graded)
    for seed in range(2):
        of_seed = lambda tree, seed=seed: jax.tree.map(lambda leaf: leaf[seed], tree)
        state, phases, found = (
            jax.jit(parts.round.init)(parts.params, keys[seed]),
            Phases(parts.round, parts.collect),
            [],
        )
        for _ in range(num_rounds):
            state, _, info, _ = phases.run(state)
            found.append(info)
        np.testing.assert_array_equal([info.num_tokens for info in found], of_seed(infos.num_tokens))
        np.testing.assert_allclose([info.update.loss for info in found], of_seed(infos.update.loss), atol=1e-6)
        assert_close(state, of_seed(states))


def test_pool_is_fresh_every_round_and_selection_stays_inside():
    parts = build("dps")
    state = start(parts)
    picks = []
    for _ in range(5):
        selection = select(parts, state)
        assert np.unique(selection.ids).size == 4
        picks.append(np.sort(selection.ids))
        state = state._replace(round_index=state.round_index + 1)
    assert any(not np.array_equal(picks[0], other) for other in picks[1:])


def test_a_pool_is_some_batches_or_a_share_of_all_prompts():
    of = lambda **options: configs.SelectorConfig(**options).pool_size(8, 1000)
    assert of(pool_factor=4, pool_share=0.0) == 32
    assert of(pool_factor=4, pool_share=0.25) == 250
    assert of(pool_factor=64, pool_share=0.25) == 512
    assert of(pool_factor=0, pool_share=0.25) is None


def test_no_prompt_waits_longer_than_allowed():
    parts = build("turns")
    state, phases, visited = start(parts), Phases(parts.round, parts.collect), set()
    for _ in range(13):
        state, collection, _, _ = phases.run(state)
        visited |= set(np.asarray(collection.ids).tolist())
    assert len(visited) == 50


def test_inclusion_probabilities_are_those_of_all_prompts():
    parts = build("weighted")
    state = start(parts)
    # A belief that tells prompts apart.
    spread = jnp.linspace(0.05, 0.9, 50)
    state = state._replace(selector=state.selector._replace(predicted_value=spread))
    keys = jax.random.split(jax.random.key(3), 4000)
    selections = jax.jit(jax.vmap(lambda key: parts.round.select(state._replace(key=key))))(keys)
    probs = np.asarray(selections.inclusion_probs, np.float64)
    assert 0 < probs.min() <= probs.max() <= 16 / 50
    values = np.random.default_rng(0).normal(size=50)
    for of_prompts in (np.ones(50), values):
        sums = (of_prompts[np.asarray(selections.ids)] / probs).sum(axis=1)
        assert abs(sums.mean() - of_prompts.sum()) < 4 * sums.std() / np.sqrt(4000)
    assert np.asarray(spread)[selections.ids].mean() > np.asarray(spread).mean() + 0.1

    np.testing.assert_array_equal(collect(parts, state).batch.inclusion_probs, select(parts, state).inclusion_probs)
    uniform = build("uniform")
    np.testing.assert_allclose(select(uniform, start(uniform)).inclusion_probs, 4 / 50, rtol=1e-6)
    greedy, dynamic = build("dps"), build("dynamic")
    assert greedy.round.select(start(greedy)).inclusion_probs is None
    assert dynamic.round.select(start(dynamic)) is None
    with pytest.raises(ValueError, match="selection: expected the prompts of the round without max_batches, got None"):
        greedy.round.collect(start(greedy), greedy.graded, None)


def test_levels_of_the_task_are_groups_of_the_method():
    parts = build("levels")
    config = runs.tiny("unused", model=RANDOM, **METHODS["levels"])
    prior, options = _selection.selector_options(config, _setup.known_prompts(parts.task, parts.problems))
    assert prior is None
    np.testing.assert_array_equal(options["groups"], parts.problems.groups)
    assert (options["group_size"], options["num_states"], options["temperature"]) == (4, 5, 0.0)
    mopps = dataclasses.replace(config, selector=configs.SelectorConfig(method="mopps", decay=0.3))
    prior, options = _selection.selector_options(mopps, _setup.known_prompts(parts.task, parts.problems))
    assert prior is None
    assert set(options) == {"decay", "group_size", "groups"}
    for known, names in (("all", {"groups", "features"}), ("groups", {"groups"}), ("none", set())):
        selector = dataclasses.replace(config.selector, side_information=known)
        _, options = _selection.selector_options(
            dataclasses.replace(config, selector=selector), _setup.known_prompts(parts.task, parts.problems)
        )
        assert set(options) & {"groups", "features"} == names
    dps = dataclasses.replace(config, selector=configs.SelectorConfig(method="dps"))
    assert "groups" not in _selection.selector_options(dps, _setup.known_prompts(parts.task, parts.problems))[1]


def test_selector_learns_what_was_rolled_out():
    parts = build("dps")
    state, before = start(parts), start(parts)
    collection = collect(parts, state)
    after, _ = jax.jit(parts.round.observe, donate_argnums=0)(state, collection)
    value, value_before = after.selector.predicted_value, before.selector.predicted_value
    moved = np.flatnonzero(np.abs(np.asarray(value - value_before)) > 1e-3)
    assert set(moved) <= set(np.asarray(collection.ids).tolist())
    assert moved.size


def test_dynamic_collection_counts_every_rollout():
    parts = build("dynamic")
    state = start(parts)
    collection = jax.jit(parts.round.collect)(state, parts.graded, None)
    assert int(collection.num_rollouts) == int(collection.counts.sum())
    # Untrained: nothing is ever solved, so all three batches are tried.
    assert int(collection.num_rollouts) == 3 * 16


def test_reference_is_kept_while_the_policy_moves():
    parts = build("reference")
    state = start(parts)
    batch = collect(parts, state)
    rewards = jnp.tile(jnp.array([0.0, 1.0, 0.0, 1.0]), (4, 1))
    batch = batch._replace(batch=batch.batch._replace(rewards=rewards))
    after, info = jax.jit(parts.round.update, donate_argnums=0)(start(parts)._replace(selector=None), batch)
    assert_close(after.ref_params, state.params, rtol=0, atol=0)
    assert any(
        not np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (after.params, state.params)), strict=True)
    )
    assert float(info.grad_norm) > 0


def test_wrong_references_are_graded_and_not_shown_to_the_selector():
    task = dataclasses.replace(runs.tiny("unused").task, broken=0.5)
    config = runs.tiny("unused", model=RANDOM, task=task, selector=METHODS["levels"]["selector"])
    parts = _setup.build(config)
    plain = build("levels")
    for one, other in zip(parts.problems, plain.problems, strict=True):
        np.testing.assert_array_equal(one, other)
    _, options = _selection.selector_options(config, _setup.known_prompts(parts.task, parts.problems))
    np.testing.assert_array_equal(options["features"], plain.problems.facts)
    is_broken = np.asarray(parts.graded.facts)[:, -1] == 1
    assert 0.2 < is_broken.mean() < 0.8
    answers = parts.task.make_solutions(config.seed, "train", np.arange(50))
    np.testing.assert_array_equal(parts.score_fn(parts.graded.facts, jnp.asarray(answers)).is_correct, ~is_broken)
    # Held-out problems are graded as they are: the evaluation has no wrong references.
    assert np.asarray(plain.graded.facts)[:, -1].sum() == 0
